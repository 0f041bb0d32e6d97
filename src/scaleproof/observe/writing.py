"""The rank's files, made when its rank is known; records that come earlier wait."""

import os
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import RunError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import ArrayRef
from scaleproof.evidence.writer import RankWriter
from scaleproof.observe.fetching import Fetched, of_pass


@final
class RankFolder:
    """Where the records of this process go."""

    def __init__(self, run: RunPaths) -> None:
        self.run = run
        self.workers_file = run.workers(os.getpid())
        self.rank = -1
        self._writer: RankWriter | None = None
        self._waiting: list[AnyRecord] = []

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    def open(self, rank: int, *, process: int) -> bool:
        """Claim the rank. False when another process has it: this one's files then go into a
        folder of their own, beside."""
        is_first = _claim(self.run.records(rank))
        if not is_first:
            self.run = RunPaths(self.run.root / "others" / str(process))
        self.rank = rank
        self._writer = RankWriter(self.run, rank)
        for record in self._waiting:
            self._writer.record(record)
        self._waiting.clear()
        return is_first

    def record(self, record: AnyRecord) -> None:
        if self._writer is None:
            self._waiting.append(record)
        else:
            self._writer.record(record)

    def array(self, name: str, values: NDArray[np.generic]) -> ArrayRef:
        return self._writing().array(name, values)

    def blob(self, file: str, data: bytes) -> ArrayRef:
        return self._writing().blob(file, data)

    def fetched(self, loader: int, number: int) -> Fetched | None:
        """What was seen of the fetches of a pass, in this process or its workers."""
        return of_pass(self.workers_file, loader, number)

    def _writing(self) -> RankWriter:
        if self._writer is None:
            raise RunError("nothing can be written before the rank is known: this is a bug of ours")
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _claim(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True
