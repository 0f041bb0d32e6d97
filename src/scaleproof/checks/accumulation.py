"""Which steps add up the gradients of several batches: what two checks of them share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.probes import StepProbe
from scaleproof.evidence.observations import OBSERVED_STEP_TABLE
from scaleproof.evidence.study import Run

_MIN_BATCHES = 0.9
"""Batches for each backward: the end of an epoch may leave some over, a loader look ahead."""


def batches_per_backward(run: Run) -> Mapping[int, float | None]:
    """By optimizer, over all its steps of all ranks: a loader that looks one batch ahead shifts
    single steps. None where no loader handed out batches."""
    table: NDArray[Any] = np.concatenate(
        [np.zeros(0, OBSERVED_STEP_TABLE), *(rank.observed_steps for rank in run.ranks)]
    )
    found: dict[int, float | None] = {}
    for optimizer in sorted({int(number) for number in table["optimizer"]}):
        own = table[table["optimizer"] == optimizer]
        num_batches, num_backwards = int(own["num_batches"].sum()), int(own["num_backwards"].sum())
        is_known = num_batches > 0 and num_backwards > 0
        found[optimizer] = num_batches / num_backwards if is_known else None
    return found


def accumulates(probe: StepProbe, batches: float | None) -> bool:
    """Two or more backwards on every rank, each on a batch of its own; a GAN's two backwards on one
    batch are none, and neither is what no loader fed."""
    is_one_each = batches is not None and batches >= _MIN_BATCHES
    return is_one_each and min(record.num_backwards for record in probe.records) >= 2
