"""The check ``unrestored-state``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.checkpoints import CheckpointRecord
from scaleproof.evidence.observations import ResumeRecord
from scaleproof.evidence.study import Run, Study

CHECKPOINTS = Need(
    text="a checkpoint: state that was loaded before the first step, or a file that holds some",
    kind="structure",
    is_met=lambda study: any(
        rank.of(CheckpointRecord) or rank.of(ResumeRecord)
        for run in study.runs_of(study.candidate)
        for rank in run.ranks
    ),
)

_SAME_RATE = 1e-6
"""Relative difference of learning rates that is rounding."""


@final
class RankCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    rank: int
    record: CheckpointRecord


@final
class RankRestores(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks of one run that loaded an optimizer's state before their first step, and the others."""

    run: str
    restoring: tuple[int, ...]
    others: tuple[int, ...]


@final
class UnrestoredMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    checkpoints: tuple[RankCheckpoint, ...]
    ranks: tuple[RankRestores, ...]


What = Literal["optimizer", "scheduler", "gradient scaler"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnrestoredState(AbstractCheck[UnrestoredMeasurement]):
    """Training goes on with the model of a checkpoint, but without its optimizer's state.

    What it looks for
        A file that `torch.load` read before the first step, whose model was put back into the one
        that is trained, and whose optimizer's, scheduler's or `GradScaler`'s state was not, on any
        rank.

    Why it matters
        The moments of Adam start from nothing, the warm-up begins again, the loss scale has to be
        found anew: each preemption costs a bump in the loss that looks like bad luck. Where one
        rank alone restores them, the replicas drift apart from the first step on.

    How it decides
        It fails when `min_share` or more of the trained parameters' values come from the file, the
        file holds the state of as many optimizers as there are, of as many tensors and the same
        base learning rate, and fewer were loaded; when the scheduler stands at 0 or the scaler is
        new though the file holds theirs; and when some ranks loaded an optimizer's state and others
        did not. Another base learning rate may be a new training on purpose: undecided. Reading a
        file to evaluate, taking part of a model, or a file without such state is no fault.

    What it can't see
        Files that are not read by `torch.load` (safetensors, distributed checkpoints). Values that
        were copied on their way to the model. Fine-tuning on purpose from a whole checkpoint with
        the same rate: name the check in the profile's `advisory` list then.

    How to fix it
        `optimizer.load_state_dict(saved["optimizer"])` on every rank, after the model was moved to
        its device and wrapped; likewise `scheduler` and `scaler`.

    References
        TensorAuto/OpenTau PR#180, NVIDIA-NeMo/Megatron-Bridge PR#3832. PyTorch, Saving and loading
        a general checkpoint.
    """

    name: ClassVar[str] = "unrestored-state"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.SCHEDULE
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, CHECKPOINTS)

    min_share: float = 0.99

    def measure(self, study: Study) -> UnrestoredMeasurement:
        runs = study.runs_of(study.candidate)
        return UnrestoredMeasurement(
            checkpoints=tuple(
                RankCheckpoint(run=run.name, rank=rank.rank, record=record)
                for run in runs
                for rank in run.ranks
                for record in rank.of(CheckpointRecord)
            ),
            ranks=tuple(_restores(run) for run in runs),
        )

    def judge(self, measurement: UnrestoredMeasurement) -> Judgement:
        apart = [one for one in measurement.ranks if one.restoring and one.others]
        if apart:
            return _judge_ranks(apart[0])
        resumed = [c for c in measurement.checkpoints if c.record.model_share >= self.min_share]
        lost: list[tuple[RankCheckpoint, What]] = [
            (one, what) for one in resumed for what in _lost(one.record)
        ]
        sure = [found for found in lost if _is_same_training(found[0].record)]
        if sure:
            return _judge_lost(sure)
        if lost:
            return _judge_unlike(*lost[0])
        restoring = [one for one in measurement.ranks if one.restoring]
        if restoring:
            num_ranks = sum(len(one.restoring) for one in restoring)
            sentence = f"The optimizer's state was restored on {counted(num_ranks, 'rank')}."
        elif resumed:
            sentence = f"What {_name(resumed[0].record)} holds is of another training."
        else:
            sentence = "No file with training state gave the trained model all its values."
        return Judgement(outcome=Outcome.PASS, sentence=sentence)


def _judge_ranks(found: RankRestores) -> Judgement:
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{found.run}: rank{'s' if len(found.others) > 1 else ''} "
        f"{listed(found.others, most=8)} went on without the optimizer's state, which "
        f"rank{'s' if len(found.restoring) > 1 else ''} {listed(found.restoring, most=8)} loaded.",
        remedy="Load the optimizer's state on every rank: a wrapper sends the model along, not the "
        "optimizer.",
    )


def _judge_lost(sure: Sequence[tuple[RankCheckpoint, What]]) -> Judgement:
    first = sure[0][0]
    record = first.record
    whats = list(dict.fromkeys(what for one, what in sure if one == first))
    ranks = sorted({one.rank for one, _ in sure if one.run == first.run})
    steps = max((saved.num_steps or 0 for saved in record.saved), default=0)
    of_steps = f" (of {counted(steps, 'step')})" if steps else ""
    number = ""
    if whats == ["optimizer"] and record.restored.optimizers:
        number = f" {record.held.optimizers - record.restored.optimizers} of"
        number += f" {record.held.optimizers} times"
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{first.run}, rank{'s' if len(ranks) > 1 else ''} {listed(ranks, most=8)}: "
        f"training goes on with the model of {_name(record)}, and the state of the "
        f"{listed(whats)} in it{of_steps} was not restored{number}.",
        remedy="Load what the file holds with load_state_dict, on every rank, before the first "
        "step.",
    )


def _judge_unlike(one: RankCheckpoint, what: What) -> Judgement:
    record = one.record
    rates = listed([f"{saved.learning_rate:.4g}" for saved in record.saved if saved.learning_rate])
    trained = record.trained.learning_rate
    now = "" if trained is None else f", and training has one of {trained:.4g} now"
    return Judgement(
        outcome=Outcome.UNDECIDED,
        sentence=f"{one.run}, rank {one.rank}: the model of {_name(record)} was taken, the state "
        f"of the {what} in it was not; it was of a learning rate of {rates}{now}: a new training, "
        "or one that lost its state.",
        remedy="If training is to go on from there, load the optimizer's state.",
    )


def _name(record: CheckpointRecord) -> str:
    file = repr(record.file) if record.file else "a file"
    return f"{file}{f' (read at {record.where})' if record.where else ''}"


def _lost(record: CheckpointRecord) -> Iterator[What]:
    """What the file holds for something that there is, and that was not put back; of optimizers of
    other parameters there is nothing to put back."""
    held, restored, in_use = record.held, record.restored, record.in_use
    is_of_other = bool(record.saved) and record.trained.num_tensors not in {
        saved.num_tensors for saved in record.saved
    }
    if is_of_other:
        return
    if restored.optimizers < min(held.optimizers, in_use.optimizers):
        yield "optimizer"
    if held.schedulers and in_use.schedulers and not restored.schedulers:
        yield "scheduler"
    if held.scalers and in_use.scalers and not restored.scalers:
        yield "gradient scaler"


def _is_same_training(record: CheckpointRecord) -> bool:
    """What was restored already, or the same base learning rate, says so."""
    if record.restored.optimizers:
        return True
    rates = [
        saved.learning_rate
        for saved in record.saved
        if saved.num_tensors == record.trained.num_tensors
    ]
    trained = record.trained.learning_rate
    if trained is None or None in rates or not rates:
        return True
    return any(rate and abs(rate - trained) <= _SAME_RATE * abs(rate) for rate in rates)


def _restores(run: Run) -> RankRestores:
    """A resume in the middle of training is none of this."""
    restoring = {
        rank.rank
        for rank in run.ranks
        for record in rank.of(ResumeRecord)
        if record.what == "optimizer" and record.steps_done == 0
    }
    others = tuple(rank.rank for rank in run.ranks if rank.rank not in restoring)
    return RankRestores(run=run.name, restoring=tuple(sorted(restoring)), others=others)
