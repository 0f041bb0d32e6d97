"""Why a run failed, in a sentence: the first rank that failed, not the flood that followed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from scaleproof.evidence.hangs import Collectives, describe_hang
from scaleproof.evidence.heartbeat import Phase, read_heartbeat
from scaleproof.evidence.pulse import Activity, PulseReading, read_pulse
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.records import LOST_PEER_MESSAGES, RankOutcome
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
        "CUDA out of memory. Use a smaller batch per device, or a device with more memory.",
    ),
    (
        "DefaultCPUAllocator: can't allocate memory",
        "out of memory. Use a smaller batch per device, or a machine with more memory.",
    ),
    (
        "DDP expects same model across all ranks",
        "the model has other parameters on one rank than on another. Build the same model on "
        "every rank: nothing in how it is built may depend on the rank.",
    ),
)
"""Texts of torch and gloo (2.13) that mean something a user can act on, and what it is."""

_ACTIVITIES = {activity.word for activity in Activity}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """``sentence`` names run, rank, moment, error and what to do; ``traceback`` may be empty."""

    sentence: str
    traceback: str


def describe_failure(run: Run) -> Failure | None:
    """What the evidence says about a failed run; None when no rank left an error."""
    failure = run.first_failure
    if run.hang is not None and (failure is None or failure[1].is_lost_peer):
        return Failure(sentence=f"{run.name}: {describe_hang(run.hang)}", traceback="")
    if failure is None:
        return _last_words(run)
    rank, outcome = failure
    moment = _moment(outcome.phase, outcome.epoch, outcome.step)
    pulses = _pulses(run)
    if pulses and outcome.is_lost_peer:
        return _left_alone(run, rank, outcome, pulses)
    if pulses and _is_aborted_in_collective(outcome):
        return _aborted(run, rank, outcome, pulses)
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


def _left_alone(
    run: Run, rank: int, outcome: RankOutcome, pulses: Mapping[int, PulseReading]
) -> Failure:
    """A script's rank lost a peer that left no error: who had gone, and what usually is behind."""
    moment = _moment(outcome.phase, outcome.epoch, outcome.step)
    outcomes = {one.rank: one.outcome for one in run.ranks}
    gone = [
        pulse
        for other, pulse in pulses.items()
        if other != rank and ((ended := outcomes.get(other)) is None or ended.status == "ok")
    ]
    where = _in_collective(run, pulses[rank]) if rank in pulses else ""
    sign = next(sign for sign in LOST_PEER_MESSAGES if sign in outcome.message)
    parts = [f"{run.name}: rank {rank} lost another rank {moment}{where}: {sign}."]
    for pulse in gone:
        steps = f"{pulse.step} step{'' if pulse.step == 1 else 's'}"
        parts.append(f"Rank {pulse.rank} had ended without an error after {steps}.")
    parts.append(
        "Usual causes: uneven batches (one rank's loader is shorter), or an early stop, return or "
        "exit that only one rank takes. Give every rank the same number of batches "
        "(DistributedSampler, drop_last, or DDP's join()), and stop on all ranks together."
        if gone
        else "Look at what the other ranks wrote last."
    )
    return Failure(sentence=" ".join(parts), traceback=outcome.traceback)


def _is_aborted_in_collective(outcome: RankOutcome) -> bool:
    """gloo ends the process (SIGABRT) that receives more than it has room for."""
    return outcome.error_type == "ProcessEnded" and "(SIGABRT)" in outcome.message


def _aborted(
    run: Run, rank: int, outcome: RankOutcome, pulses: Mapping[int, PulseReading]
) -> Failure:
    moment = _moment(outcome.phase, outcome.epoch, outcome.step)
    peers = [
        f"Rank {other} was{where.removeprefix(',')}."
        for other, pulse in pulses.items()
        if other != rank and (where := _in_collective(run, pulse))
    ]
    sentence = " ".join(
        [
            f"{run.name}: rank {rank} failed {moment}: {outcome.message}.",
            *peers,
            "gloo does this when the ranks call one collective with tensors of different sizes "
            "(then the output says: received data size doesn't match). Give it the same shape and "
            "dtype on every rank: pad the smaller tensor, or gather the sizes first; look also "
            "for a branch in which only some ranks call a collective.",
        ]
    )
    return Failure(sentence=sentence, traceback=outcome.traceback)


def _in_collective(run: Run, pulse: PulseReading) -> str:
    """``, in all_reduce of 8 float (collective 5)``; empty when that is not known."""
    path = run.paths.collectives(pulse.pid)
    if not path.exists():
        return ""
    latest = read_json(path, Collectives, what="the collectives of a rank").latest
    return f", in {latest[-1].words}" if latest else ""


def _pulses(run: Run) -> dict[int, PulseReading]:
    """The last pulses of a script's ranks, by rank."""
    found: dict[int, PulseReading] = {}
    for path in sorted(run.paths.processes.glob("*.pulse"), key=lambda path: path.stat().st_mtime):
        pulse = read_pulse(path)
        if pulse is not None and pulse.rank >= 0:
            found[pulse.rank] = pulse
    return found


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
    if phase in _ACTIVITIES:
        return f"{phase} after {step} step{'' if step == 1 else 's'}"
    return f"while {phase} in epoch {epoch + 1}"
