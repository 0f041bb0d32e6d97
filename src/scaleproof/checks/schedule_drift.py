"""The check ``schedule-drift``."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.wording import counted, percent
from scaleproof.evidence.observations import OptimizerRecord, ProbeRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Pair, Run, Study

MIN_STEPS = 10
"""Fewer say nothing about the shape of a schedule."""
_NUM_POINTS = 400
_MAX_MISFIT = 0.02
"""Two schedules of one shape differ by less, on average, in shares of their peaks ..."""
_MAX_END_MISFIT = 0.05
"""... and by less where they end."""
_MIN_GAP = 0.3
"""A schedule of the wrong pace has another rate there than it should, by this share of it."""


@final
class RankDifference(msgspec.Struct, frozen=True, kw_only=True):
    """A rank whose learning rate or loss scale is not that of most ranks, from ``step`` on.

    ``step`` counts the steps of this optimizer from 1; for a loss scale, all steps.
    """

    run: str
    what: Literal["learning rate", "loss scale"]
    where: str
    rank: int
    reference_rank: int
    step: int
    value: float
    reference: float
    largest: float
    """Relative difference, at most over all steps."""
    num_different: int
    num_compared: int
    num_changes: int
    """How often this rank's value changed from one step to the next."""
    num_reference_changes: int


@final
class ShapeComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Learning rates of two arms, each over its peak, by the share of the steps done.

    Tried is that the candidate's schedule is stepped ``factor`` times ``pace``. ``gap``: how far
    apart the arms are where it would end, over the larger of the two; ``misfit`` and
    ``end_misfit``: their distance once that pace is undone, on average and there.
    """

    run: str
    baseline_run: str
    where: str
    factor: float
    pace: Literal["too often", "too rarely"]
    gap: float
    misfit: float
    end_misfit: float
    num_steps: int


@final
class ScheduleDriftMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_steps``: steps whose rate was compared between ranks, over all runs."""

    num_steps: int
    ranks: tuple[RankDifference, ...]
    shapes: tuple[ShapeComparison, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDrift(AbstractCheck[ScheduleDriftMeasurement]):
    """The learning rate is not what it should be: ranks differ, or the schedule runs N times off.

    What it looks for
        Ranks that make the same step with another learning rate, or with another loss scale of
        mixed precision. Against a run on one device: a schedule that comes to its end N times too
        early, or is N times short of it at the end.

    Why it matters
        A scheduler that watches a metric of its own rank lowers the rate on one rank only. The
        gradients still agree, the weights no longer do, and no error tells. A schedule whose
        length was computed from a loader before it was split over N ranks never gets to its
        small rates; one that is stepped by every process is over after 1/N of the training.

    How it decides
        The rate of every step of every optimizer is compared between ranks, and the loss scale
        where gradients were probed: a relative difference above `tolerance` fails. Where a
        baseline was trained, the rates of both arms, each over its own peak, are compared over
        the share of the steps done. It fails when the candidate's fits the baseline's run N
        times as fast or N times as slowly (to 2 % of the peak, 5 % where that pace ends), and is
        off by more than 30 % of itself there. A schedule of another shape (a longer warm-up, say)
        is no fault, and neither is training for as many steps on N times the samples.

    What it can't see
        Without a baseline, a schedule that is wrong on all ranks alike. Rates of parameter groups
        after the first. A learning rate that was not scaled to the batch: see batch-size-unscaled.

    How to fix it
        Give `ReduceLROnPlateau` a metric that was reduced over all ranks. Compute the number of
        scheduler steps from the loader as each rank sees it, `len(loader) * epochs`; where
        accelerate steps a prepared scheduler once per process, from the loader before `prepare`.
        Use one loss scale: unscale and check gradients after they were reduced.

    References
        huggingface/accelerate#2142, #1398, huggingface/diffusers#8312, rmchurch/disruptcnn#3,
        pytorch/pytorch#136009.
    """

    name: ClassVar[str] = "schedule-drift"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.SCHEDULE
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS)
    consequence_of: ClassVar[tuple[str, ...]] = ("early-stop-differs",)

    tolerance: float = 1e-5

    def measure(self, study: Study) -> ScheduleDriftMeasurement:
        runs = study.runs_of(study.candidate)
        series = [_RunSeries(run, kind) for run in runs for kind in ("learning rate", "loss scale")]
        return ScheduleDriftMeasurement(
            num_steps=sum(one.num_compared for one in series if one.what == "learning rate"),
            ranks=tuple(found for one in series for found in one.differences()),
            shapes=tuple(shape for pair in study.pairs for shape in _shapes(pair)),
        )

    def judge(self, measurement: ScheduleDriftMeasurement) -> Judgement:
        differing = [found for found in measurement.ranks if found.largest > self.tolerance]
        if differing:
            return _judge_ranks(differing[0])
        wrong = [shape for shape in measurement.shapes if _has_wrong_pace(shape)]
        if wrong:
            return _judge_pace(wrong[0])
        if measurement.num_steps == 0:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No two ranks made a step of the same optimizer.",
                remedy="Observe the script for a few steps.",
            )
        steps = counted(measurement.num_steps, "step")
        against = " and the schedule keeps the pace of the baseline's" if measurement.shapes else ""
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"All ranks had the same learning rate in each of {steps}{against}.",
        )


def _judge_ranks(found: RankDifference) -> Judgement:
    where = f" of the optimizer at {found.where}" if found.where else ""
    changes = ""
    if found.num_changes != found.num_reference_changes:
        changes = (
            f"; it changed {counted(found.num_changes, 'time')} there and "
            f"{counted(found.num_reference_changes, 'time')} here"
        )
    is_rate = found.what == "learning rate"
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{found.run}, rank {found.rank}, step {found.step:,}: the "
        f"{found.what}{where} is {found.value:.4g}, on rank {found.reference_rank} it is "
        f"{found.reference:.4g} "
        f"({found.num_different:,} of {counted(found.num_compared, 'step')} differ{changes}).",
        remedy="Let every rank's scheduler see the same figures: reduce the metric over all "
        "ranks before ReduceLROnPlateau gets it."
        if is_rate
        else "Use one loss scale on all ranks: let the scaler look at gradients after they "
        "were reduced, and give every rank the same scaler settings.",
    )


def _has_wrong_pace(shape: ShapeComparison) -> bool:
    allowed = _MAX_MISFIT + 1 / shape.num_steps  # one step is as exact as it gets
    fits = shape.misfit <= allowed and shape.end_misfit <= _MAX_END_MISFIT
    return fits and shape.gap > _MIN_GAP


def _judge_pace(shape: ShapeComparison) -> Judgement:
    where = f" of the optimizer at {shape.where}" if shape.where else ""
    times = f"{shape.factor:.3g} times {shape.pace}"
    if shape.pace == "too often":
        effect = f"its end comes after {percent(1 / shape.factor, 0)} of the training"
        remedy = (
            "Step the scheduler once per update, not once per process, or compute its length from "
            "the loader before it is split over the ranks (accelerate steps once per process)."
        )
    else:
        effect = f"only {percent(1 / shape.factor, 0)} of it is over when training ends"
        remedy = (
            "Compute the scheduler's length from the loader as it is after it was split over the "
            "ranks: len(loader) * epochs."
        )
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{shape.run}: the schedule{where} is stepped {times} for that of "
        f"{shape.baseline_run}: {effect}.",
        remedy=remedy,
    )


_Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps, ascending, and a figure of each."""


@final
class _RunSeries:
    """One figure of every rank of a run, step by step, for each optimizer."""

    def __init__(self, run: Run, what: Literal["learning rate", "loss scale"]) -> None:
        self._run = run
        self.what: Literal["learning rate", "loss scale"] = what
        of_rank = _rates if what == "learning rate" else _scales
        self._by_rank = {rank.rank: of_rank(rank) for rank in run.ranks}

    @property
    def num_compared(self) -> int:
        return sum(len(steps) for _, _, steps, _ in self._shared())

    def differences(self) -> Iterator[RankDifference]:
        """One of each optimizer whose figure is not the same on all ranks."""
        for optimizer, ranks, steps, table in self._shared():
            largest = np.abs(table).max(axis=0)
            gaps = np.ptp(table, axis=0) / np.where(largest > 0, largest, 1.0)
            if not gaps.any():
                continue
            # Where it begins to matter: rounding may come before.
            first = int(np.argmax(gaps >= gaps.max() / 10))
            column: list[float] = table[:, first].tolist()
            usual, _ = Counter(column).most_common(1)[0]
            row = column.index(usual)
            odd = int(np.argmax(np.abs(table[:, first] - usual)))
            yield RankDifference(
                run=self._run.name,
                what=self.what,
                where=optimizer_place(self._run.ranks[0], optimizer),
                rank=ranks[odd],
                reference_rank=ranks[row],
                step=int(steps[first]),
                value=column[odd],
                reference=usual,
                largest=float(gaps.max()),
                num_different=int(np.count_nonzero(gaps)),
                num_compared=len(steps),
                num_changes=int(np.count_nonzero(np.diff(table[odd]))),
                num_reference_changes=int(np.count_nonzero(np.diff(table[row]))),
            )

    def _shared(
        self,
    ) -> Iterator[tuple[int, list[int], NDArray[np.int64], NDArray[np.float64]]]:
        """Of each optimizer that two ranks have: it, the ranks, the steps that all of these made,
        and the figures, shape ``(num_ranks, num_steps)``."""
        optimizers = sorted({number for series in self._by_rank.values() for number in series})
        for optimizer in optimizers:
            having = {
                rank: series[optimizer]
                for rank, series in self._by_rank.items()
                if optimizer in series
            }
            shared = reduce(np.intersect1d, (steps for steps, _ in having.values()))
            if len(having) > 1 and len(shared):
                rows = [values[np.isin(steps, shared)] for steps, values in having.values()]
                yield optimizer, list(having), shared, np.stack(rows)


def _rates(rank: Rank) -> dict[int, _Series]:
    """By optimizer: the rate of each of its steps, counted from 1."""
    table = rank.observed_steps
    numbers = table["optimizer"].astype(np.int64)
    series: dict[int, _Series] = {}
    for optimizer in range(int(numbers.max(initial=-1)) + 1):
        rates = table["learning_rate"][numbers == optimizer].astype(np.float64)
        if len(rates):
            series[optimizer] = np.arange(1, len(rates) + 1), rates
    return series


def _scales(rank: Rank) -> dict[int, _Series]:
    scales: dict[int, dict[int, float]] = {}
    for probe in rank.of(ProbeRecord):
        scales.setdefault(probe.optimizer, {})[probe.step] = probe.grad_scale
    return {
        optimizer: (np.array(sorted(by_step)), np.array([by_step[s] for s in sorted(by_step)]))
        for optimizer, by_step in scales.items()
    }


def optimizer_place(rank: Rank, optimizer: int) -> str:
    """The line of the script that made it; empty when unknown."""
    records = rank.of(OptimizerRecord)
    return next((record.where for record in records if record.optimizer == optimizer), "")


def _shapes(pair: Pair) -> Iterator[ShapeComparison]:
    factor = len(pair.candidate.ranks) / len(pair.baseline.ranks)
    if factor <= 1:
        return
    baselines, candidates = _rates(pair.baseline.ranks[0]), _rates(pair.candidate.ranks[0])
    for optimizer in sorted(baselines.keys() & candidates.keys()):
        ours, theirs = candidates[optimizer][1], baselines[optimizer][1]
        num_steps = min(len(ours), len(theirs))
        if num_steps < MIN_STEPS or not (ours.max() > 0 and theirs.max() > 0):
            continue
        ours, theirs = ours / ours.max(), theirs / theirs.max()
        paces: tuple[tuple[Literal["too often", "too rarely"], float], ...] = (
            ("too often", factor),
            ("too rarely", 1 / factor),
        )
        for words, pace in paces:
            end = min(1.0, 1 / pace) - 0.5 / len(ours)  # the middle of the last step before it
            our_end, their_end = _at(ours, end), _at(theirs, end)
            largest = max(our_end, their_end)
            yield ShapeComparison(
                run=pair.candidate.name,
                baseline_run=pair.baseline.name,
                where=optimizer_place(pair.candidate.ranks[0], optimizer),
                factor=factor,
                pace=words,
                gap=abs(our_end - their_end) / largest if largest > 0 else 0.0,
                misfit=_misfit(ours, theirs, pace),
                end_misfit=abs(our_end - _at(theirs, pace * end)),
                num_steps=num_steps,
            )


def _at(rates: NDArray[np.float64], share: float) -> float:
    """The rate after a share of the steps."""
    return float(rates[min(int(share * len(rates)), len(rates) - 1)])


def _misfit(ours: NDArray[np.float64], theirs: NDArray[np.float64], pace: float) -> float:
    """Mean distance of our rates from theirs run ``pace`` times as fast, as long as that lasts."""
    shares = (np.arange(_NUM_POINTS) + 0.5) / _NUM_POINTS * min(1.0, 1 / pace)
    distances = [abs(_at(ours, share) - _at(theirs, pace * share)) for share in shares.tolist()]
    return float(np.mean(distances))
