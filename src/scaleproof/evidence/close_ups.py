"""What ``scaleproof check`` records beyond ``observe``: each backward by itself, what clipping was
given, what arrived at the losses, and how the replays of a run on one process ended.
"""

from typing import Literal, final

import msgspec

from scaleproof.evidence.observations import RandomSource
from scaleproof.evidence.records import ArrayRef


@final
class LossArrival(msgspec.Struct, frozen=True, kw_only=True):
    """How much one call of a loss function counts in what backward was called on.

    ``backward`` counts the step's backwards from 0. ``weight`` is 1 when the plain mean over the
    call's own items arrived at backward, whatever the reduction: the sum of the gradient that
    arrives at the call's output, for a sum reduction times its items; not scaled by a
    ``GradScaler``. None when it is not finite.
    """

    backward: int
    function: str
    where: str
    reduction: Literal["mean", "sum", "none"]
    num_items: int
    weight: float | None


@final
class CloseUpRecord(msgspec.Struct, frozen=True, kw_only=True, tag="close-up"):
    """A closer look at the step of a ``ProbeRecord`` (same ``step`` and ``optimizer``, same rows
    and coordinates).

    ``backwards``: float64, shape ``(num_backwards, num_owned, NUM_COORDINATES)``: what each of
    this rank's backwards since the last step of any optimizer produced by itself, before any
    reduction; NaN where it produced nothing or is unknown; the first ``MAX_BACKWARDS`` only.

    ``before_clipping``, of shape ``(num_owned, NUM_COORDINATES)``, and ``before_clipping_norms``,
    shape ``(num_owned,)`` (whole tensors; shards of them), are the gradients that the first
    ``torch.nn.utils.clip_grad_*`` since the last step was given; None when none was called.

    ``drawn``: global random-number generators that the script itself drew from between the
    handing out of a batch and the end of the step (dropout is switched off, and not counted).
    ``drawn_rows``: of the tensors with two rows or more that torch's functions drew in that time,
    permutations left out: by their number of rows, ascending, one digest of all their numbers.
    """

    step: int
    optimizer: int
    backwards: ArrayRef
    before_clipping: ArrayRef | None
    before_clipping_norms: ArrayRef | None
    is_clipped_scaled: bool
    """Clipping was called while the gradients were still multiplied by a ``GradScaler``."""
    clipped_tensors: tuple[int, ...]
    """Rows of the optimizer's tensors that were given to any clipping; empty: none was called."""
    arrivals: tuple[LossArrival, ...]
    backward_where: str
    """``train.py:37``: the script's line that called the step's last backward."""
    clip_where: str
    drawn: tuple[RandomSource, ...]
    drawn_rows: tuple[tuple[int, str], ...] = ()


MAX_BACKWARDS = 64


@final
class CouplingRecord(msgspec.Struct, frozen=True, kw_only=True, tag="coupling"):
    """Modules known to couple the items of a batch, seen in training mode at the first step:
    ``(name, class)``, like ``("layer1.bn1", "BatchNorm2d")``. Without those that synchronise."""

    modules: tuple[tuple[str, str], ...]


@final
class ForcedRecord(msgspec.Struct, frozen=True, kw_only=True, tag="forced"):
    """What the process asked of CUDA or NCCL and was given on the CPU, each once."""

    what: tuple[str, ...]


CloseUp = CloseUpRecord | CouplingRecord | ForcedRecord

ReplayName = Literal["union", "reordered", "whole-step", "last-rank"]
"""``union``: each backward is given what all ranks gave theirs, together; ``reordered``: the same
with the items in another order, which shows rounding; ``whole-step``: where gradients are
accumulated, each backward is given what all ranks gave all backwards of the step; ``last-rank``:
what the last rank alone was given, made only where the union is not explained by the ranks'
gradients: the process is rank 0 now, so that code that depends on the rank shows."""


@final
class ReplayEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a replay of a run on one process ended.

    ``num_steps`` of ``num_wanted`` steps were replayed; ``why_not`` says why not all, and is empty
    when they were.
    """

    schema_version: int
    name: ReplayName
    num_steps: int
    num_wanted: int
    why_not: str
