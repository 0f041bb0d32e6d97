"""What a process of somebody's script is doing right now, readable from outside, even after a kill.

Like a heartbeat, but of a process that has no rank yet: one small file mapped into memory per
process, named after its pid. ``beats`` grows with everything the process is seen to do, so that
whoever looks twice knows whether it moved.
"""

import mmap
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import final

from scaleproof.errors import EvidenceError
from scaleproof.evidence.writer import write_error

_LAYOUT = struct.Struct("=8s6q")  # magic, activity, beats, rank, ranks, epoch, step
_MAGIC = b"SPP1\0\0\0\0"
_ACTIVITY, _BEATS, _RANK, _NUM_RANKS, _EPOCH, _STEP = range(1, 7)  # as words of eight bytes
SIZE = 4096


class Activity(IntEnum):
    """What a process is doing."""

    STARTING = 0
    INPUT = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4
    OTHER = 5
    """Between these: logging, saving, a collective of its own."""
    ENDED = 6

    @property
    def word(self) -> str:
        return _WORDS[self]


_WORDS = {
    Activity.STARTING: "starting",
    Activity.INPUT: "waiting for input",
    Activity.FORWARD: "in forward",
    Activity.BACKWARD: "in backward",
    Activity.OPTIMIZER: "in the optimizer's step",
    Activity.OTHER: "between steps",
    Activity.ENDED: "at its end",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PulseReading:
    """``rank`` is -1 until it is known; ``step`` counts the steps done."""

    pid: int
    activity: Activity
    beats: int
    rank: int
    num_ranks: int
    epoch: int
    step: int


@final
class Pulse:
    """Writes the pulse of this process: a beat is two stores into mapped memory."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(SIZE))
            with path.open("r+b") as file:
                self._words = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("q")
        except OSError as error:
            raise write_error(path, error) from error
        self._beats = 0
        self._words[_RANK] = -1
        self.beat(Activity.STARTING)
        self._words[0] = int.from_bytes(_MAGIC, sys.byteorder)

    def beat(self, activity: int) -> None:
        """Say that ``activity``, one of ``Activity``, has begun."""
        self._beats += 1
        self._words[_ACTIVITY] = activity
        self._words[_BEATS] = self._beats

    def name_rank(self, rank: int, num_ranks: int) -> None:
        self._words[_RANK], self._words[_NUM_RANKS] = rank, num_ranks

    @property
    def rank(self) -> int:
        """-1 until it is known."""
        return self._words[_RANK]

    def step_done(self, epoch: int, step: int) -> None:
        self._words[_EPOCH], self._words[_STEP] = epoch, step


def read_pulse(path: Path) -> PulseReading | None:
    """The last beat in the file, named ``<pid>.pulse``; None when it is being made.

    Raises ``EvidenceError`` for a file that is no pulse.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < SIZE or not any(data[:4]):
        return None
    magic, activity, beats, rank, num_ranks, epoch, step = _LAYOUT.unpack_from(data)
    if magic != _MAGIC or activity not in set(Activity) or not path.stem.isdigit():
        raise EvidenceError(
            f"{path} is not a pulse file: it begins with {data[:4]!r}, expected {_MAGIC!r}. "
            "Delete it: only the report of a hang needs it."
        )
    return PulseReading(
        pid=int(path.stem),
        activity=Activity(activity),
        beats=beats,
        rank=rank,
        num_ranks=num_ranks,
        epoch=epoch,
        step=step,
    )
