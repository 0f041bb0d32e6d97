"""The check ``early-stop-differs``."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import EndRecord, PassRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study


@final
class RankEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How far a rank came. ``num_batches``: of its training passes; None when it left one before
    its end, so that the loader's length does not explain its steps."""

    rank: int
    num_steps: int
    num_epochs: int
    num_skipped: int
    num_passes: int
    num_batches: int | None


@final
class RunEnds(msgspec.Struct, frozen=True, kw_only=True):
    """``silent``: ranks that left no record of their end."""

    run: str
    ends: tuple[RankEnd, ...]
    silent: tuple[int, ...]


@final
class EarlyStopMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    runs: tuple[RunEnds, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopDiffers(AbstractCheck[EarlyStopMeasurement]):
    """Some ranks trained for longer than others, or left out steps that others made.

    What it looks for
        Ranks that ended well, and yet made another number of optimizer steps; and ranks whose
        `GradScaler` skipped another number of steps.

    Why it matters
        A rank that decides to stop by a metric of its own stops alone. Usually the others then
        wait for it for ever; where they only evaluate or save from there on, or average by
        hand, they go on without its gradients, and no error tells. A scaler that skips a step
        on one rank only leaves that rank's weights one step behind for ever.

    How it decides
        By the counts that each rank leaves at its end: a different number of steps, or of skipped
        steps, fails. Ranks whose loaders differ in length make different numbers of steps without
        having decided anything: that is uneven-batches, and passes here. A rank without a record
        of its end (it was killed) leaves it undecided.

    What it can't see
        Ranks that stop together by a figure that is wrong on all of them; which checkpoint each
        rank takes for the best.

    How to fix it
        Decide on one rank and tell the others, `torch.distributed.broadcast` of the decision, or
        decide by a metric that was reduced over all ranks. With a `GradScaler`, look for
        infinities in gradients that were reduced, not in those of one rank.

    References
        Lightning-AI/pytorch-lightning#379, #3597, talmolab/sleap-nn#471, facebookresearch/
        fairscale#179, pytorch/pytorch#76918.
    """

    name: ClassVar[str] = "early-stop-differs"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.SCHEDULE
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS)
    consequence_of: ClassVar[tuple[str, ...]] = ("uneven-batches",)

    def measure(self, study: Study) -> EarlyStopMeasurement:
        return EarlyStopMeasurement(
            runs=tuple(_run_ends(run) for run in study.runs_of(study.candidate))
        )

    def judge(self, measurement: EarlyStopMeasurement) -> Judgement:
        for run in measurement.runs:
            if len({end.num_skipped for end in run.ends}) > 1:
                return _judge_skips(run)
            if len({end.num_steps for end in run.ends}) > 1 and not _is_by_loaders(run):
                return _judge_steps(run)
        silent = [f"{run.run}, rank {rank}" for run in measurement.runs for rank in run.silent]
        if silent:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"No record of how far it came was left by {listed(silent)}.",
                remedy="Let every rank come to its end (no os._exit, no kill), then observe the "
                "script again.",
            )
        uneven = [run for run in measurement.runs if len({e.num_steps for e in run.ends}) > 1]
        if uneven:
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{uneven[0].run}: the ranks' steps differ as their loaders' lengths "
                "do (see uneven-batches); none stopped by itself.",
            )
        first = measurement.runs[0].ends[0]
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"All ranks trained to the same end ({counted(first.num_steps, 'step')}, "
            f"{counted(first.num_epochs, 'epoch')}).",
        )


def _judge_skips(run: RunEnds) -> Judgement:
    usual, odd = _usual_and_odd(run, lambda end: end.num_skipped)
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{run.run}, rank {odd.rank}: its GradScaler skipped "
        f"{counted(odd.num_skipped, 'step')}, that of rank {usual.rank} skipped "
        f"{usual.num_skipped:,}.",
        remedy="Let the scaler look at gradients after they were reduced over the ranks, so that "
        "all ranks skip the same steps.",
    )


def _judge_steps(run: RunEnds) -> Judgement:
    usual, odd = _usual_and_odd(run, lambda end: end.num_steps)
    shorter, longer = sorted((usual, odd), key=lambda end: end.num_steps)
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{run.run}, rank {shorter.rank}: it stopped after "
        f"{counted(shorter.num_steps, 'step')} in epoch {shorter.num_epochs}, rank {longer.rank} "
        f"went on to {longer.num_steps:,} in epoch {longer.num_epochs}.",
        remedy="Decide when to stop on one rank and broadcast it, or by a metric that was reduced "
        "over all ranks.",
    )


def _usual_and_odd(run: RunEnds, count_of: Callable[[RankEnd], int]) -> tuple[RankEnd, RankEnd]:
    """A rank that counts what most do, and the one that is farthest from it."""
    (usual_count, _), *_ = Counter(count_of(end) for end in run.ends).most_common(1)
    usual = next(end for end in run.ends if count_of(end) == usual_count)
    odd = max(run.ends, key=lambda end: abs(count_of(end) - usual_count))
    return usual, odd


def _is_by_loaders(run: RunEnds) -> bool:
    """Every rank used up its loaders as often as the others did; they only differ in length."""
    if len({end.num_passes for end in run.ends}) > 1:
        return False
    for one, other in combinations(run.ends, 2):
        if one.num_batches is None or other.num_batches is None:
            return False
        longer, shorter = sorted((one, other), key=lambda end: end.num_steps, reverse=True)
        assert longer.num_batches is not None and shorter.num_batches is not None
        if longer.num_steps - shorter.num_steps > longer.num_batches - shorter.num_batches:
            return False
    return True


def _run_ends(run: Run) -> RunEnds:
    ends = {rank.rank: _rank_end(rank) for rank in run.ranks}
    return RunEnds(
        run=run.name,
        ends=tuple(end for end in ends.values() if end is not None),
        silent=tuple(number for number, end in ends.items() if end is None),
    )


def _rank_end(rank: Rank) -> RankEnd | None:
    record = next(iter(rank.of(EndRecord)), None)
    if record is None:
        return None
    passes = [this for this in rank.of(PassRecord) if this.use == "training"]
    is_whole = all(this.is_whole for this in passes)
    return RankEnd(
        rank=rank.rank,
        num_steps=record.steps_done,
        num_epochs=record.epochs_begun,
        num_skipped=record.num_skipped_steps,
        num_passes=len(passes),
        num_batches=sum(this.num_batches for this in passes) if is_whole else None,
    )
