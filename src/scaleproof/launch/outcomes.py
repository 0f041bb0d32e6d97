"""Speaks for the ranks of a command that could not: those that were killed, or left in silence."""

import signal
from collections.abc import Sequence
from typing import Literal, final

from scaleproof.errors import EvidenceError
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import Activity
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.stacks import Frame, fatal_error, main_stack
from scaleproof.evidence.writer import write_json
from scaleproof.launch.processes import Met

EXIT_CODE_OF_LOST_OUTPUT = 120
"""Python's own, when it could not flush stdout at its end: whoever read it had enough."""

_MESSAGES = {
    signal.SIGKILL: ": something outside killed it; the kernel does when memory runs out",
    signal.SIGTERM: ": something outside ended it, a scheduler's time limit or kill",
}


@final
class Outcomes:
    """Writes what is missing about how ranks ended."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths

    def complete(self, gone: Sequence[Met]) -> None:
        """These processes have ended, all at about the same time.

        What a launcher ended because another rank had failed is no failure of its own; a process
        of unknown rank that ended well has not trained.
        """
        for one in sorted(gone, key=lambda one: _code_of(one) == -signal.SIGTERM):
            outcome = self._outcome_of(one.rank)
            if outcome is None:
                self._write_missing(one)
            elif outcome.status == "ok" and _is_failing(_code_of(one)):
                self._write(one, "error")

    def _write_missing(self, one: Met) -> None:
        code = _code_of(one)
        is_at_end = one.reading.activity is Activity.ENDED
        if code == 0 or (is_at_end and not _is_failing(code)):
            if one.reading.step > 0:
                self._write(one, "ok")
        elif not self._is_consequence(one.rank, code):
            self._write(one, "error")

    def _is_consequence(self, of_rank: int, code: int | None) -> bool:
        """Whether a launcher ended it because of others."""
        failures = [
            outcome
            for rank in self._paths.ranks_seen()
            if rank != of_rank
            and (outcome := self._outcome_of(rank)) is not None
            and outcome.status == "error"
        ]
        if code == -signal.SIGTERM:
            return bool(failures)
        return code is None and any(not failure.is_lost_peer for failure in failures)

    def _outcome_of(self, rank: int) -> RankOutcome | None:
        path = self._paths.outcome(rank)
        if not path.exists():
            return None
        try:
            return read_json(path, RankOutcome, what="the outcome of a rank")
        except EvidenceError:
            return None  # it went while it was read

    def _write(self, one: Met, status: Literal["ok", "error"]) -> None:
        assert one.ended is not None  # or else nothing is missing
        reading = one.reading
        frames: tuple[Frame, ...] = ()
        message = ""
        if status == "error":
            text = self._stacks_of(reading.pid)
            if fatal_error(text) is not None:
                frames = main_stack(text)
            message = _message(one.ended.code, frames)
        outcome = RankOutcome(
            status=status,
            epoch=max(reading.epoch, 0),
            step=reading.step,
            phase=reading.activity.word,
            error_type="ProcessEnded" if status == "error" else "",
            message=message,
            traceback=_as_traceback(frames),
            ended_at_unix_s=one.ended.at_unix_s,
        )
        write_json(self._paths.outcome(one.rank), outcome)

    def _stacks_of(self, pid: int) -> str:
        try:
            return self._paths.stack(pid).read_text(errors="replace")
        except OSError:
            return ""


def _code_of(one: Met) -> int | None:
    return one.ended.code if one.ended is not None else None


def _is_failing(code: int | None) -> bool:
    """An exit code that the script chose, and not 0: a signal after its end means nothing."""
    return code is not None and code > 0 and code != EXIT_CODE_OF_LOST_OUTPUT


def how_it_ended(code: int | None) -> str:
    """``ended with signal 9 (SIGKILL)``."""
    if code is None:
        return "ended without a word"
    if code == 0:
        return "ended by itself"
    if code > 0:
        return f"ended with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:  # a real-time signal
        name = ""
    return f"ended with signal {-code}{name}"


def _message(code: int | None, frames: Sequence[Frame]) -> str:
    place = next((f" in {frame.place}" for frame in frames if frame.is_users), "")
    message = f"the process {how_it_ended(code)}{place}"
    if code is None:
        return f"{message}: it was killed, or it called os._exit"
    if code > 0:
        return f"{message}; what it wrote last says why"
    return message + _MESSAGES.get(signal.Signals(-code) if -code < 32 else signal.SIGCHLD, "")


def _as_traceback(frames: Sequence[Frame]) -> str:
    if not frames:
        return ""
    lines = [f'  File "{f.file}", line {f.line}, in {f.function}' for f in reversed(frames)]
    return "\n".join(["Python stack when it ended (most recent call last):", *lines, ""])
