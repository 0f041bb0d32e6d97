"""The check ``discarded-microbatches``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.accumulation import accumulates, batches_per_backward
from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.closer_looks import CloserLook, closer_looks, unclipped_gradient
from scaleproof.checks.gradient_weights import final_factors, has_weight, joined
from scaleproof.checks.needs import CANDIDATE_RUN, CLOSE_UPS, SCRIPT, STEPS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.study import Run, Study
from scaleproof.stats.effective_weights import EffectiveWeights, effective_weights

_MAX_SOURCES = 32
"""Backwards of all ranks that are fitted one by one; of more, the mean over ranks is."""

_FITS = 0.05
"""Residual up to which the weights explain what was used."""


@final
class CountedBackwards(msgspec.Struct, frozen=True, kw_only=True):
    """How much each backward of an accumulating step counts in the gradient that was used.

    ``shares``: by backward, as multiples of the largest, the mean over ranks; empty where they are
    not determined. ``error``: the largest standard error of one. ``rank_gap``: how far
    apart the ranks' shares of one backward are at most.
    """

    run: str
    where: str
    step: int
    num_backwards: int
    shares: tuple[float, ...]
    error: float
    residual: float
    rank_gap: float
    backward_where: str


@final
class DiscardedMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """Of steps that add up several backwards, each on a batch of its own."""

    steps: tuple[CountedBackwards, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardedMicrobatches(AbstractCheck[DiscardedMeasurement]):
    """Of the microbatches that make a step, some do not count, or count less than others.

    What it looks for
        Steps that add up the gradients of several backwards, each on a batch of its own, and in
        whose gradient some count nothing (`zero_grad` between them), or each one less than the next
        (gradients that are divided again at every microbatch), or by other factors (clipped at
        every microbatch) - on all ranks alike.

    Why it matters
        The samples were paid for and thrown away: the batch is smaller than it says, and the
        gradient noisier. Ranks agree, the loss falls, and nothing tells.

    How it decides
        By the effective weight of each backward: the weights `w` that solve
        `gradient that was used = sum of w * what each backward produced`, over the ranks' backwards
        at steps that were looked at closely. What a backward produced has its loss's factor in it
        already: sound weights are equal. It fails when the least is more than `tolerance` (of the
        largest) and three standard errors below it, at `min_steps` steps and `min_share` of those
        that are told. Where ranks differ, or weights leave more than `max_residual` unexplained, a
        step tells nothing.

    What it can't see
        Steps of more than 32 backwards. Microbatches that are alike. A rank whose microbatches are
        not shared: that is unsynced-gradients.

    How to fix it
        Call `optimizer.zero_grad()` once per step, right after `optimizer.step()`; divide the loss,
        not the gradients, by the number of microbatches; clip once, before the step.

    References
        NVIDIA-NeMo/Automodel PR#3530, InfiniTensor/InfiniTrain PR#183, instructlab/training#414,
        pytorch/torchtitan PR#1732.
    """

    name: ClassVar[str] = "discarded-microbatches"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, STEPS, CLOSE_UPS)
    consequence_of: ClassVar[tuple[str, ...]] = ("unsynced-gradients", "clipped-before-reduction")

    tolerance: float = 0.1
    """Of the largest weight: sums in 16 bits move weights by less than 0.02."""
    max_residual: float = 0.05
    min_steps: int = 2
    min_share: float = 0.25

    def measure(self, study: Study) -> DiscardedMeasurement:
        runs = study.runs_of(study.candidate)
        return DiscardedMeasurement(steps=tuple(step for run in runs for step in _steps(run)))

    def judge(self, measurement: DiscardedMeasurement) -> Judgement:
        steps = measurement.steps
        if not steps:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No step that was looked at adds up the gradients of several batches.",
            )
        told = [step for step in steps if self._is_told(step)]
        wrong = [step for step in told if self._is_uneven(step)]
        if wrong and len(wrong) >= max(self.min_steps, self.min_share * len(told)):
            return self._judge_wrong(wrong, len(told))
        if not told or len(wrong) == len(told):
            why = "seen at one step only" if wrong else "the gradient that was used does not tell"
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{steps[0].run}: {counted(steps[0].num_backwards, 'backward')} make a "
                f"step, and how much each counts is open: {why}.",
                remedy="Look at more steps (--steps).",
            )
        but = f", but for {counted(len(wrong), 'step')}" if wrong else ""
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"All {told[0].num_backwards} backwards of a step count alike, at "
            f"{counted(len(told), 'step')}{but}.",
        )

    def _is_told(self, step: CountedBackwards) -> bool:
        is_fitted = bool(step.shares) and step.residual <= self.max_residual
        return is_fitted and step.rank_gap <= self.tolerance and 3 * step.error <= self.tolerance

    def _is_uneven(self, step: CountedBackwards) -> bool:
        gap = max(step.shares) - min(step.shares)
        return gap > max(self.tolerance, 3 * step.error)

    def _judge_wrong(self, wrong: Sequence[CountedBackwards], num_told: int) -> Judgement:
        step = wrong[0]
        shares = np.array(step.shares)
        lost = [f"{index + 1}" for index in np.flatnonzero(np.abs(shares) <= self.tolerance)]
        is_first_lost = len(lost) and abs(shares[0]) <= self.tolerance
        ratios = shares[1:] / np.where(shares[:-1] == 0, np.nan, shares[:-1])
        if len(ratios) > 1 and (np.abs(ratios / ratios[0] - 1) <= self.tolerance).all():
            how = f"each {1 / ratios[0]:.3g} of the next: they are divided at every backward"
            remedy = "Divide the loss, not the gradients, by the number of microbatches."
        elif lost:
            which = f"number{'s' if len(lost) > 1 else ''} {listed(lost, most=8)}"
            how = f"nothing of {which} of {step.num_backwards} is left"
            remedy = (
                "Call optimizer.zero_grad() once per step, after optimizer.step(), not at every "
                "microbatch."
                if is_first_lost
                else "Make sure that each backward's gradient is kept until the step."
            )
        else:
            how = "something changes them between backwards"
            remedy = "Clip and divide gradients once, after the last backward of a step."
        values = listed([f"{share:.2f}" for share in step.shares], most=8)
        at = f", backward at {step.backward_where}" if step.backward_where else ""
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{step.run}, step {step.step}: the backwards of a step do not count alike "
            f"({step.where}{at}), but {values}: {how}; so at {len(wrong)} of "
            f"{counted(num_told, 'step')}.",
            remedy=remedy,
        )


def _steps(run: Run) -> Iterator[CountedBackwards]:
    batches = batches_per_backward(run)
    for look in closer_looks(run):
        probe = look.probe
        if accumulates(probe, batches.get(probe.optimizer)):
            yield _counted(look)


def _counted(look: CloserLook) -> CountedBackwards:
    """Ranks that made another number of backwards, or whose gradients differ, tell nothing."""
    probe, chosen = look.probe, has_weight(look.probe)
    numbers = {record.num_backwards for record in probe.records}
    is_whole = all(
        len(own) == record.num_backwards
        for own, record in zip(look.backwards, probe.records, strict=True)
    )
    is_same = bool(np.isfinite(final_factors(probe)).all())
    by_rank, error, residual = np.zeros((0, 0)), float("nan"), float("nan")
    if len(numbers) == 1 and is_whole and is_same and chosen.any():
        sources = np.nan_to_num(np.stack(look.backwards)[:, :, chosen])
        by_rank, error, residual = _weights(sources, look, chosen)
    largest = np.abs(by_rank).max(axis=1, keepdims=True) if by_rank.size else by_rank
    is_told = bool(by_rank.size and (largest > 0).all())
    relative = by_rank / largest if is_told else by_rank
    shares = relative.mean(axis=0) if is_told else np.zeros(0)
    return CountedBackwards(
        run=probe.run,
        where=probe.where,
        step=probe.step,
        num_backwards=min(numbers),
        shares=tuple(float(share) for share in shares),
        error=error / float(largest.min()) if is_told else float("nan"),
        residual=residual,
        rank_gap=float(np.ptp(relative, axis=0).max()) if is_told else float("nan"),
        backward_where=next((r.backward_where for r in look.records if r.backward_where), ""),
    )


def _weights(
    sources: NDArray[np.float64], look: CloserLook, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float, float]:
    """By rank and backward, with the largest standard error and the residual. ``sources``: shape
    ``(num_ranks, num_backwards, num_tensors, NUM_COORDINATES)``.

    First of what was used: of several clippings, the first was given a part of the step only.
    """
    num_ranks, num_backwards = sources.shape[:2]
    if num_ranks * num_backwards > _MAX_SOURCES:
        sources, num_ranks = sources.mean(axis=0, keepdims=True), 1
    if num_backwards > _MAX_SOURCES:
        return np.zeros((0, 0)), float("nan"), float("nan")
    flat = sources.reshape(num_ranks * num_backwards, -1)
    targets = [joined(look.probe.final), unclipped_gradient(look).values]
    fits: list[EffectiveWeights] = [
        effective_weights(flat, target[chosen].reshape(-1))
        for target in targets
        if target is not None
    ]
    fits = [fit for fit in fits if fit.is_determined]
    if not fits:
        return np.zeros((0, 0)), float("nan"), float("nan")
    best = next((fit for fit in fits if fit.residual <= _FITS), fits[0])
    by_rank = best.weights.reshape(num_ranks, num_backwards)
    return by_rank, float(best.errors.max()), best.residual
