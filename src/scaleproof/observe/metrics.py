"""Figures of quality, wherever they come from: reported by the script, or computed by a library."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from scaleproof.evidence.observations import MetricRecord
from scaleproof.evidence.records import EVALUATION_TABLE, EvaluationRecord
from scaleproof.observe.guard import guarded
from scaleproof.observe.observer import Observer

Source = Literal["report", "torchmetrics", "lightning", "transformers"]

MAX_VALUES = 64
"""Of a metric with one value per class or threshold, the first are recorded."""


@final
class MetricsReceiver:
    """Takes what is reported in this process and records it."""

    def __init__(self, observer: Observer) -> None:
        self.troubles = observer.troubles
        self._observer = observer
        self._epoch: int | None = None
        self._parts: list[NDArray[Any]] = []

    def metrics(
        self,
        epoch: int | None,
        step: int | None,  # noqa: ARG002 - records count steps themselves
        metrics: Mapping[str, float],
        /,
    ) -> None:
        self.record("report", metrics, epoch=epoch)

    @guarded("metric")
    def record(
        self, source: Source, metrics: Mapping[str, Any], *, epoch: int | None = None
    ) -> None:
        """``metrics``: numbers, tensors, or lists of them, by name."""
        observer = self._observer
        last = observer.loaders.last_evaluation
        for name, value in numbers(metrics):
            observer.folder.record(
                MetricRecord(
                    source=source,
                    name=name,
                    value=value if math.isfinite(value) else None,
                    epoch=epoch,
                    steps_done=observer.steps_done,
                    num_collectives=observer.group.num_since_evaluation,
                    evaluation_loader=-1 if last is None else last.info.number,
                )
            )

    @guarded("evaluation")
    def predictions(
        self,
        targets: NDArray[np.int64],
        predictions: NDArray[np.int64],
        sample_ids: NDArray[np.int64] | None,
        epoch: int | None,
        /,
    ) -> None:
        """Reports of one epoch are joined: a script may report batch by batch."""
        if epoch is None:
            epoch = max(self._observer.loaders.epoch, 0)
        if epoch != self._epoch:
            self.write()
            self._epoch = epoch
        table = np.zeros(len(targets), EVALUATION_TABLE)
        table["sample_id"] = self._ids(len(targets)) if sample_ids is None else sample_ids
        table["target"], table["prediction"] = targets, predictions
        table["loss"] = np.nan
        self._parts.append(table)

    def _ids(self, number: int) -> NDArray[np.int64]:
        """Ids of predictions that came without: those of the evaluation they must be of, or else
        numbers that no other rank gives."""
        observer = self._observer
        handed_out = observer.loaders.evaluated_ids(number)
        if handed_out is not None:
            return np.array(handed_out, np.int64)
        before = sum(map(len, self._parts))
        rank, num_ranks = (observer.who.rank, observer.who.num_ranks) if observer.who else (0, 1)
        return np.arange(before, before + number) * num_ranks + rank

    @guarded("evaluation")
    def write(self) -> None:
        """Record the predictions that were reported since the last time."""
        if not self._parts or self._epoch is None or not self._observer.folder.is_open:
            return
        table, self._parts = np.concatenate(self._parts), []
        folder, epochs_done = self._observer.folder, self._epoch + 1
        folder.record(
            EvaluationRecord(
                epochs_done=epochs_done, table=folder.array(f"evaluation-{epochs_done:04d}", table)
            )
        )


def numbers(metrics: Any, name: str = "") -> Iterable[tuple[str, float]]:
    """Every number in nested mappings, sequences and tensors, with a name."""
    if isinstance(metrics, Mapping):
        for key, value in metrics.items():
            yield from numbers(value, f"{name}.{key}" if name else str(key))
        return
    if hasattr(metrics, "detach"):
        metrics = metrics.detach().cpu().tolist()
    if isinstance(metrics, list | tuple):
        for index, value in enumerate(metrics[:MAX_VALUES]):
            yield from numbers(value, f"{name}[{index}]")
    elif isinstance(metrics, int | float) and not isinstance(metrics, bool):
        yield name, float(metrics)
