"""Figures and predictions as a script reports them, for ``FakeScript.more``."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from observed import EVALUATION
from scaleproof.evidence.observations import MetricRecord
from scaleproof.evidence.records import EVALUATION_TABLE, EvaluationRecord
from scaleproof.evidence.writer import RankWriter

Write = Callable[[int, RankWriter], None]


def metric(name: str, value: float | None, **fields: Any) -> MetricRecord:
    """Reported after the default script's last evaluation."""
    settings: dict[str, Any] = {
        "source": "report",
        "epoch": 2,
        "steps_done": 18,
        "num_collectives": 0,
        "evaluation_loader": EVALUATION,
    }
    return MetricRecord(name=name, value=value, **{**settings, **fields})


def reporting(values: dict[int, dict[str, float | None]], **fields: Any) -> Write:
    """By rank: the figures that it reports."""

    def more(rank: int, writer: RankWriter) -> None:
        for name, value in values.get(rank, {}).items():
            writer.record(metric(name, value, **fields))

    return more


def predicting(rows: dict[int, Sequence[tuple[int, bool]]]) -> Write:
    """By rank: sample ids, and whether each was recognised, in the last evaluation."""

    def more(rank: int, writer: RankWriter) -> None:
        table = np.zeros(len(rows[rank]), EVALUATION_TABLE)
        table["loss"] = np.nan
        for index, (sample, is_right) in enumerate(rows[rank]):
            table[index]["sample_id"], table[index]["target"] = sample, sample % 2
            table[index]["prediction"] = sample % 2 if is_right else 1 - sample % 2
        writer.record(EvaluationRecord(epochs_done=3, table=writer.array("predictions", table)))

    return more


def both(*writes: Write) -> Write:
    def more(rank: int, writer: RankWriter) -> None:
        for write in writes:
            write(rank, writer)

    return more
