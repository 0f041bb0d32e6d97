"""The check ``resume-repeats-samples``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, TRAINING_LOADER
from scaleproof.checks.passes import RankPass, SharedLoader, shared_loaders
from scaleproof.checks.wording import counted, short_percent
from scaleproof.evidence.observations import ResumeRecord
from scaleproof.evidence.study import Run, Study

RESUMED = Need(
    text="a script that resumes: loading an optimizer's or scheduler's state",
    kind="structure",
    is_met=lambda study: any(
        rank.of(ResumeRecord) for run in study.runs_of(study.candidate) for rank in run.ranks
    ),
)


@final
class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """How one rank went on after it had loaded an optimizer's state.

    ``steps_before``: steps that the state counts, None when it does not say.
    ``steps_per_pass``: of this optimizer, None when no pass shows; ``first_steps``: those of the
    first pass after the resume, None when it was broken off. ``is_fixed_order``: the sampler does
    not shuffle, or ignores its epoch.
    """

    run: str
    rank: int
    where: str
    steps_before: int | None
    steps_per_pass: int | None
    first_steps: int | None
    sampler_epoch: int | None
    is_fixed_order: bool
    is_epoch_advancing: bool
    """A later pass has another sampler epoch: the script does call ``set_epoch``."""

    @property
    def epochs_before(self) -> int | None:
        if self.steps_before is None or not self.steps_per_pass:
            return None
        return self.steps_before // self.steps_per_pass

    @property
    def steps_into_epoch(self) -> int | None:
        if self.steps_before is None or not self.steps_per_pass:
            return None
        return self.steps_before % self.steps_per_pass


@final
class ResumeMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    resumptions: tuple[Resumption, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRepeatsSamples(AbstractCheck[ResumeMeasurement]):
    """The model goes on from a checkpoint, the data starts over.

    What it looks for
        A script that loads an optimizer's state which counts steps, and then feeds the epochs from
        the first one on, or starts a whole epoch although the checkpoint was made in the middle of
        one: that one over again, or the next, without the rest of it.

    Why it matters
        A run that is resumed often (preemption) sees the first samples of an epoch again and again
        and the last ones never; with the sampler back at epoch 0, the orders of the first epochs
        repeat. The loss looks fine, a little too good.

    How it decides
        From the steps the state counts and the steps of a whole pass: so many epochs are done, and
        so many steps of the next one. It fails when the sampler's `epoch` at the first pass after
        the resume is 0, or more than one behind, although one or more epochs are done and the
        sampler shuffles by it; and when the state is from the middle of an epoch - more than
        `max_share` of it from either end - and the first pass makes a whole epoch's steps. The
        sampler's `epoch` says which: that of the epochs done, counted from 0, is the same epoch
        again; the next may be the next epoch, whose predecessor lacks its end, or the same one
        counted from 1; a later one leaves out the rest for sure. Reading on, leaving out what was
        fed, is sound, and so is going back to an earlier state of the same process.

    What it can't see
        States that count no steps (SGD): not applicable. Orders of samplers without an epoch. A
        checkpoint made with another batch size or another number of ranks, whose epochs have
        other lengths: name the check in the profile's `advisory` list then. Whether the random
        generators were restored.

    How to fix it
        Save the epoch and the position in it; `sampler.set_epoch(epoch)` before the first pass, and
        leave out the batches that were fed: `accelerator.skip_first_batches`, or
        `torchdata.stateful_dataloader`.

    References
        pytorch/pytorch#36650, huggingface/accelerate#2016 (resuming within an epoch),
        verl-project/verl#7401.
    """

    name: ClassVar[str] = "resume-repeats-samples"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, RESUMED, TRAINING_LOADER)
    consequence_of: ClassVar[tuple[str, ...]] = ("same-order-every-epoch",)

    max_share: float = 0.01

    def measure(self, study: Study) -> ResumeMeasurement:
        return ResumeMeasurement(
            resumptions=tuple(
                one for run in study.runs_of(study.candidate) for one in _resumptions(run)
            )
        )

    def judge(self, measurement: ResumeMeasurement) -> Judgement:
        counting = [one for one in measurement.resumptions if one.steps_before]
        if not counting:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="The state that was loaded counts no steps: nothing says how far training "
                "had come.",
            )
        for is_fault, words, remedy in (
            (_is_order_repeated, _order_sentence, "Call sampler.set_epoch(epoch) with the epoch "
             "to go on with before the first pass after the resume."),
            (self._is_whole_epoch_fed, _restart_sentence, "Go on in the epoch that was begun, and "
             "leave out the batches that were fed before the checkpoint "
             "(accelerator.skip_first_batches), or save at the ends of epochs."),
        ):  # fmt: skip
            faults = [one for one in counting if is_fault(one)]
            if faults:
                others = counted(len(faults) - 1, "other rank")
                more = f"; the same on {others} over all runs" if len(faults) > 1 else ""
                return Judgement(
                    outcome=Outcome.FAIL, sentence=f"{words(faults[0])}{more}.", remedy=remedy
                )
        unclear = next((one for one in counting if self._is_unclear(one)), None)
        if unclear is not None:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{unclear.run}, rank {unclear.rank}: the state counts "
                f"{counted(unclear.steps_before or 0, 'step')}, and no whole pass over "
                f"{unclear.where} shows where in an epoch that is, or how many steps it went on.",
                remedy="Observe the resumed run to the end of an epoch.",
            )
        first = counting[0]
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"{first.run}: after {counted(first.steps_before or 0, 'step')} the data went "
            f"on where it was ({counted(len(counting), 'rank')} over all runs).",
        )

    def _is_whole_epoch_fed(self, one: Resumption) -> bool:
        steps = one.steps_per_pass
        return bool(steps) and self._is_inside_epoch(one) and one.first_steps == steps

    def _is_inside_epoch(self, one: Resumption) -> bool:
        into, steps = one.steps_into_epoch, one.steps_per_pass
        if not into or not steps:
            return False
        return min(into, steps - into) > self.max_share * steps

    def _is_unclear(self, one: Resumption) -> bool:
        if one.steps_per_pass is None:
            return True
        return one.first_steps is None and self._is_inside_epoch(one)


def _is_order_repeated(one: Resumption) -> bool:
    epochs, epoch = one.epochs_before, one.sampler_epoch
    if epoch is None or not epochs or one.is_fixed_order:
        return False
    return epoch == 0 or epoch < epochs - 1


def _order_sentence(one: Resumption) -> str:
    again = "" if one.is_epoch_advancing else ", and stays there"
    return (
        f"{one.run}, rank {one.rank}: the state counts {counted(one.steps_before or 0, 'step')}, "
        f"which are {counted(one.epochs_before or 0, 'whole epoch')} of {one.steps_per_pass} "
        f"steps, but the sampler of {one.where} goes on with epoch {one.sampler_epoch}{again}: "
        "orders that were fed before come again"
    )


def _restart_sentence(one: Resumption) -> str:
    into, steps = one.steps_into_epoch or 0, one.steps_per_pass or 1
    fed, rest = short_percent(into / steps), short_percent(1 - into / steps)
    num_ahead = _num_epochs_ahead(one)
    if num_ahead == 0:
        what = f"made all {steps} steps: {fed} of the epoch was fed twice"
    else:
        what = f"made all {steps} steps of the sampler's epoch {one.sampler_epoch}: "
        what += f"the rest ({rest}) of the epoch that was begun was left out"
    if num_ahead == 1:
        what += f", or, if epochs are counted from 1, {fed} of it was fed twice"
    return (
        f"{one.run}, rank {one.rank}: the state counts {counted(one.steps_before or 0, 'step')}, "
        f"{into} into an epoch of {steps}, but the first pass over {one.where} {what}"
    )


def _num_epochs_ahead(one: Resumption) -> int:
    """How far the sampler's epoch is past that of the epoch that was begun, counted from 0; 0 where
    its order does not follow its epoch."""
    if one.sampler_epoch is None or one.is_fixed_order:
        return 0
    return max(0, one.sampler_epoch - (one.epochs_before or 0))


def _resumptions(run: Run) -> list[Resumption]:
    loaders = [loader for loader in shared_loaders(run) if loader.training]
    found: list[Resumption] = []
    for rank in run.ranks:
        resumes = [one for one in rank.of(ResumeRecord) if one.what == "optimizer"]
        # Loaded several times before the same step: what counts is where training goes on from.
        for steps_done in sorted({one.steps_done for one in resumes}):
            counts = [one.steps_before for one in resumes if one.steps_done == steps_done]
            steps_before = max((count for count in counts if count is not None), default=None)
            if steps_before is not None and 0 < steps_before < steps_done:
                continue  # back to an earlier state, a best one: the data rightly goes on
            found += _after(run, loaders, rank.rank, steps_done, steps_before)
    return found


def _after(
    run: Run,
    loaders: Sequence[SharedLoader],
    rank: int,
    steps_done: int,
    steps_before: int | None,
) -> list[Resumption]:
    """What the first training pass after it looks like; nothing when training did not go on."""
    passes = [
        (loader, one)
        for loader in loaders
        for shared in loader.training
        for one in shared.by_rank
        if one.rank.rank == rank and one.record.first_step >= steps_done
    ]
    if not passes:
        return []
    loader, first = min(passes, key=lambda found: found[1].record.first_step)
    later = [one for other, one in passes if other.family == loader.family and one is not first]
    everything = [
        one
        for other in loaders
        if other.family == loader.family
        for shared in other.training
        for one in shared.by_rank
        if one.rank.rank == rank
    ]
    sampler_epoch = first.record.sampler_epoch
    return [
        Resumption(
            run=run.name,
            rank=rank,
            where=loader.words,
            steps_before=steps_before,
            steps_per_pass=_steps_per_pass(everything),
            first_steps=_steps_of(first),
            sampler_epoch=sampler_epoch,
            is_fixed_order=_is_fixed_order(everything),
            is_epoch_advancing=any(one.record.sampler_epoch != sampler_epoch for one in later),
        )
    ]


def _steps_of(one: RankPass) -> int | None:
    """Steps of one optimizer in a whole pass: the one that made most."""
    if not one.record.is_whole:
        return None
    table = one.rank.observed_steps["optimizer"][one.record.first_step : one.record.last_step]
    return int(np.bincount(table[table >= 0]).max()) if (table >= 0).any() else None


def _steps_per_pass(passes: Sequence[RankPass]) -> int | None:
    """Of the longest pass, or of as many batches as its loader says it has. None for one pass
    alone and a loader that does not say: the pass may have left out what was fed before."""
    known = [(steps, one) for one in passes if (steps := _steps_of(one))]
    if not known:
        return None
    steps, longest = max(known, key=lambda found: found[0])
    num_batches = _batches_in(longest)
    if num_batches is None:
        return steps if len(known) > 1 else None
    batches_per_step = max(1, round(longest.record.num_batches / steps))
    return max(steps, num_batches // batches_per_step)


def _batches_in(one: RankPass) -> int | None:
    loader = one.loader
    num_parts = loader.shards[1] if loader.shards is not None else 1
    is_plain = loader.sampler.endswith((".RandomSampler", ".SequentialSampler"))
    if loader.num_items < 0 or loader.batch_size is None or not (loader.shards or is_plain):
        return None
    num_items = -(-loader.num_items // max(1, num_parts))
    if loader.drop_last:
        return num_items // loader.batch_size
    return -(-num_items // max(1, loader.batch_size))


def _is_fixed_order(passes: Sequence[RankPass]) -> bool:
    """In ascending order of ids, or the same order under different epochs of the sampler."""
    if any(one.is_ascending() for one in passes[:1]):
        return True
    whole = [one.record for one in passes if one.record.is_whole]
    orders, epochs = ({r.order_digest for r in whole}, {r.sampler_epoch for r in whole})
    return len(orders) == 1 and len(epochs) > 1
