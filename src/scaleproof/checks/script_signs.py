"""Where the training losses or the state of an observed script stopped being finite.

In a script's step table NaN means one of two things: the loss is not known, or it is NaN. It is
NaN when it was finite before, never is again, and the weights don't say otherwise.
"""

from collections.abc import Iterator
from typing import final

import msgspec
import numpy as np

from scaleproof.checks.metric_names import is_loss
from scaleproof.checks.script_losses import steps_with_loss
from scaleproof.evidence.observations import (
    MetricRecord,
    Moment,
    OptimizerRecord,
    SnapshotRecord,
    StepFlag,
)
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import TensorKind


@final
class ScriptSign(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not finite, first seen when ``steps_done`` steps were done."""

    what: str
    steps_done: int
    num_steps: int = 0
    """Steps of this rank whose loss is not finite."""


def first_signs(rank: Rank) -> Iterator[ScriptSign]:
    """The first sign of each kind in one rank's evidence, losses first."""
    if (lost := _first_loss(rank)) is not None:
        yield lost
    if (broken := _first_tensor(rank)) is not None:
        yield broken
    for record in rank.of(MetricRecord):
        if record.value is None and is_loss(record.name):
            yield ScriptSign(what=f"the reported {record.name}", steps_done=record.steps_done)
            break


def num_known_losses(rank: Rank) -> int:
    return int(np.count_nonzero(np.isfinite(steps_with_loss(rank)["loss"])))


def _first_loss(rank: Rank) -> ScriptSign | None:
    table = rank.observed_steps
    has_loss = table["num_backwards"] > 0
    # A scaled loss may be infinite at a step that the scaler then left out: that is its job.
    is_scaled = table["flags"] & StepFlag.SCALED > 0
    infinite = np.flatnonzero(has_loss & np.isinf(table["loss"]) & ~is_scaled)
    finite = np.flatnonzero(has_loss & np.isfinite(table["loss"]))
    unknown = np.flatnonzero(has_loss & np.isnan(table["loss"]))
    if len(finite) and not _is_state_finite(rank):
        unknown = unknown[unknown > finite[-1]]
    else:
        unknown = unknown[:0]
    wrong = np.sort(np.concatenate([infinite, unknown]))
    if not len(wrong):
        return None
    return ScriptSign(what="the training loss", steps_done=int(wrong[0]) + 1, num_steps=len(wrong))


def _is_state_finite(rank: Rank) -> bool:
    """Training ended with weights that are finite: then no loss was NaN."""
    ends = [record for record in rank.of(SnapshotRecord) if record.moment is Moment.END]
    weights = [t for record in ends[-1:] for t in record.tensors if t.kind is TensorKind.PARAMETER]
    return bool(weights) and all(tensor.norm is not None for tensor in weights)


def _first_tensor(rank: Rank) -> ScriptSign | None:
    """A trained parameter, or a tensor that was finite before: masks and bounds may hold
    infinities from the start."""
    trained = {
        tensor.name
        for record in rank.of(OptimizerRecord)
        for tensor in record.owned
        if tensor.requires_grad
    }
    was_finite: set[tuple[TensorKind, str]] = set()
    for record in rank.of(SnapshotRecord):
        for tensor in record.tensors:
            key = (tensor.kind, tensor.name)
            is_trained = tensor.kind is TensorKind.PARAMETER and tensor.name in trained
            if tensor.norm is not None:
                was_finite.add(key)
            elif is_trained or key in was_finite:
                what = f"{tensor.kind} {tensor.name!r}"
                return ScriptSign(what=what, steps_done=record.steps_done)
    return None
