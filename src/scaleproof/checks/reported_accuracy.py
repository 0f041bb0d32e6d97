"""Accuracies that a script reported, beside those that its predictions give.

A figure counts as the same when it agrees as far as figures are usually written out; one above 1
is taken for per cent.
"""

from collections.abc import Iterator
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.metric_names import is_accuracy, is_of_training
from scaleproof.evidence.observations import MetricRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import EVALUATION_TABLE
from scaleproof.evidence.study import Run

ROUNDING = 0.0005
"""Half a unit in the third decimal of a share, the first of per cent."""


@final
class ReportedAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """The last value of one figure on one rank, and what the predictions of that evaluation give.

    ``unique``: each sample of all ranks once. ``with_repeats``: all rows of all ranks. ``own``: the
    rows of this rank alone; ``own_over_all``: its right answers over the samples of all.
    """

    run: str
    rank: int
    name: str
    steps_done: int
    reported: float
    """As a share, whatever the script wrote."""
    unique: float
    with_repeats: float
    own: float
    own_over_all: float
    num_own: int
    num_rows: int
    num_unique: int

    def is_given(self, accuracy: float) -> bool:
        """The reported figure is ``accuracy``, as far as it was written out."""
        return abs(self.reported - accuracy) <= ROUNDING


def reported_accuracies(run: Run) -> Iterator[ReportedAccuracy]:
    """Of the last evaluation with predictions, in which some rank reported its accuracy too."""
    tables = _last_tables(run)
    rows = np.concatenate([np.zeros(0, EVALUATION_TABLE), *tables.values()])
    if len(rows) == 0:
        return
    is_right = rows["target"] == rows["prediction"]
    _, first = np.unique(rows["sample_id"], return_index=True)
    epochs_done = _last_epochs_done(run)
    for rank in run.ranks:
        own = tables.get(rank.rank, np.zeros(0, EVALUATION_TABLE))
        own_right = own["target"] == own["prediction"]
        for record in _last_accuracies(rank, epochs_done):
            value = record.value
            assert value is not None  # as selected
            yield ReportedAccuracy(
                run=run.name,
                rank=rank.rank,
                name=record.name,
                steps_done=record.steps_done,
                reported=value / 100 if value > 1 else value,
                unique=float(is_right[first].mean()),
                with_repeats=float(is_right.mean()),
                own=float(own_right.mean()) if len(own) else float("nan"),
                own_over_all=float(own_right.sum()) / len(first),
                num_own=len(own),
                num_rows=len(rows),
                num_unique=len(first),
            )


def _last_epochs_done(run: Run) -> int:
    return max((e.epochs_done for rank in run.ranks for e in rank.evaluations), default=0)


def _last_tables(run: Run) -> dict[int, NDArray[Any]]:
    """By rank: what it scored in the run's last evaluation."""
    last = _last_epochs_done(run)
    return {
        rank.rank: rank.evaluation_table(record)
        for rank in run.ranks
        for record in rank.evaluations
        if record.epochs_done == last
    }


def _last_accuracies(rank: Rank, epochs_done: int) -> Iterator[MetricRecord]:
    last: dict[str, MetricRecord] = {}
    for record in rank.of(MetricRecord):
        if record.value is not None and is_accuracy(record.name):
            last[record.name] = record
    for record in last.values():
        is_of_another = record.epoch is not None and record.epoch + 1 != epochs_done
        if not is_of_training(record.name) and not is_of_another:
            yield record
