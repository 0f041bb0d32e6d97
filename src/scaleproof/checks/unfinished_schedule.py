"""The check ``unfinished-schedule``."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, STEPS
from scaleproof.checks.wording import percent
from scaleproof.evidence.observations import EndRecord, LoaderRecord, PassRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.schedules import ScheduleRecord
from scaleproof.evidence.study import Run, Study

SCHEDULES = Need(
    text="a learning-rate scheduler of torch, stepped by the script",
    kind="structure",
    is_met=lambda study: any(
        rank.of(ScheduleRecord) for run in study.runs_of(study.candidate) for rank in run.ranks
    ),
)

_IDLE = 1e-9
"""Of the highest learning rate: what is left of none by rounding."""
_EVERY_STEP = 0.9
"""Share of the optimizer's steps from which on a schedule goes by steps, not by epochs."""
_MAX_ROUNDING = 0.25
"""Share of a plan that the ends of short epochs may take: batches are rounded up on each rank."""


@final
class ScheduleEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that says when it is over, at the end of the run, on the run's first rank.

    ``num_done`` of ``num_planned`` calls were made, ``calls_per_moment`` at a time.
    ``factor_over``: the steps of training for each step until it was over; None: it never was.
    ``num_backwards``: of most steps. ``num_epochs`` were begun. ``is_split``: each rank is fed a
    part of the data; None when no loader says. ``is_idle_after``: it left a rate of 0 for all of
    the steps that came after it was over. ``is_left_early``: the script broke off its last pass
    over the data. ``baseline_share``: of its plan that the same schedule did in training on one
    device; None without one.
    """

    run: str
    kind: str
    where: str
    plan_source: str
    num_planned: int
    num_done: int
    calls_per_moment: float
    is_every_step: bool
    is_decaying: bool
    factor_over: float | None
    num_ranks: int
    num_backwards: int
    num_epochs: int
    is_split: bool | None
    is_left_early: bool
    is_idle_after: bool
    baseline_share: float | None

    @property
    def share(self) -> float:
        return self.num_done / self.num_planned


@final
class ScheduleMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_schedules``: with those that don't say when they are over. ``is_cut``: the run was
    ended after a given number of steps."""

    num_schedules: int
    is_cut: bool
    ends: tuple[ScheduleEnd, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedSchedule(AbstractCheck[ScheduleMeasurement]):
    """When training ends, the learning-rate schedule is at 1/N of its plan, or was over at 1/N.

    What it looks for
        Schedulers that say how many steps they are for - `T_max`, `total_steps`, `total_iters`,
        `num_training_steps` - and that have done 1/N of them when training on N ranks is over, or
        that were over after 1/N of it.

    Why it matters
        A length that was computed from the loader before it was split over N ranks is N times too
        long: the rate never gets small, and the model ends unfinished. A scheduler that is stepped
        once for every process is over N times too early: the rest is trained with a rate of zero
        or, with a cosine, with one that comes up again.

    How it decides
        In a run that came to its own end: the calls of `step()`, against the plan. Within
        `tolerance` of it, a schedule is sound. It fails where a schedule that goes by optimizer
        steps did 1/N of its plan, or 1/A with A backwards to a step, or 1/(N A), up to `tolerance`
        and rounding; and where one that lowers the rate was over N (or A) times too early because
        it was stepped so many times at each optimizer step, or where its plan is so many times too
        short and all steps after it were made at a rate of 0. Other shares are no fault: training
        may end early, and a plan may be longer on purpose; so may one that ends with the same share
        of its plan on one device.

    What it can't see
        A run that was ended from outside (`--steps`): not applicable. Schedules without an end
        (`StepLR`, warm restarts), those of epochs, functions that hide their length. A plan that
        is N times too long on purpose: name the check in the profile's `advisory` list then.

    How to fix it
        Compute the length from the loader that each rank iterates, divided by the microbatches of a
        step: `epochs * len(loader) // accumulation_steps`. Accelerate steps a prepared scheduler
        once per process: there compute it from the loader before `prepare`, or don't prepare it.

    References
        huggingface/accelerate#2142, #1398, huggingface/diffusers PR#8312, huggingface/transformers
        PR#24088.
    """

    name: ClassVar[str] = "unfinished-schedule"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.SCHEDULE
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, STEPS, SCHEDULES)
    consequence_of: ClassVar[tuple[str, ...]] = ("schedule-drift", "unrestored-state")

    tolerance: float = 0.1

    def measure(self, study: Study) -> ScheduleMeasurement:
        runs = study.runs_of(study.candidate)
        cut = study.request.check.num_steps if study.request.check is not None else 0
        baselines = {pair.seed: pair.baseline for pair in study.pairs}
        return ScheduleMeasurement(
            num_schedules=sum(len(run.ranks[0].of(ScheduleRecord)) for run in runs),
            is_cut=cut > 0 and any(_num_steps(run.ranks[0]) >= cut for run in runs),
            ends=tuple(end for run in runs for end in _ends(run, baselines.get(run.seed))),
        )

    def judge(self, measurement: ScheduleMeasurement) -> Judgement:
        if measurement.is_cut or not measurement.ends:
            why = "No scheduler says when it is over."
            if measurement.is_cut:
                why = "The run was ended before its own end, as was asked: no schedule's end shows."
            return Judgement(outcome=Outcome.NOT_APPLICABLE, sentence=why)
        for end in measurement.ends:
            found = self._judge_slow(end) or self._judge_fast(end) or self._judge_short(end)
            if found is not None:
                return found
        odd = [end for end in measurement.ends if not self._is_as_planned(end)]
        if odd:
            end = odd[0]
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{_name(end)} made {end.num_done:,} of {end.num_planned:,} planned steps "
                f"({end.plan_source}), which is no matter of ranks.",
            )
        end = measurement.ends[0]
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"{_name(end)} came to its end with training: {end.num_done:,} of "
            f"{end.num_planned:,} steps ({end.plan_source}).",
        )

    def _is_as_planned(self, end: ScheduleEnd) -> bool:
        is_late_enough = end.factor_over is None or end.factor_over <= 1 + self.tolerance
        return abs(end.share - 1) <= self.tolerance and is_late_enough

    def _judge_slow(self, end: ScheduleEnd) -> Judgement | None:
        if end.share >= 1 - self.tolerance or not end.is_every_step:
            return None
        if end.baseline_share is not None and self._is_near(end.share, end.baseline_share):
            return None
        for factor, why in _reasons(end):
            rounding = min(factor * end.num_epochs / end.num_planned, _MAX_ROUNDING)
            if abs(end.share * factor - 1) > self.tolerance + rounding:
                continue
            sentence = (
                f"{_name(end)} was made for {end.num_planned:,} steps ({end.plan_source}), and "
                f"made {end.num_done:,} of them when training was over: {percent(end.share, 0)}, "
                f"as if {why}."
            )
            if end.is_left_early:
                return Judgement(
                    outcome=Outcome.UNDECIDED,
                    sentence=f"{sentence} The script left its last epoch early.",
                    remedy="Let the script train to its own end.",
                )
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=sentence,
                remedy="Compute the schedule's length from the loader as each rank iterates it, "
                "divided by the backwards of a step.",
            )
        return None

    def _judge_fast(self, end: ScheduleEnd) -> Judgement | None:
        factor = end.factor_over
        if factor is None or factor <= 1 + self.tolerance or not end.is_decaying:
            return None
        names = {end.num_backwards: "at every backward", end.num_ranks: "once for each rank"}
        if end.num_ranks == end.num_backwards:
            names[end.num_ranks] += ", or at every backward"
        for number, how in names.items():
            if number < 2 or not self._is_near(factor, number):
                continue
            if not self._is_near(end.calls_per_moment, number):
                continue
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{_name(end)}, made for {end.num_planned:,} steps ({end.plan_source}), "
                f"was over after {percent(1 / factor, 0)} of training: it is stepped {number} "
                f"times at each optimizer step, {how}.",
                remedy="Step the scheduler once per optimizer step, or make it for as many steps "
                "as it is given (accelerate steps a prepared one once per process).",
            )
        return None

    def _judge_short(self, end: ScheduleEnd) -> Judgement | None:
        factor = end.factor_over
        if factor is None or not end.is_idle_after or not end.is_every_step:
            return None
        if end.baseline_share is not None and self._is_near(end.share, end.baseline_share):
            return None
        rounding = min(end.num_epochs * factor / end.num_planned, _MAX_ROUNDING)
        numbers = {end.num_ranks, end.num_backwards, end.num_ranks * end.num_backwards} - {1}
        near = [n for n in sorted(numbers) if abs(factor / n - 1) <= self.tolerance + rounding]
        if not near:
            return None
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{_name(end)}, made for {end.num_planned:,} steps ({end.plan_source}), was "
            f"over after {percent(1 / factor, 0)} of training, and all steps after that were made "
            f"at a rate of 0: as if its length were divided by {near[0]} once too often.",
            remedy="Compute the schedule's length from the loader as each rank iterates it: what a "
            "distributed sampler or prepare() divided already is not to be divided again.",
        )

    def _is_near(self, value: float, expected: float) -> bool:
        return abs(value - expected) <= self.tolerance * abs(expected)


def _reasons(end: ScheduleEnd) -> Iterator[tuple[int, str]]:
    ranks, backwards = end.num_ranks, end.num_backwards
    split = f"it were computed before the data was split over {ranks} ranks"
    batches = f"it were computed in batches, {backwards} of which make a step"
    if ranks > 1 and end.is_split is not False:
        yield ranks, split
        if backwards > 1:
            yield ranks * backwards, f"{split}, and in batches, {backwards} of which make a step"
    if backwards > 1:
        yield backwards, batches


def _name(end: ScheduleEnd) -> str:
    return f"{end.run}: the {end.kind}{f' of {end.where}' if end.where else ''}"


def _num_steps(rank: Rank) -> int:
    return max((record.steps_done for record in rank.of(EndRecord)), default=0)


def _ends(run: Run, baseline: Run | None) -> Iterator[ScheduleEnd]:
    """Of the first rank: that ranks differ is for another check to say."""
    rank = run.ranks[0]
    theirs = () if baseline is None else baseline.ranks[0].of(ScheduleRecord)
    table = rank.observed_steps
    for record in rank.of(ScheduleRecord):
        if record.num_planned is None or record.num_planned < 2 or not record.num_optimizer_steps:
            continue
        rows = table[table["optimizer"] == record.optimizer] if record.optimizer >= 0 else table
        backwards = Counter(int(number) for number in rows["num_backwards"])
        twin = next((one for one in theirs if one.schedule == record.schedule), None)
        yield ScheduleEnd(
            run=run.name,
            kind=record.kind,
            where=record.where,
            plan_source=record.plan_source,
            num_planned=record.num_planned,
            num_done=record.num_done,
            calls_per_moment=record.num_calls / max(record.num_moments, 1),
            is_every_step=record.num_moments >= _EVERY_STEP * record.num_optimizer_steps,
            is_decaying=record.is_decaying,
            factor_over=_factor_over(record),
            num_ranks=len(run.ranks),
            num_backwards=backwards.most_common(1)[0][0] if backwards else 1,
            num_epochs=max((end.epochs_begun for end in rank.of(EndRecord)), default=1),
            is_split=_is_split(run),
            is_left_early=_is_left_early(rank),
            is_idle_after=_is_idle_after(record, rows["learning_rate"]),
            baseline_share=(
                twin.num_done / twin.num_planned if twin is not None and twin.num_planned else None
            ),
        )


def _is_idle_after(record: ScheduleRecord, rates: NDArray[np.float32]) -> bool:
    if record.over_at_step is None or not 0 < record.over_at_step < len(rates):
        return False
    return bool((np.abs(rates[record.over_at_step :]) <= _IDLE * np.abs(rates).max()).all())


def _factor_over(record: ScheduleRecord) -> float | None:
    """A resumed run's own steps are not all of training."""
    is_resumed = record.num_done > record.num_calls
    if record.over_at_step is None or record.over_at_step < 1 or is_resumed:
        return None
    return record.num_optimizer_steps / record.over_at_step


def _training_passes(rank: Rank) -> Sequence[PassRecord]:
    return [record for record in rank.of(PassRecord) if record.use == "training"]


def _is_left_early(rank: Rank) -> bool:
    passes = _training_passes(rank)
    return bool(passes) and not passes[-1].is_whole


def _is_split(run: Run) -> bool | None:
    """Whether a whole pass hands a rank less than the loader's data set."""
    items = {record.loader: record.num_items for record in run.ranks[0].of(LoaderRecord)}
    whole = [one for one in _training_passes(run.ranks[0]) if one.is_whole]
    known = [(one.num_fed, items.get(one.loader, -1)) for one in whole]
    fed = [num_fed / num_items for num_fed, num_items in known if num_items > 0]
    return min(fed) < 0.9 if fed else None
