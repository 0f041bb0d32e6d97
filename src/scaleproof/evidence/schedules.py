"""What the learning-rate schedulers of an observed script were made for, and how far they came."""

from typing import final

import msgspec


@final
class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True, tag="schedule"):
    """One scheduler of the script's, written when the process ends. Those inside a
    ``SequentialLR`` or ``ChainedScheduler`` are part of it.

    ``num_planned``: calls of ``step`` until it is over; None when it does not say. ``plan_source``:
    where that stands, like ``T_max``; empty when nowhere. ``num_done``: where it stood in its own
    count when the process ended, with those of a run it was resumed from. ``num_calls``: of
    ``step``, in this process; they came at ``num_moments`` different counts of its optimizer's
    steps, of which it made ``num_optimizer_steps``. ``over_at_step``: how many of these were made
    when it was first over; None when it never was, or had been from the start.
    ``is_decaying``: its last part lowers the rate; one that only warms up may be over long before
    training is.
    """

    schedule: int
    kind: str
    where: str
    optimizer: int
    """As in its OptimizerRecord; -1 when unknown."""
    num_planned: int | None
    plan_source: str
    num_done: int
    num_calls: int
    num_moments: int
    num_optimizer_steps: int
    over_at_step: int | None
    is_decaying: bool
