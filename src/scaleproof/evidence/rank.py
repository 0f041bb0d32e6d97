"""The evidence of one rank of one run: its records, and the arrays they point to."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.errors import EvidenceError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.consistency import with_shape
from scaleproof.evidence.observations import OBSERVED_STEP_TABLE, StepsRecord
from scaleproof.evidence.reader import read_array, read_bitmap
from scaleproof.evidence.records import (
    EVALUATION_TABLE,
    SKETCH_SIZE,
    STEP_TABLE,
    ArrayRef,
    EpochRecord,
    EvaluationRecord,
    RankOutcome,
    SamplesRecord,
    StateRecord,
)

R = TypeVar("R", bound=AnyRecord)


@final
@dataclass(frozen=True)
class Rank:
    """The evidence of one rank of one run."""

    rank: int
    folder: Path
    records: tuple[AnyRecord, ...]
    is_torn: bool
    outcome: RankOutcome | None

    @cached_property
    def epochs(self) -> tuple[EpochRecord, ...]:
        return self.of(EpochRecord)

    @cached_property
    def samples(self) -> tuple[SamplesRecord, ...]:
        return self.of(SamplesRecord)

    @cached_property
    def evaluations(self) -> tuple[EvaluationRecord, ...]:
        return self.of(EvaluationRecord)

    @cached_property
    def states(self) -> tuple[StateRecord, ...]:
        return self.of(StateRecord)

    def steps(self, record: EpochRecord) -> NDArray[Any]:
        """``STEP_TABLE`` of shape ``(num_steps,)``."""
        table = read_array(self.folder, record.steps, dtype=STEP_TABLE)
        return with_shape(self.folder / record.steps.file, table, (record.num_steps,))

    @cached_property
    def observed_steps(self) -> NDArray[Any]:
        """All of a script's steps, ``OBSERVED_STEP_TABLE`` of shape ``(num_steps,)``."""
        tables: list[NDArray[Any]] = [np.zeros(0, OBSERVED_STEP_TABLE)]
        for record in self.of(StepsRecord):
            tables.append(read_array(self.folder, record.table, dtype=OBSERVED_STEP_TABLE))
            num_before = sum(len(table) for table in tables[:-1])
            if record.first_step != num_before + 1:
                raise EvidenceError(
                    f"{self.folder} has a table of the steps from {record.first_step} on after "
                    f"{num_before} steps. Restore the folder from where the study was made."
                )
        return np.concatenate(tables)

    def array(self, ref: ArrayRef, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array that one of its records points to."""
        return read_array(self.folder, ref, dtype=dtype)

    def bitmap(self, ref: ArrayRef) -> BitMap:
        """A set of sample ids that one of its records points to."""
        return read_bitmap(self.folder, ref)

    def evaluation_table(self, record: EvaluationRecord) -> NDArray[Any]:
        """``EVALUATION_TABLE`` of shape ``(num_scored,)``."""
        table = read_array(self.folder, record.table, dtype=EVALUATION_TABLE)
        return with_shape(self.folder / record.table.file, table, (table.size,))

    def seen(self, record: SamplesRecord) -> BitMap:
        return read_bitmap(self.folder, record.seen)

    def repeated(self, record: SamplesRecord) -> BitMap:
        return read_bitmap(self.folder, record.repeated)

    def sketches(self, record: StateRecord) -> NDArray[np.float64]:
        """Shape ``(num_tensors, SKETCH_SIZE)``."""
        sketches = read_array(self.folder, record.sketches, dtype=np.dtype("<f8"))
        shape = (len(record.tensors), SKETCH_SIZE)
        return with_shape(self.folder / record.sketches.file, sketches, shape)

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """Its records of one kind, in order."""
        return tuple(record for record in self.records if isinstance(record, kind))
