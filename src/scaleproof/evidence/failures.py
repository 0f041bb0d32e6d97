"""Why a run failed, in a sentence: the first rank that failed, not the flood that followed."""

from dataclasses import dataclass
from typing import final

from scaleproof.evidence.heartbeat import Phase, read_heartbeat
from scaleproof.evidence.study import Run

KNOWN_CAUSES = (
    (
        "op.preamble.length <= op.nbytes",
        "the ranks called one collective with tensors of different sizes (gloo: received data "
        "size doesn't match). Give it the same shape and dtype on every rank: pad the smaller "
        "tensor, or gather the sizes first.",
    ),
    (
        "CUDA out of memory",
        "CUDA out of memory. Use a smaller batch_per_device, or a device with more memory.",
    ),
    (
        "DefaultCPUAllocator: can't allocate memory",
        "out of memory. Use a smaller batch_per_device, or a machine with more memory.",
    ),
    (
        "DDP expects same model across all ranks",
        "the model has other parameters on one rank than on another. Build the same model on "
        "every rank: nothing in build_model may depend on the rank.",
    ),
)
"""Texts of torch and gloo (2.13) that mean something a user can act on, and what it is."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """``sentence`` names run, rank, moment, error and what to do; ``traceback`` may be empty."""

    sentence: str
    traceback: str


def describe_failure(run: Run) -> Failure | None:
    """What the evidence says about a failed run; None when no rank left an error."""
    failure = run.first_failure
    if failure is None:
        return _last_words(run)
    rank, outcome = failure
    moment = _moment(outcome.phase, outcome.epoch, outcome.step)
    if outcome.is_lost_peer and (others := _silent_ranks(run)):
        sentence = (
            f"{run.name}: rank {rank} waited in vain in a collective for another rank {moment}. "
            f"{others} Usual causes: a branch that only some ranks take, a rank that is much "
            "slower (raise --timeout), or one that hangs in data loading."
        )
        return Failure(sentence=sentence, traceback="")
    text = f"{outcome.message}\n{outcome.traceback}"
    cause = next((cause for sign, cause in KNOWN_CAUSES if sign in text), None)
    if cause is not None:
        sentence = f"{run.name}: rank {rank} failed {moment}: {cause}"
        return Failure(sentence=sentence, traceback=outcome.traceback)
    message = (
        outcome.message if outcome.message.endswith((".", "!", "?")) else f"{outcome.message}."
    )
    sentence = f"{run.name}: rank {rank} failed {moment}: {outcome.error_type}: {message}"
    return Failure(sentence=sentence, traceback=outcome.traceback)


def _last_words(run: Run) -> Failure | None:
    """The error of a rank that could not even write its outcome: the disk was full."""
    for rank in run.ranks:
        beat = read_heartbeat(run.paths.heartbeat(rank.rank))
        if beat is not None and beat.last_words:
            moment = _moment(beat.phase.word, beat.epoch, beat.step)
            sentence = f"{run.name}: rank {rank.rank} failed {moment}: {beat.last_words}"
            return Failure(sentence=sentence, traceback="")
    return None


def _silent_ranks(run: Run) -> str:
    """Where those ranks are that left no outcome: they were still busy elsewhere."""
    silent: list[str] = []
    for rank in run.ranks:
        beat = None if rank.outcome else read_heartbeat(run.paths.heartbeat(rank.rank))
        if beat is not None:
            moment = _moment(beat.phase.word, beat.epoch, beat.step)
            silent.append(f"Rank {rank.rank} never came: it was last seen {moment}.")
    return " ".join(silent)


def _moment(phase: str, epoch: int, step: int) -> str:
    if phase == Phase.TRAINING.word:
        return f"in epoch {epoch + 1}, step {step + 1}"
    if phase == Phase.STARTING.word:
        return "while starting"
    return f"while {phase} in epoch {epoch + 1}"
