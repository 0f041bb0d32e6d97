"""The processes of an observed command: which they are, how they ended, how to end them."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import psutil

from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import PulseReading
from scaleproof.launch.environment import RUN_VARIABLE

END_INTERVAL_S = 0.05


def family_of(pid: int, paths: RunPaths) -> list[psutil.Process]:
    """``pid`` and all it started that live, and those observed into ``paths`` whose parents have
    gone."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        found = {process.pid: process for process in (first, *first.children(recursive=True))}
    for left in pids_of(paths, "stack") - set(found):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(left)
            if started_with(process).get(RUN_VARIABLE) == str(paths.root.absolute()):
                found[left] = process  # and not another that has got its number
    return [process for process in found.values() if is_alive(process)]


def pids_of(paths: RunPaths, kind: str) -> set[int]:
    """Processes that left a file of a kind: ``stack`` if they imported torch, ``pulse`` if they
    trained or joined a process group."""
    return {int(path.stem) for path in paths.processes.glob(f"*.{kind}") if path.stem.isdigit()}


def started_with(process: psutil.Process) -> dict[str, str]:
    """The environment it was started with; empty when it can't be known."""
    try:
        return process.as_dict(["environ"])["environ"] or {}
    except psutil.Error:
        return {}


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_stopped(process: psutil.Process) -> bool:
    """Somebody has stopped it, or looks into it with a debugger."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def end_all(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Ask them to end, and kill those that have not after ``timeout_s``.

    Their exit codes are left to their parents (psutil's own waiting would take them).
    """
    _tell(processes, signal.SIGTERM)
    deadline_s = time.monotonic() + timeout_s
    while any(is_alive(process) for process in processes) and time.monotonic() < deadline_s:
        time.sleep(END_INTERVAL_S)
    _tell([process for process in processes if is_alive(process)], signal.SIGKILL)


def _tell(processes: Iterable[psutil.Process], signum: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended by itself in between
            process.send_signal(signum)


def rank_given_to(pid: int) -> tuple[int, int]:
    """Rank and number of ranks that a launcher gave a process; (-1, 0) when none did."""
    try:
        environment = started_with(psutil.Process(pid))
    except psutil.Error:
        return -1, 0
    texts = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    rank, num_ranks = (int(text) if text.isdecimal() else -1 for text in texts)
    return (rank, num_ranks) if 0 <= rank < num_ranks else (-1, 0)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A process that has ended. ``code`` as ``subprocess`` has it, minus the signal that ended it;
    None when its parent was faster to ask."""

    pid: int
    code: int | None
    at_unix_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """A process that trained or joined a process group: its last word, and what became of it.

    ``rank`` is -1 and ``num_ranks`` 0 where nothing says it. ``ended`` is None while it lives.
    """

    reading: PulseReading
    rank: int
    num_ranks: int
    ended: Ended | None


@final
class EndWatch:
    """Notices at once when processes end, whoever started them, and how.

    An ended process is kept by the kernel until its parent asks for its exit code; launchers look
    a few times a second, and until then it can be read.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._pids: dict[int, int] = {}
        self._without: set[int] = set()

    def add(self, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:  # it is gone, or this kernel can't
            self._without.add(pid)
            return
        self._pids[descriptor] = pid
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float) -> list[Ended]:
        """Those that ended within ``timeout_s``, as soon as there are any."""
        gone = [pid for pid in self._without if not psutil.pid_exists(pid)]
        self._without.difference_update(gone)
        for descriptor, _ in self._poll.poll(0 if gone else timeout_s * 1000):
            gone.append(self._pids.pop(descriptor))
            self._poll.unregister(descriptor)
            os.close(descriptor)
        now_s = time.time()
        return [Ended(pid=pid, code=_exit_code_of(pid), at_unix_s=now_s) for pid in gone]

    def close(self) -> None:
        for descriptor in self._pids:
            os.close(descriptor)
        self._pids.clear()


def _exit_code_of(pid: int) -> int | None:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if words[0] not in "ZX":
        return None  # its number was used again
    return os.waitstatus_to_exitcode(int(words[-1]))


@final
class ProcessorTime:
    """Processor time that processes used since this was made."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        self._before_s = _processor_times_s(processes)

    def used_s(self, processes: Iterable[psutil.Process]) -> float:
        now_s = _processor_times_s(processes)
        return sum(spent_s - self._before_s.get(key, 0.0) for key, spent_s in now_s.items())


def _processor_times_s(processes: Iterable[psutil.Process]) -> dict[tuple[int, float], float]:
    found: dict[tuple[int, float], float] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
    return found
