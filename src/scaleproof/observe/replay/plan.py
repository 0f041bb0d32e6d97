"""What a replay has to do, step by step; written by the parent from what the ranks recorded."""

from pathlib import Path
from typing import final

import msgspec

BatchKey = tuple[int, int, int]
"""Loader, pass and ordinal of a batch."""


@final
class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step as rank 0 made it."""

    optimizer: int
    num_backwards: int


@final
class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """``training``: (loader, pass) of the passes that were trained on. ``microbatches``: where
    gradients are accumulated, the batches of each step, in order; empty otherwise.

    ``lengths``: ``len()`` of the loaders, by the script's line that makes them. ``continues``: the
    ranks' run went on after these steps.

    ``is_shared``: ranks that hold parts of one tensor are given the same batch, which counts once.
    """

    num_ranks: int
    steps: tuple[PlannedStep, ...]
    training: tuple[tuple[int, int], ...]
    microbatches: tuple[tuple[BatchKey, ...], ...]
    lengths: dict[str, int]
    continues: bool
    is_shared: bool


def plan_file(material: Path) -> Path:
    return material / "plan.json"


def read_plan(material: Path) -> ReplayPlan:
    return msgspec.json.decode(plan_file(material).read_bytes(), type=ReplayPlan)
