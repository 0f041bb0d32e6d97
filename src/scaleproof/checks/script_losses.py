"""Training losses of an observed script, step by step, over all ranks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import Need
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run

NUM_PARTS = 5
"""A script without two epochs is cut into so many parts instead."""


def steps_with_loss(rank: Rank) -> NDArray[Any]:
    """Rows of the steps that backward ran for, shape ``(num_steps,)``: of two optimizers that step
    after one backward, the first."""
    table = rank.observed_steps
    return table[table["num_backwards"] > 0]


def _num_losses(run: Run) -> int:
    """Optimizers that each have losses of their own."""
    return len(
        {int(o) for rank in run.ranks for o in np.unique(steps_with_loss(rank)["optimizer"])}
    )


ONE_LOSS = Need(
    text="one training loss: several optimizers with losses of their own, as in a GAN, rise and "
    "fall by design",
    kind="structure",
    is_met=lambda study: (
        not study.is_script or all(_num_losses(run) <= 1 for run in study.runs_of(study.candidate))
    ),
)
KNOWN_LOSS = Need(
    text="a training loss: the script calls backward on something else",
    kind="structure",
    is_met=lambda study: (
        not study.is_script
        or any(len(finite_losses(run)) for run in study.runs_of(study.candidate))
    ),
)


def global_losses(run: Run) -> NDArray[np.float64]:
    """Of each step, shape ``(num_steps,)``: the mean over the ranks' samples; NaN where no rank's
    is known."""
    tables = [steps_with_loss(rank) for rank in run.ranks]
    num_steps = min((len(table) for table in tables), default=0)
    losses = np.array([table["loss"][:num_steps] for table in tables], np.float64)
    counts = np.array([table["num_samples"][:num_steps] for table in tables], np.float64)
    weights = np.where(np.isnan(losses), 0.0, np.where(counts > 0, counts, 1.0))
    total = weights.sum(axis=0)
    sums = (np.where(weights > 0, losses, 0.0) * weights).sum(axis=0)
    return np.where(total > 0, sums / np.where(total > 0, total, 1.0), np.nan)


def finite_losses(run: Run) -> NDArray[np.float64]:
    losses = global_losses(run)
    return losses[np.isfinite(losses)]


def epochs_of_steps(run: Run, num_steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Of the first ``num_steps`` steps with a loss: the epoch of each, its number in that epoch
    (both from 0), and whether these are epochs: with fewer than two, they are equal parts."""
    table = steps_with_loss(run.ranks[0])[:num_steps]
    epochs = table["epoch"].astype(np.int64)
    is_by_epoch = len(np.unique(epochs)) > 1
    if not is_by_epoch:
        epochs = np.arange(num_steps) * NUM_PARTS // max(num_steps, 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(epochs)) + 1])
    sizes = np.diff(np.concatenate([starts, [num_steps]]))
    return epochs, np.arange(num_steps) - np.repeat(starts, sizes), is_by_epoch
