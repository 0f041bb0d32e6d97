"""What fetching items draws from the global random-number generators, in whichever process fetches.

Workers are left alone but for this: around its first fetches each looks at the generators' states,
and appends one line to a file of its rank. Workers that are forked know their rank and pass from
the process they come from; those that are spawned say nothing.
"""

import contextlib
import os
from pathlib import Path
from typing import final

import msgspec

from scaleproof.evidence.observations import RandomSource
from scaleproof.observe.randomness import random_states

NUM_FETCHES = 2
"""Fetches of a pass that are looked at."""


@final
class FetchLook:
    """The first fetches of one pass over a loader: in this process, or, each for itself, in workers
    that were forked when the pass began. ``file``: where they are written."""

    def __init__(self, loader: int, number: int, file: Path) -> None:
        self.loader = loader
        self.number = number
        self.file = file
        self.num_left = NUM_FETCHES


current: FetchLook | None = None
"""What is fetched from now on, here or in workers that are forked from here, is of this pass."""


@final
class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """One fetch: the generators' states before it, and those that it changed."""

    loader: int
    number: int
    worker: int
    states: dict[RandomSource, str]
    drawn: tuple[RandomSource, ...]


def states() -> dict[RandomSource, str]:
    """Of the generators, before a fetch; empty when they can't be told."""
    try:
        return random_states()
    except Exception:  # noqa: BLE001 - somebody's training must not end with it
        return {}


def write(look: FetchLook, before: dict[RandomSource, str], worker: int) -> None:
    """Compare, and append a line: workers share the file. What can't be told is left out."""
    look.num_left -= 1
    after = states()
    if not before or not after:
        return
    fetched = Fetched(
        loader=look.loader,
        number=look.number,
        worker=worker,
        states=before,
        drawn=tuple(source for source in RandomSource if after[source] != before[source]),
    )
    with contextlib.suppress(OSError):  # the disk is full: the fetch counts as not seen
        file = os.open(look.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, msgspec.json.encode(fetched) + b"\n")
        finally:
            os.close(file)


def begin(loader: int, number: int, file: Path) -> FetchLook:
    """A pass begins."""
    global current
    current = FetchLook(loader, number, file)
    return current


def of_pass(path: Path, loader: int, number: int) -> Fetched | None:
    """What the fetches of a pass came to: the lowest worker's first states, all that was drawn."""
    if not path.exists():
        return None
    found: list[Fetched] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        fetched = msgspec.json.decode(line, type=Fetched)
        if (fetched.loader, fetched.number) == (loader, number):
            found.append(fetched)
    if not found:
        return None
    first = min(found, key=lambda fetched: fetched.worker)
    drawn = {source for fetched in found for source in fetched.drawn}
    return msgspec.structs.replace(first, drawn=tuple(s for s in RandomSource if s in drawn))
