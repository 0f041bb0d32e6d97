"""The timeline of a rank: what each step's time went into, row by row.

Everything is booked between the end of one step and the end of the next, by what the script did:
waiting for input, forward, backward, waiting in it for other ranks, the optimizer's step, and the
rest. A pass over a loader that begins or ends between two steps without backward (an evaluation)
is not training time: the row begins anew there.
"""

import time
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from scaleproof.evidence.observations import OBSERVED_STEP_TABLE, StepsRecord
from scaleproof.evidence.records import STEP_TABLE, EpochRecord
from scaleproof.observe.writing import RankFolder

FLUSH_INTERVAL_S = 10.0
"""How much a killed process may lose."""

MAX_ROWS = 4096

NUM_UNNAMED_EPOCHS = 5

Row = tuple[Any, ...]
"""In the order of ``OBSERVED_STEP_TABLE``; some values are still tensors."""

_TENSORS = ("loss", "learning_rate", "clip_norm", "clip_max")


@final
class Timeline:
    """Phases of the step that goes on, and the rows of those that are done."""

    def __init__(self) -> None:
        self.began_s = time.perf_counter()
        self.input_s = self.forward_s = self.backward_s = self.sync_s = self.optimizer_s = 0.0
        self.num_backwards = 0
        self.losses: list[Any] = []
        self.flags = 0
        self.clip_norm: Any = np.nan
        self.clip_max: Any = np.nan
        self.clipped_at_sequence = -1
        self.sequence = -1
        self.rows: list[Row] = []
        self.num_steps = 0
        self._first_row = 1
        self._flushed_s = self.began_s
        self._epoch_rows: list[NDArray[Any]] = []

    @property
    def booked_s(self) -> float:
        """What is booked since the last step, but for the optimizer's."""
        return self.input_s + self.forward_s + self.backward_s + self.sync_s

    def restart(self) -> None:
        """What was booked since the last step was not of training."""
        if self.num_backwards == 0:
            self.began_s = time.perf_counter()
            self.input_s = self.forward_s = self.backward_s = self.sync_s = self.optimizer_s = 0.0

    def end_step(
        self,
        optimizer: int,
        epoch: int,
        handed_out: tuple[int, int],
        sequence: int,
        learning_rate: Any,
    ) -> None:
        """The optimizer's step is done: its row is closed, the next begins.

        ``handed_out``: batches and samples; ``sequence``: collectives started so far.
        """
        now_s = time.perf_counter()
        booked_s = self.booked_s + self.optimizer_s
        losses = self.losses
        self.rows.append(
            (
                optimizer,
                epoch,
                self.num_backwards,
                *handed_out,
                max(sequence - self.sequence, 0) if self.sequence >= 0 else 0,
                self.flags,
                losses[0] if len(losses) == 1 else (losses or np.nan),
                learning_rate,
                self.clip_norm,
                self.clip_max,
                self.input_s,
                self.forward_s,
                self.backward_s,
                self.sync_s,
                self.optimizer_s,
                max(now_s - self.began_s - booked_s, 0.0),
            )
        )
        self.num_steps += 1
        self.sequence = sequence
        self.began_s = now_s
        self.input_s = self.forward_s = self.backward_s = self.sync_s = self.optimizer_s = 0.0
        self.num_backwards = self.flags = 0
        self.losses = []
        self.clip_norm = self.clip_max = np.nan
        self.clipped_at_sequence = -1

    def is_due(self) -> bool:
        return len(self.rows) >= MAX_ROWS or self.began_s - self._flushed_s > FLUSH_INTERVAL_S

    def flush(self, folder: RankFolder) -> None:
        """Write the rows that are done."""
        self._flushed_s = time.perf_counter()
        if not self.rows or not folder.is_open:
            return
        table = as_table(self.rows)
        self.rows = []
        first = self._first_row
        self._first_row += len(table)
        folder.record(
            StepsRecord(first_step=first, table=folder.array(f"steps-{first:07d}", table))
        )
        self._epoch_rows.append(table)

    def write_epoch(self, folder: RankFolder, epoch: int) -> bool:
        """The steps since the last epoch were one; False when there were none."""
        self.flush(folder)
        rows = self._rows_of_epoch()
        self._epoch_rows = []
        if len(rows):
            _write_epoch(folder, epoch, rows)
        return len(rows) > 0

    def write_unnamed_epochs(self, folder: RankFolder) -> None:
        """A script without loaders has no epochs of its own: its steps are cut into some."""
        rows = self._rows_of_epoch()
        if len(rows) < NUM_UNNAMED_EPOCHS:
            return
        for epoch in range(NUM_UNNAMED_EPOCHS):
            low, high = (len(rows) * (epoch + i) // NUM_UNNAMED_EPOCHS for i in (0, 1))
            _write_epoch(folder, epoch, rows[low:high])

    def _rows_of_epoch(self) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, OBSERVED_STEP_TABLE), *self._epoch_rows])


def _write_epoch(folder: RankFolder, epoch: int, rows: NDArray[Any]) -> None:
    """An ``EpochRecord`` of some steps; its time is that of the rows."""
    table = np.zeros(len(rows), STEP_TABLE)
    table["loss"] = rows["loss"]
    table["num_samples"] = np.maximum(rows["num_samples"], 0)
    table["learning_rate"] = rows["learning_rate"]
    phases = (name for name in OBSERVED_STEP_TABLE.names or () if name.endswith("_s"))
    train_time_s = float(sum(rows[phase].sum(dtype=np.float64) for phase in phases))
    folder.record(
        EpochRecord(
            epoch=epoch,
            num_steps=len(table),
            num_samples=int(table["num_samples"].sum()),
            train_time_s=train_time_s,
            started_at_unix_s=time.time() - train_time_s,
            steps=folder.array(f"epoch-{epoch:04d}", table),
        )
    )


def as_table(rows: list[Row]) -> NDArray[Any]:
    """``OBSERVED_STEP_TABLE``; tensors become numbers here, long after they were computed."""
    table = np.zeros(len(rows), OBSERVED_STEP_TABLE)
    for name, column in zip(OBSERVED_STEP_TABLE.names or (), zip(*rows, strict=True), strict=True):
        table[name] = [_number(value) for value in column] if name in _TENSORS else column
    return table


def _number(value: Any) -> float:
    if isinstance(value, list):
        return float(np.mean([_number(item) for item in value]))
    return float(value)
