"""The check ``clipped-before-reduction``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.closer_looks import closer_looks
from scaleproof.checks.gradient_weights import (
    EQUAL,
    clip_factors,
    final_factors,
    fit_weights,
    is_proportional,
    local_sizes,
)
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.probes import StepProbe, step_probes
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.observations import ProbeRecord, StepFlag
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study


@final
class ClippedSteps(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's records of all its steps say, probed or not.

    ``num_clipped``: steps at which some rank called ``torch.nn.utils.clip_grad_*``; at
    ``num_suspect`` of them, from ``first_suspect`` on, it did so before a collective, the limit
    was reached, and the ranks did not measure the same norm.
    """

    run: str
    num_clipped: int
    num_suspect: int
    first_suspect: int


@final
class ClipProbe(msgspec.Struct, frozen=True, kw_only=True):
    """How ranks count in what was used at one step. Tuples are by rank.

    ``shares``: weights over their mean; 1 is even. ``factors``: what clipping multiplied each
    rank's gradient with; None where it was not called or measured nothing. ``sizes``: weight times
    norm of the rank's own gradient, over their mean; None where a norm is unknown. ``totals``: sum
    of all ranks' weights, in what each rank used. ``error``: the largest standard error of a share.
    """

    run: str
    where: str
    step: int
    ranks: tuple[int, ...]
    is_clipped: bool
    is_sharded: bool
    shares: tuple[float, ...]
    error: float
    factors: tuple[float, ...] | None
    sizes: tuple[float, ...] | None
    totals: tuple[float, ...]
    residual: float


@final
class OwnClip(msgspec.Struct, frozen=True, kw_only=True):
    """What the first clipping of a step was given, where all ranks used the same gradient after
    it. ``distance``: how far the ranks' were apart, relative to the largest; ``norms``: of that,
    by rank; ``limit``: the least allowed."""

    run: str
    where: str
    step: int
    distance: float
    norms: tuple[float, ...]
    limit: float


@final
class ClippedMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``probes``: of steps at which every weight is determined. ``own``: of steps that were looked
    at closely."""

    steps: tuple[ClippedSteps, ...]
    probes: tuple[ClipProbe, ...]
    own: tuple[OwnClip, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedBeforeReduction(AbstractCheck[ClippedMeasurement]):
    """Each rank clips by a norm of its own, before gradients are averaged or on its shard alone.

    What it looks for
        Ranks that count unequally in the gradient the optimizer used because each one's was
        clipped before the ranks' gradients were averaged; or shards of one gradient that are
        scaled by different factors because each rank took the norm of its own shard.

    Why it matters
        The average of clipped gradients is not the clipped average: a rank with large gradients
        (hard samples) counts less than the others, and the step has another direction than one
        device would take. Clipping by the norm of a shard turns the gradient too, and lets more of
        it pass. Both differ more the more ranks there are.

    How it decides
        By the effective weights at probed steps: the weights `w` that solve
        `final = sum of w_r * local_r`. It fails when they are uneven as the factors are that
        `clip_grad_norm_` applied on each rank, up to `tolerance` of an even weight; when, without
        that function, weight times norm of the rank's own gradient is the same on all ranks though
        the norms are not, at `min_steps` steps; and when shards are scaled by factors further
        apart than `tolerance`. Under `check` also when the first clipping of a step reached its
        limit on gradients that were apart by more than `tolerance`, and all ranks then used the
        same ones. Steps where weights leave more than `max_residual` unexplained don't
        count, nor do those at which the ranks' loss scales differ (see schedule-drift): the scale
        makes weights uneven then. A collective between clipping and the step (for the logged
        loss, for one) is no proof; where ranks measured unequal norms before one and no probe
        tells what came of it, it is undecided.

    What it can't see
        Clipping when no probed step reached the limit. Clipping single values.

    How to fix it
        Clip after the last backward, once the gradients are averaged: with DDP right before
        `optimizer.step()`; with hand-written averaging after it. With FSDP2 call
        `torch.nn.utils.clip_grad_norm_` on the model's own parameters (it takes the norm over all
        shards), never on `to_local()`.

    References
        horovod/horovod#1346, pytorch/pytorch#72548, PrimeIntellect-ai/OpenDiloco PR#6. Pascanu,
        Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks.
    """

    name: ClassVar[str] = "clipped-before-reduction"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS)
    consequence_of: ClassVar[tuple[str, ...]] = ("unsynced-gradients",)

    tolerance: float = 0.05
    """Of an even weight: reductions in 16 bits move weights by less than 0.01."""
    max_residual: float = 0.05
    """Of the final gradient: above it, weights do not explain what was used."""
    min_steps: int = 2
    """Weights may be uneven like norms once by chance; not twice."""

    def measure(self, study: Study) -> ClippedMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        return ClippedMeasurement(
            steps=tuple(_clipped_steps(run) for run in runs),
            probes=tuple(found for run in runs for found in _probes(run)),
            own=tuple(found for run in runs for found in _own_clips(run)),
        )

    def judge(self, measurement: ClippedMeasurement) -> Judgement:
        sure = [p for p in measurement.probes if self._is_sure(p)]
        alone = [p for p in sure if self._is_like_factors(p)]
        by_size = [p for p in sure if self._is_like_sizes(p)]
        shards = [p for p in sure if p.is_sharded and self._are_shards_apart(p)]
        if alone or len(by_size) >= self.min_steps:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence((alone or by_size)[0], counted(len(alone or by_size), "step")),
                remedy="Clip after the gradients are averaged: after the last backward, right "
                "before optimizer.step().",
            )
        if shards:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence_of_shards(shards[0]),
                remedy="Take the norm over all shards: torch.nn.utils.clip_grad_norm_ on the "
                "model's own parameters, never on to_local().",
            )
        reached = [
            clip
            for clip in measurement.own
            if clip.distance > self.tolerance and max(clip.norms) > clip.limit
        ]
        if reached:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence_of_own(reached[0], counted(len(reached), "step")),
                remedy="Clip after the gradients are averaged: with accumulation after the last "
                "backward of a step only.",
            )
        return self._judge_the_rest(measurement, sure, by_size)

    def _judge_the_rest(
        self, measurement: ClippedMeasurement, sure: list[ClipProbe], by_size: list[ClipProbe]
    ) -> Judgement:
        if by_size:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_sentence(by_size[0], '1 step')} Seen at one step only.",
                remedy="Train for more steps, so that more are probed.",
            )
        shown = {probe.run for probe in sure if probe.is_clipped}
        suspects = [s for s in measurement.steps if s.num_suspect and s.run not in shown]
        if suspects:
            first = suspects[0]
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{first.run}, from step {first.first_suspect} on, at "
                f"{counted(first.num_suspect, 'step')}: ranks clipped by unequal norms before a "
                "collective, and no probed step tells whether it was the gradients' reduction.",
                remedy="Clip after the gradients are averaged, right before optimizer.step().",
            )
        num_clipped = sum(steps.num_clipped for steps in measurement.steps)
        if num_clipped == 0:
            sentence = "No step called torch.nn.utils.clip_grad_norm_ or clip_grad_value_"
            sentence += ", and no rank counts less for its norm." if sure else "."
        else:
            sentence = (
                f"Gradients were clipped at {counted(num_clipped, 'step')}, after they were shared."
            )
        return Judgement(outcome=Outcome.PASS, sentence=sentence)

    def _is_sure(self, probe: ClipProbe) -> bool:
        return probe.residual <= self.max_residual and 3 * probe.error <= self.tolerance

    def _is_like_factors(self, probe: ClipProbe) -> bool:
        return probe.factors is not None and is_proportional(
            np.array(probe.shares), np.array(probe.factors), self.tolerance
        )

    def _is_like_sizes(self, probe: ClipProbe) -> bool:
        if probe.sizes is None or max(probe.shares) - min(probe.shares) <= 2 * self.tolerance:
            return False
        return max(probe.sizes) - min(probe.sizes) <= self.tolerance

    def _are_shards_apart(self, probe: ClipProbe) -> bool:
        return max(probe.totals) - min(probe.totals) > self.tolerance * max(probe.totals)


def _sentence(probe: ClipProbe, steps: str) -> str:
    shares = [f"{share / len(probe.shares):.3f}" for share in probe.shares]
    least = probe.ranks[int(np.argmin(probe.shares))]
    how = "as clip_grad_norm_ scaled each" if probe.factors else "each by its own norm"
    return (
        f"{probe.run}, step {probe.step}: the ranks' gradients were clipped before they were "
        f"shared ({probe.where}): they count {listed(shares, most=8)} of the sum, {how}; rank "
        f"{least} the least; so at {steps}."
    )


def _sentence_of_shards(probe: ClipProbe) -> str:
    totals = [f"{total:.3f}" for total in probe.totals]
    return (
        f"{probe.run}, step {probe.step}: ranks scaled their shards of one gradient differently "
        f"({probe.where}), by {listed(totals, most=8)}: each clipped by the norm of its own shard."
    )


def _sentence_of_own(clip: OwnClip, steps: str) -> str:
    norms = [f"{norm:.3g}" for norm in clip.norms]
    where = f" at {clip.where}" if clip.where else ""
    return (
        f"{clip.run}, step {clip.step}: each rank clipped a gradient of its own{where} (norms "
        f"{listed(norms, most=8)}, allowed {clip.limit:.3g}) before the ranks' gradients were "
        f"shared; so at {steps}."
    )


def _own_clips(run: Run) -> Iterator[OwnClip]:
    for look in closer_looks(run):
        probe = look.probe
        factors = final_factors(probe)
        is_known = np.isfinite(look.before_clipping).any(axis=2).all(axis=0) & ~probe.is_sharded
        # Clipping single values measures no norm; loss scales that differ are another fault.
        is_by_norm = bool(np.isfinite(probe.column("clip_norm")).all())
        is_shared = bool(np.isfinite(factors).all() and (np.abs(factors - 1) <= EQUAL).all())
        if not is_by_norm or not is_shared or not is_known.any() or len(set(probe.grad_scales)) > 1:
            continue
        given = np.nan_to_num(look.before_clipping[:, is_known]).reshape(probe.num_ranks, -1)
        gaps = np.linalg.norm(given - given[0], axis=1)
        size = float(np.linalg.norm(given, axis=1).max())
        if size > 0:
            yield OwnClip(
                run=probe.run,
                where=look.records[0].clip_where,
                step=probe.step,
                distance=float(gaps.max()) / size,
                norms=tuple(map(_given_norm, run.ranks, look.records)),
                limit=float(probe.column("clip_max").min()),
            )


def _given_norm(rank: Rank, look: CloseUpRecord) -> float:
    """Of all that was given to clipping."""
    if look.before_clipping_norms is None:
        return 0.0
    norms = rank.array(look.before_clipping_norms, np.dtype("<f8"))
    rows = [row for row in look.clipped_tensors if row < len(norms)]
    return float(np.sqrt(np.nansum(norms[rows] ** 2)))


def _clipped_steps(run: Run) -> ClippedSteps:
    tables = [rank.observed_steps for rank in run.ranks]
    num_steps = min(map(len, tables))
    steps: NDArray[Any] = np.stack([table[:num_steps] for table in tables])
    norms, limits = steps["clip_norm"], steps["clip_max"]
    flags = steps["flags"]
    is_clipped = (flags & StepFlag.CLIPPED > 0).any(axis=0)
    is_early = (flags & StepFlag.CLIPPED > 0) & (flags & StepFlag.REDUCED_AFTER_CLIPPING > 0)
    is_reached = (norms > limits).any(axis=0)  # NaN, where it was not called, compares as false
    # What is measured after the reduction is the same on all ranks, to rounding.
    with np.errstate(invalid="ignore"):  # norms that are not finite
        gap = np.abs(norms - norms[0]).max(axis=0)
        is_unequal = ~(gap <= 1e-3 * np.abs(norms).max(axis=0))
    suspect = np.flatnonzero(is_early.any(axis=0) & is_reached & is_unequal)
    if _have_own_scales(run):  # then norms differ by them
        suspect = suspect[:0]
    return ClippedSteps(
        run=run.name,
        num_clipped=int(is_clipped.sum()),
        num_suspect=len(suspect),
        first_suspect=int(suspect[0]) + 1 if len(suspect) else 0,
    )


def _have_own_scales(run: Run) -> bool:
    """At some probed step the ranks' loss scales differ."""
    scales: dict[tuple[int, int], set[float]] = {}
    for rank in run.ranks:
        for probe in rank.of(ProbeRecord):
            scales.setdefault((probe.optimizer, probe.step), set()).add(probe.grad_scale)
    return any(len(of_step) > 1 for of_step in scales.values())


def _probes(run: Run) -> Iterator[ClipProbe]:
    for probe in step_probes(run):
        found = _clip_probe(probe)
        if found is not None:
            yield found


def _clip_probe(probe: StepProbe) -> ClipProbe | None:
    """None where weights are not determined, the ranks did not share their gradients, or shared
    them scaled differently: what that does to weights is schedule-drift's."""
    if len(set(probe.grad_scales)) > 1:
        return None
    fit = fit_weights(probe)
    if not fit.is_determined or not np.isfinite(final_factors(probe)).all():
        return None
    totals = fit.weights.sum(axis=1)
    if (totals <= 0).any():
        return None
    rows = fit.weights / totals[:, None] * probe.num_ranks
    errors = fit.errors / totals[:, None] * probe.num_ranks
    shares = rows.mean(axis=0)
    factors, sizes = clip_factors(probe), shares * local_sizes(probe)
    return ClipProbe(
        run=probe.run,
        where=probe.where,
        step=probe.step,
        ranks=probe.ranks,
        is_clipped=any(flags & StepFlag.CLIPPED for flags in probe.flags),
        is_sharded=bool(probe.is_sharded.any()),
        shares=_floats(shares),
        error=float(np.max(errors)),
        factors=_floats(factors) if np.isfinite(factors).all() else None,
        sizes=_floats(sizes / sizes.mean()) if np.isfinite(sizes).all() else None,
        totals=_floats(totals),
        residual=fit.residual,
    )


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
