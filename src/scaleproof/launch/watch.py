"""Watches the processes of an observed command from outside: how each ended, and whether they hang.

A run hangs when none of its processes was seen doing anything for the timeout, and either one of
them waits in a collective all that time, or nobody uses the processor. Computing is no hang,
however long it takes, unless somebody waits for it in a collective for longer than the timeout.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import final

from scaleproof.errors import EvidenceError, RunError
from scaleproof.evidence.pulse import read_pulse
from scaleproof.evidence.writer import write_json
from scaleproof.launch.hang import hang_record, interrogate
from scaleproof.launch.outcomes import Outcomes
from scaleproof.launch.processes import (
    Ended,
    EndWatch,
    Met,
    ProcessorTime,
    is_stopped,
    pids_of,
    rank_given_to,
)
from scaleproof.launch.script import ScriptRun

POLL_INTERVAL_S = 0.2
MAX_GAP_S = 2.0
"""More than this between two looks was not watched: the machine, or this process, was stopped."""

IDLE_SHARE = 0.02
"""Processes that use less of the time than this only wait: the share of one processor."""

TOLERANCE = 0.9
"""Collectives were begun a little after the last beat that was seen."""

SETTLED_S = 1.0
"""Who has not moved for so long may stand still: from here on processor time is counted."""


@final
class Watch:
    """Watches one command until it and its ranks have ended, or hang and are ended."""

    def __init__(self, run: ScriptRun, *, timeout_s: float) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._outcomes = Outcomes(run.paths)
        self._ends = EndWatch()
        self._ended: dict[int, Ended] = {}
        self._given: dict[int, tuple[int, int]] = {}
        """Processes with a pulse, and the rank and number of ranks a launcher gave them."""
        self._stillness = _Stillness()

    def until_ended(self) -> None:
        """Return when the command has ended, and every process that trained."""
        self._ends.add(self._run.pid)
        try:
            while True:
                has_ended = self._run.exit_code is not None  # before looking who is left
                self._meet()
                if has_ended and not self._given.keys() - self._ended.keys():
                    return
                if self._is_hanging():
                    self._run.stop()
                    return
                self._take_leave(self._ends.wait(POLL_INTERVAL_S))
        finally:
            self._ends.close()

    def _meet(self) -> None:
        for pid in pids_of(self._run.paths, "pulse") - self._given.keys():
            self._given[pid] = rank_given_to(pid)
            self._ends.add(pid)

    def _take_leave(self, ended: list[Ended]) -> None:
        if not ended:
            return
        self._meet()  # whoever came and went in between
        for end in ended:
            is_ours = end.pid == self._run.pid  # we may have asked for its exit code already
            code = self._run.return_code if is_ours and end.code is None else end.code
            self._ended[end.pid] = replace(end, code=code)
        gone = [one for end in ended if (one := self._person(end.pid)) and one.rank >= 0]
        with contextlib.suppress(RunError):  # a full disk ends no training
            self._outcomes.complete(gone)

    def _person(self, pid: int) -> Met | None:
        """What is known of a process; None of one that has no pulse."""
        try:
            reading = read_pulse(self._run.paths.pulse(pid)) if pid in self._given else None
        except (EvidenceError, OSError):
            return None  # the script's own doing: it is not watched
        if reading is None:
            return None
        rank, num_ranks = self._given[pid]
        if reading.rank >= 0:
            rank, num_ranks = reading.rank, reading.num_ranks
        elif rank < 0 and len(self._given) == 1:
            rank, num_ranks = 0, 1
        return Met(reading=reading, rank=rank, num_ranks=num_ranks, ended=self._ended.get(pid))

    def _people(self) -> list[Met]:
        return [one for pid in self._given if (one := self._person(pid)) is not None]

    def _is_hanging(self) -> bool:
        """Whether it hangs; then it is written down who waits for whom."""
        people, still = self._people(), self._stillness
        still.look({one.reading.pid: one.reading.beats for one in people if one.ended is None})
        if still.lasted_s >= SETTLED_S and still.processor_time is None:
            still.count(ProcessorTime(self._run.family()))
        if still.lasted_s < self._timeout_s or still.processor_time is None:
            return False
        family = self._run.family()
        if any(is_stopped(process) for process in family):
            still.begin_again()
            return False
        limit_s = IDLE_SHARE * len(people) * still.counted_s
        is_idle = still.processor_time.used_s(family) < limit_s
        answers = interrogate(self._run.paths, people, family)
        if answers.youngest_s < TOLERANCE * self._timeout_s:
            still.shorten(to_s=answers.youngest_s)  # collectives were begun since the last beat
            return False
        record = hang_record(people, answers, family, self._timeout_s)
        is_waited_for = answers.longest_wait_s() >= TOLERANCE * self._timeout_s or any(
            rank.is_entering for rank in record.ranks
        )
        if not is_idle and not is_waited_for:
            still.shorten(to_s=self._timeout_s / 2)
            return False
        write_json(self._run.paths.hang, record)
        return True


@final
class _Stillness:
    """How long nothing has moved, as far as it was watched."""

    def __init__(self) -> None:
        self._beats: Mapping[int, int] = {}
        self._looked_s = time.monotonic()
        self.begin_again()

    def begin_again(self) -> None:
        self.lasted_s = 0.0
        self.counted_s = 0.0
        """Since ``processor_time`` is counted."""
        self.processor_time: ProcessorTime | None = None

    def look(self, beats: Mapping[int, int]) -> None:
        """``beats``: by process, those alive."""
        now_s = time.monotonic()
        gap_s = min(now_s - self._looked_s, MAX_GAP_S)
        self._looked_s = now_s
        if not beats or beats != self._beats:
            self._beats = beats
            self.begin_again()
            return
        self.lasted_s += gap_s
        if self.processor_time is not None:
            self.counted_s += gap_s

    def count(self, processor_time: ProcessorTime) -> None:
        self.processor_time, self.counted_s = processor_time, 0.0

    def shorten(self, *, to_s: float) -> None:
        """It is known to have lasted no longer; look again when it has."""
        self.lasted_s = min(self.lasted_s, to_s)
