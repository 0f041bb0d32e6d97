"""The check ``uneven-batches``."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.gradient_weights import fit_weights
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, STEPS, TRAINING_LOADER, TWO_RANKS
from scaleproof.checks.passes import loader_words
from scaleproof.checks.probes import step_probes
from scaleproof.checks.relations import TOLD, Relation, relation_of
from scaleproof.checks.replayed import compared_steps
from scaleproof.checks.wording import counted, listed, short_percent
from scaleproof.evidence.observations import LoaderRecord, PassRecord, ProbeRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study

_SAME_WEIGHT = 0.01
"""Distance of weights, over ranks, up to which they are the same."""
_TOLD_APART = 3 * _SAME_WEIGHT
"""Distance from equal batches, beyond which weights by samples and equal ones are told apart."""


@final
class UnevenRun(msgspec.Struct, frozen=True, kw_only=True):
    """How unevenly the samples of one run were spread over its ranks, step by step.

    The error of a step is the most by which a rank's sample weighs more or less than its share,
    were every rank's mean gradient to count alike: max over ranks of ``|n_r * R / sum(n) - 1|``.
    ``mean_error`` is over all steps whose sizes are known. ``worst_sizes``: samples of each rank
    at ``worst_step``. ``num_steps``: steps of each rank, but for the ``num_alone`` that some made
    after another had stopped.

    ``loss``: how the loss was reduced, as far as probes tell. ``weighting``: what gradients were
    weighted by at probed uneven steps - ``unknown`` when none was probed. ``reference``: whether
    the ranks counted as on one device at uneven steps that were replayed there; ``unknown`` when
    none was.
    """

    run: str
    where: str
    num_steps: tuple[int, ...]
    num_alone: int
    num_known: int
    num_uneven: int
    mean_error: float
    worst_error: float
    worst_step: int
    worst_sizes: tuple[int, ...]
    loss: Literal["mean", "sum", "unknown"]
    weighting: Literal["equal", "by-samples", "other", "unknown"]
    reference: Literal["agrees", "differs", "unknown"]


@final
class UnevenBatchesMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    runs: tuple[UnevenRun, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnevenBatches(AbstractCheck[UnevenBatchesMeasurement]):
    """Ranks train on different numbers of samples in the same step, and count alike.

    What it looks for
        Steps in which the ranks' batches differ in size while their mean gradients are averaged
        with equal weights, and ranks that make different numbers of steps.

    Why it matters
        A mean of per-rank means is not the mean: with 6 samples on one rank and 2 on the other, a
        sample of the second counts three times as much, and the gradient is a third off, with all
        ranks in perfect agreement. Nothing but a comparison with one device shows it. Ranks with
        more steps than others hang, or go on alone (`Join`).

    How it decides
        From the samples that each rank drew between two steps: the largest of
        `|n_r * R / sum(n) - 1|` over the R ranks, averaged over all steps. It fails above
        `max_share`; below, the uneven batches (mostly the last of an epoch) are only mentioned.
        In a pass that all ranks made, a step that a rank does not make counts as 0 samples. Once a
        rank has stopped - within a pass, or before one that others began - no step counts: that is
        early-stop-differs. Sound are: losses that are summed, not
        averaged, so that every sample counts alike; gradients that were weighted by the numbers of
        samples, as probes of such steps show. When something was multiplied or divided after the
        loss was reduced, that may make up for it: undecided. Where such steps were replayed on one
        device (`scaleproof check`), its gradient decides.

    What it can't see
        Samples that weigh differently within a batch (tokens, masks): see misweighted-gradients.
        Batches that do not come from a loader. A rank whose loader reads ahead by a number of
        batches of its own.

    How to fix it
        Give every rank as many samples in every step (`drop_last=True`, or a `DistributedSampler`,
        which pads), or sum the loss over the batch, divide by the samples of all ranks and
        multiply by the number of ranks.

    References
        huggingface/transformers#34373, facebookresearch/fairchem#269, pytorch/pytorch#67253,
        #38174 (`Join`).
    """

    name: ClassVar[str] = "uneven-batches"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, TRAINING_LOADER, STEPS)

    max_share: float = 0.01

    def measure(self, study: Study) -> UnevenBatchesMeasurement:
        return UnevenBatchesMeasurement(
            runs=tuple(_measure(run) for run in study.runs_of(study.candidate))
        )

    def judge(self, measurement: UnevenBatchesMeasurement) -> Judgement:
        uneven = [run for run in measurement.runs if run.mean_error > self.max_share]
        certain = [run for run in uneven if _is_misweighted(run)]
        if certain:
            worst = max(certain, key=lambda run: run.mean_error)
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{_sentence(worst)}, and the ranks' gradients count "
                + ("otherwise than on one device." if worst.weighting == "other" else "alike."),
                remedy="Give every rank as many samples in every step, or divide the summed loss "
                "by the samples of all ranks and multiply it by the number of ranks.",
            )
        open_ = [run for run in uneven if not _is_made_up_for(run)]
        if open_:
            worst = max(open_, key=lambda run: run.mean_error)
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_sentence(worst)}; whether the loss makes up for it can't be seen.",
                remedy="Compare with one device (scaleproof compare), or give every rank as many "
                "samples in every step.",
            )
        known = [run for run in measurement.runs if run.num_known]
        if not known:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No step is known in which two or more ranks drew from a loader.",
            )
        worst = max(known, key=lambda run: run.mean_error)
        if not worst.num_uneven:
            num = counted(sum(run.num_known for run in known), "step")
            alone = max(known, key=lambda run: run.num_alone)
            after = ""
            if alone.num_alone:
                after = (
                    f" {counted(alone.num_alone, 'step')} of {alone.run} that not all ranks went "
                    "on to are not counted (see early-stop-differs)."
                )
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"All ranks had as many samples in each of {num}.{after}",
            )
        if uneven:
            how = "summed losses" if worst.loss == "sum" else "weights by the number of samples"
            if worst.reference == "agrees" and worst.weighting != "by-samples":
                how = "losses divided by the samples of all ranks (one device agrees)"
            sentence = f"{_sentence(worst)}; {how} make up for it."
        else:
            sentence = f"{_sentence(worst)}: no more than max_share."
        return Judgement(outcome=Outcome.PASS, sentence=sentence)


def _is_made_up_for(run: UnevenRun) -> bool:
    if run.reference != "unknown":
        return run.reference == "agrees"
    return run.weighting == "by-samples" or (run.loss == "sum" and run.weighting != "other")


def _is_misweighted(run: UnevenRun) -> bool:
    if run.reference != "unknown":
        return run.reference == "differs"
    return run.loss == "mean" and run.weighting in ("equal", "unknown")


def _sentence(worst: UnevenRun) -> str:
    fewest, most = min(worst.num_steps), max(worst.num_steps)
    steps = ""
    if fewest < most:
        first, last = worst.num_steps.index(fewest), worst.num_steps.index(most)
        steps = f"rank {last} made {counted(most, 'step')} and rank {first} {fewest:,}, and "
    sizes = listed(worst.worst_sizes, most=8)
    ranks = "0 and 1" if len(worst.worst_sizes) == 2 else f"0 to {len(worst.worst_sizes) - 1}"
    return (
        f"{worst.run}: {steps}{worst.num_uneven:,} of {counted(worst.num_known, 'step')} had "
        f"batches of different sizes ({worst.where}; at step {worst.worst_step} {sizes} samples on "
        f"ranks {ranks}): a sample's weight is off by {short_percent(worst.mean_error)} on average"
    )


def _measure(run: Run) -> UnevenRun:
    most_steps = max(len(rank.observed_steps) for rank in run.ranks)
    last_step = _last_step(run)
    tables = [rank.observed_steps[:last_step] for rank in run.ranks]
    num_steps = tuple(len(table) for table in tables)
    sizes = np.zeros((len(tables), max(num_steps, default=0)), np.int64)
    for row, table in zip(sizes, tables, strict=True):
        row[: len(table)] = table["num_samples"]
    totals = sizes.sum(axis=0)
    # A step of another optimizer on the same batch has drawn nothing anew.
    is_known = (sizes >= 0).all(axis=0) & (totals > 0)
    if sum(bool((row > 0).any()) for row in sizes) < 2:
        is_known[:] = False  # one rank draws for all of them
    errors = np.zeros(len(totals))
    errors[is_known] = np.abs(sizes[:, is_known] * len(sizes) / totals[is_known] - 1).max(axis=0)
    worst = int(errors.argmax()) if len(errors) else 0
    num_known = int(is_known.sum())
    return UnevenRun(
        run=run.name,
        where=_where(run),
        num_steps=num_steps,
        num_alone=most_steps - max(num_steps),
        num_known=num_known,
        num_uneven=int((errors > 0).sum()),
        mean_error=float(errors.sum() / num_known) if num_known else 0.0,
        worst_error=float(errors[worst]) if len(errors) else 0.0,
        worst_step=worst + 1,
        worst_sizes=tuple(int(size) for size in sizes[:, worst]) if len(errors) else (),
        loss=_loss(run),
        weighting=_weighting(run, sizes, errors),
        reference=_reference(run, errors),
    )


def _last_step(run: Run) -> int:
    """Of the last pass that all ranks made; where one left that pass before its end and went no
    further, its last."""
    passes = {rank.rank: _training_passes(rank) for rank in run.ranks}
    num_passes = min((len(of_rank) for of_rank in passes.values() if of_rank), default=0)
    last_steps: list[int] = []
    left_at: list[int] = []
    for rank in run.ranks:
        of_rank, num_steps = passes[rank.rank], len(rank.observed_steps)
        if len(of_rank) > num_passes:
            num_steps = min(num_steps, of_rank[num_passes].first_step)
        elif of_rank and not of_rank[-1].is_whole:
            left_at.append(num_steps)
        last_steps.append(num_steps)
    return min([max(last_steps), *left_at])


def _training_passes(rank: Rank) -> list[PassRecord]:
    """That took anything, in the order in which they began."""
    passes = [one for one in rank.of(PassRecord) if one.use == "training" and one.num_batches]
    return sorted(passes, key=lambda one: one.first_step)


def _where(run: Run) -> str:
    """The loader that trains first, on the lowest rank that has one."""
    for rank in run.ranks:
        trains = {one.loader for one in rank.of(PassRecord) if one.use == "training"}
        for loader in rank.of(LoaderRecord):
            if loader.loader in trains:
                return loader_words(loader.where)
    return loader_words("")


def _loss(run: Run) -> Literal["mean", "sum", "unknown"]:
    probes = [probe for rank in run.ranks for probe in rank.of(ProbeRecord)]
    reductions = {probe.loss_reduction for probe in probes}
    return probes[0].loss_reduction if len(reductions) == 1 else "unknown"


def _weighting(
    run: Run, sizes: NDArray[np.int64], errors: NDArray[np.float64]
) -> Literal["equal", "by-samples", "other", "unknown"]:
    """What the gradients of the most uneven probed step were weighted by."""
    if not any(_is_uneven(errors, probe.step) for r in run.ranks for probe in r.of(ProbeRecord)):
        return "unknown"
    probes = [probe for probe in step_probes(run) if _is_uneven(errors, probe.step)]
    if not probes:
        return "unknown"
    probe = max(probes, key=lambda probe: float(errors[probe.step - 1]))
    samples = sizes[:, probe.step - 1] / sizes[:, probe.step - 1].sum()
    alike = np.full(len(samples), 1 / len(samples))
    weights = fit_weights(probe)
    if not weights.is_determined or _is_near(samples, alike, _TOLD_APART):
        return "unknown"
    sums = weights.weights.sum(axis=1, keepdims=True)
    if (sums == 0).any():
        return "other"
    shares = weights.weights / sums  # whatever was clipped or scaled
    if _is_near(shares, samples, _SAME_WEIGHT):
        return "by-samples"
    return "equal" if _is_near(shares, alike, _SAME_WEIGHT) else "other"


def _reference(run: Run, errors: NDArray[np.float64]) -> Literal["agrees", "differs", "unknown"]:
    """How the ranks counted at uneven steps, beside one device with the same items."""
    uneven = [step for step in compared_steps(run) if _is_uneven(errors, step.step)]
    relations = {relation_of(step, _SAME_WEIGHT) for step in uneven}
    if Relation.MISWEIGHTED in relations:
        return "differs"
    return "agrees" if relations & TOLD else "unknown"


def _is_uneven(errors: NDArray[np.float64], step: int) -> bool:
    return 1 <= step <= len(errors) and bool(errors[step - 1] > 0)


def _is_near(shares: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> bool:
    return bool(np.abs(shares - expected).max() <= tolerance)
