"""Which state an observed script had in its hands when it went on from a file, and which of it it
put back."""

from typing import final

import msgspec


@final
class OptimizerState(msgspec.Struct, frozen=True, kw_only=True):
    """``num_tensors`` in its parameter groups; ``num_steps`` that the state counts, None when it
    does not say; ``learning_rate``: of the first group before any schedule, None when unknown."""

    num_tensors: int
    num_steps: int | None
    learning_rate: float | None


@final
class StateCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each kind. Of optimizers, those with a state that is not empty; of schedulers,
    those that had been stepped; of ``GradScaler``s, those that are enabled."""

    optimizers: int
    schedulers: int
    scalers: int


@final
class CheckpointRecord(msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint"):
    """A file that ``torch.load`` read before the first step of this process, and that holds the
    state of an optimizer, a scheduler or a ``GradScaler``; written at that step.

    ``file``: as the script named it; empty for a stream. ``restored``: objects of this process that
    any state was loaded into before the step (a scheduler that was started or stepped beyond 0
    counts as restored). ``in_use``: those that there were. ``trained``: what the optimizer that
    made the step has; ``model_share``: of its parameters, those whose values came from this file,
    by name and size.
    """

    file: str
    where: str
    held: StateCounts
    restored: StateCounts
    in_use: StateCounts
    saved: tuple[OptimizerState, ...]
    """One for each of ``held.optimizers``."""
    trained: OptimizerState
    model_share: float
