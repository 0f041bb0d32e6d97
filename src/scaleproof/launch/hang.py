"""Asks the processes of a run that stands still where they are."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import msgspec
import psutil

from scaleproof.errors import EvidenceError
from scaleproof.evidence.hangs import Collectives, HangRecord, StuckRank
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.stacks import STACK_SIGNAL, Frame, main_stack
from scaleproof.launch.outcomes import how_it_ended
from scaleproof.launch.processes import Met, pids_of, rank_given_to

ANSWER_TIMEOUT_S = 5.0
STACK_TIMEOUT_S = 2.0
SETTLE_INTERVAL_S = 0.1


@final
@dataclass(frozen=True, slots=True)
class Answers:
    """What the processes said."""

    collectives: Mapping[int, Collectives]
    stacks: Mapping[int, tuple[Frame, ...]]

    @property
    def youngest_s(self) -> float:
        """Since a collective was last begun anywhere; infinite when none is known."""
        ages = [entry.age_s for one in self.collectives.values() for entry in one.latest]
        return min(ages, default=float("inf"))

    def longest_wait_s(self) -> float:
        """How long a process has been waiting in its oldest collective; 0 when none waits."""
        waits = [one.waiting.age_s for one in self.collectives.values() if one.waiting]
        return max(waits, default=0.0)


def interrogate(paths: RunPaths, met: Sequence[Met], family: Sequence[psutil.Process]) -> Answers:
    """Ask all of them for their stacks, and those that train for their collectives."""
    training = {one.reading.pid for one in met if one.ended is None}
    return Answers(
        collectives=_ask_collectives(paths, training & {process.pid for process in family}),
        stacks=_ask_stacks(paths, family),
    )


def hang_record(
    met: Sequence[Met], answers: Answers, family: Sequence[psutil.Process], timeout_s: float
) -> HangRecord:
    """Everybody's place, one entry per rank."""
    by_pid = {process.pid: process for process in family}
    ranks: dict[tuple[int, int], StuckRank] = {}
    for one in sorted(met, key=lambda one: one.ended is None):  # the living replace the dead
        stuck = _stuck(one, answers, by_pid.get(one.reading.pid))
        ranks[_key(stuck)] = stuck
    for process in sorted(family, key=lambda process: -process.pid):  # the oldest remains
        stuck = _absent(process, answers)
        if stuck is not None and _key(stuck) not in {_key(rank) for rank in _joined(ranks)}:
            ranks[_key(stuck)] = stuck
    num_ranks = max([one.num_ranks for one in met if one.ended is None], default=0)
    return HangRecord(
        timeout_s=timeout_s,
        num_ranks=num_ranks,
        ranks=tuple(ranks[key] for key in sorted(ranks)),
    )


def _joined(ranks: Mapping[tuple[int, int], StuckRank]) -> list[StuckRank]:
    return [rank for rank in ranks.values() if rank.has_joined]


def _key(stuck: StuckRank) -> tuple[int, int]:
    return (stuck.rank, 0) if stuck.rank >= 0 else (-1, stuck.pid)


def _stuck(one: Met, answers: Answers, process: psutil.Process | None) -> StuckRank:
    reading = one.reading
    collectives = answers.collectives.get(reading.pid)
    return StuckRank(
        rank=one.rank,
        pid=reading.pid,
        activity=reading.activity.word,
        epoch=max(reading.epoch, 0),
        step=reading.step,
        is_alive=one.ended is None,
        has_joined=True,
        ending="" if one.ended is None else how_it_ended(one.ended.code),
        stack=answers.stacks.get(reading.pid, ()),
        data_worker=() if process is None else _worker_stack(process, answers),
        waiting=collectives.waiting if collectives else None,
        last_done=collectives.last_done if collectives else None,
    )


def _absent(process: psutil.Process, answers: Answers) -> StuckRank | None:
    """A rank of a launcher's that never joined; None for any other process."""
    rank, _ = rank_given_to(process.pid)
    if rank < 0 or process.pid not in answers.stacks:
        return None
    return StuckRank(
        rank=rank,
        pid=process.pid,
        activity="starting",
        epoch=0,
        step=0,
        is_alive=True,
        has_joined=False,
        stack=answers.stacks[process.pid],
    )


def _worker_stack(process: psutil.Process, answers: Answers) -> tuple[Frame, ...]:
    """Of the first process it forked that is in the user's own code."""
    try:
        children = process.children()
    except psutil.Error:
        return ()
    stacks = [answers.stacks[child.pid] for child in children if child.pid in answers.stacks]
    return next((stack for stack in stacks if stack and stack[0].is_users), ())


def _ask_collectives(paths: RunPaths, pids: set[int]) -> dict[int, Collectives]:
    for pid in pids:
        paths.collectives(pid).unlink(missing_ok=True)
        paths.ask(pid).touch()
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    missing = set(pids)
    while missing and time.monotonic() < deadline_s:
        time.sleep(SETTLE_INTERVAL_S)
        missing = {pid for pid in missing if not paths.collectives(pid).exists()}
    found: dict[int, Collectives] = {}
    for pid in pids - missing:
        try:
            found[pid] = read_json(paths.collectives(pid), Collectives, what="collectives")
        except (EvidenceError, msgspec.MsgspecError):
            continue  # its stack says less, but enough
    return found


def _ask_stacks(paths: RunPaths, family: Sequence[psutil.Process]) -> dict[int, tuple[Frame, ...]]:
    """The signal ends a process that is not prepared: only those that made their file get it."""
    prepared = pids_of(paths, "stack")
    asked = [process for process in family if process.pid in prepared]
    begun = {process.pid: _size(paths, process.pid) for process in asked}
    for process in asked:
        try:
            os.kill(process.pid, STACK_SIGNAL)
        except OSError:
            begun.pop(process.pid)
    deadline_s = time.monotonic() + STACK_TIMEOUT_S
    sizes: dict[int, int] = {}
    while time.monotonic() < deadline_s:
        time.sleep(SETTLE_INTERVAL_S)
        before, sizes = sizes, {pid: _size(paths, pid) for pid in begun}
        if sizes == before and all(sizes[pid] > begun[pid] for pid in begun):
            break
    stacks: dict[int, tuple[Frame, ...]] = {}
    for pid, start in begun.items():
        data = paths.stack(pid).read_bytes()[start:] if paths.stack(pid).exists() else b""
        stacks[pid] = main_stack(data.decode(errors="replace"))
    return stacks


def _size(paths: RunPaths, pid: int) -> int:
    try:
        return paths.stack(pid).stat().st_size
    except OSError:
        return 0
