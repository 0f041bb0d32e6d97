"""The check ``non-finite``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN
from scaleproof.checks.script_signs import first_signs, num_known_losses
from scaleproof.checks.wording import counted
from scaleproof.evidence.observations import SnapshotRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study


@final
class FirstNonFinite(msgspec.Struct, frozen=True, kw_only=True):
    """The first sign of a NaN or an infinity in a run.

    ``epoch`` and ``step`` count from 0; ``step`` is None for what has no step. ``num_steps``:
    steps of this rank whose loss is not finite.
    """

    run: str
    rank: int
    what: str
    epoch: int
    step: int | None
    num_steps: int


@final
class NonFiniteMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per run that has any; ``num_losses`` counts the finite and the other, of a script
    those that are known; ``num_snapshots`` the records of a script's state."""

    num_candidate_runs: int
    num_losses: int
    num_snapshots: int
    candidate: tuple[FirstNonFinite, ...]
    baseline_arm: str | None
    num_baseline_runs: int
    baseline: tuple[FirstNonFinite, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NonFinite(AbstractCheck[NonFiniteMeasurement]):
    """A loss or a weight became NaN or infinite.

    What it looks for
        Training losses, evaluation losses, and norms of parameters, buffers and optimizer state
        that are NaN or infinite, and ranks that stopped because of one.

    Why it matters
        Once a weight is NaN, nothing is learned any more. On N devices one rank's NaN reaches all
        others with the next all-reduce, and a larger learning rate or a lower precision of the
        reduction makes it more likely than on one device.

    How it decides
        Exactly: any such value in a usable run of the candidate fails. It names the run, the
        rank, the epoch and the step of the first one (of the ranks that have it in the same epoch,
        the one with the earliest step). When the baseline has it too, N devices did not cause it;
        when only the baseline has it, the baseline is no measure: undecided.

        Of a script, an unknown loss looks like NaN. It counts as NaN when it was finite before,
        never is again, and training did not end with finite weights; an infinite one always
        does, but under a loss scaler. So do trained parameters, whatever else was finite once
        (attention masks hold infinities by design), and a reported loss.

    What it can't see
        Gradients that a loss scaler found infinite and skipped: that is its job. Values that were
        NaN between two records and became finite again.

    How to fix it
        Lower the learning rate for N devices or lengthen its warm-up, clip gradients, train in fp32
        to see whether bf16 or fp16 is the cause, and look at the batch of the step named: an
        empty shard, a division by a count that may be zero, the logarithm of zero.

    References
        Goyal et al. (2017), Accurate, large minibatch SGD, arXiv 1706.02677 (warm-up).
    """

    name: ClassVar[str] = "non-finite"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN,)

    def measure(self, study: Study) -> NonFiniteMeasurement:
        candidate = study.runs_of(study.candidate)
        baseline = study.runs_of(study.baseline) if study.baseline is not None else ()
        ranks = [rank for run in candidate for rank in run.ranks]
        return NonFiniteMeasurement(
            num_candidate_runs=len(candidate),
            num_losses=sum(_num_losses(rank, is_script=study.is_script) for rank in ranks),
            num_snapshots=sum(len(rank.of(SnapshotRecord)) for rank in ranks),
            candidate=tuple(_first_of_runs(candidate, is_script=study.is_script)),
            baseline_arm=None if study.baseline is None else study.baseline.name,
            num_baseline_runs=len(baseline),
            baseline=tuple(_first_of_runs(baseline, is_script=study.is_script)),
        )

    def judge(self, measurement: NonFiniteMeasurement) -> Judgement:
        remedy = (
            "Lower the learning rate or lengthen its warm-up, try fp32, and look at the batch of "
            "the step named."
        )
        if measurement.candidate:
            sentence = _sentence(measurement.candidate, measurement.num_candidate_runs)
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{sentence}{_also_in_baseline(measurement)}.",
                remedy=remedy,
            )
        if measurement.num_losses == 0 and measurement.num_snapshots == 0:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No training loss was recorded.",
                remedy="Run the study again to its end.",
            )
        if measurement.baseline:
            sentence = _sentence(measurement.baseline, measurement.num_baseline_runs)
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"The baseline is no measure: {sentence}.",
                remedy=f"{remedy} Then compare again.",
            )
        if measurement.num_losses == 0:
            sentence = "All norms of the training state are finite; the losses are not known."
        else:
            sentence = (
                f"The loss of all {counted(measurement.num_losses, 'training step')}, all "
                "evaluation losses and all norms are finite."
            )
        return Judgement(outcome=Outcome.PASS, sentence=sentence)


def _num_losses(rank: Rank, *, is_script: bool) -> int:
    return num_known_losses(rank) if is_script else sum(e.num_steps for e in rank.epochs)


def _first_of_runs(runs: tuple[Run, ...], *, is_script: bool) -> Iterator[FirstNonFinite]:
    signs = _script_signs if is_script else _signs
    for run in runs:
        found = [first for rank in run.ranks for first in signs(run, rank)]
        if found:
            yield min(found, key=_time)


def _script_signs(run: Run, rank: Rank) -> Iterator[FirstNonFinite]:
    """The same for a rank of a script, in the epochs of its steps."""
    epochs = rank.observed_steps["epoch"]
    for sign in first_signs(rank):
        epoch, step = -1, None
        if 0 < sign.steps_done <= len(epochs):
            epoch = int(epochs[sign.steps_done - 1])
            step = sign.steps_done - 1 - int(np.argmax(epochs == epoch))
        yield FirstNonFinite(
            run=run.name,
            rank=rank.rank,
            what=sign.what,
            epoch=epoch,
            step=step,
            num_steps=sign.num_steps,
        )
    if rank.outcome is not None and rank.outcome.status == "diverged":
        yield FirstNonFinite(
            run=run.name,
            rank=rank.rank,
            what=_STOPPED_THERE,
            epoch=rank.outcome.epoch,
            step=None,
            num_steps=0,
        )


_STOPPED_THERE = "a loss or score (the rank stopped there)"


def _signs(run: Run, rank: Rank) -> Iterator[FirstNonFinite]:
    """The first sign of each kind in one rank's evidence."""

    def sign(what: str, epoch: int, step: int | None = None, num_steps: int = 0) -> FirstNonFinite:
        return FirstNonFinite(
            run=run.name, rank=rank.rank, what=what, epoch=epoch, step=step, num_steps=num_steps
        )

    losses = [(e.epoch, np.flatnonzero(~np.isfinite(rank.steps(e)["loss"]))) for e in rank.epochs]
    wrong = [(epoch, steps) for epoch, steps in losses if len(steps)]
    if wrong:
        epoch, steps = wrong[0]
        num_steps = sum(len(steps) for _, steps in wrong)
        yield sign("the training loss", epoch, int(steps[0]), num_steps)
    for evaluation in rank.evaluations:
        if not np.isfinite(rank.evaluation_table(evaluation)["loss"]).all():
            yield sign("an evaluation loss", evaluation.epochs_done - 1)
            break
    for state in rank.states:
        tensor = next((tensor for tensor in state.tensors if tensor.norm is None), None)
        if tensor is not None:
            yield sign(f"{tensor.kind} {tensor.name!r}", state.epochs_done - 1)
            break
    if rank.outcome is not None and rank.outcome.status == "diverged":
        yield sign(_STOPPED_THERE, rank.outcome.epoch)


def _time(found: FirstNonFinite) -> tuple[int, float, int]:
    """A step lies before what is recorded at the end of its epoch."""
    return found.epoch, float("inf") if found.step is None else found.step, found.rank


def _sentence(found: tuple[FirstNonFinite, ...], num_runs: int) -> str:
    first = min(found, key=_time)
    if first.epoch < 0:
        when = "before training"
    elif first.step is None:
        when = f"at the end of epoch {first.epoch + 1}"
    else:
        when = f"in epoch {first.epoch + 1}, step {first.step + 1}"
    runs = f" ({len(found)} of {counted(num_runs, 'run')})" if num_runs > 1 else ""
    return f"{first.run}, rank {first.rank}: {first.what} is not finite {when}{runs}"


def _also_in_baseline(measurement: NonFiniteMeasurement) -> str:
    if measurement.baseline_arm is None or measurement.num_baseline_runs == 0:
        return ""
    if not measurement.baseline:
        return f"; {measurement.baseline_arm} has none"
    first = min(measurement.baseline, key=_time)
    return (
        f"; {measurement.baseline_arm} has it too (epoch {max(0, first.epoch) + 1}), so the number "
        "of devices is not what caused it"
    )
