"""How training went: loss and accuracy over the samples seen, one curve per run.

Samples seen, not steps: with twice the batch an arm takes half the steps for the same data.
"""

from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.evidence.study import Run, RunStatus, Study
from scaleproof.stats.classification import unique_samples

MAX_TRAINING_POINTS = 120
"""Points kept of a training curve: about as many as a chart can show apart."""


@final
class TrainingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Mean training loss of the steps that end at ``samples_seen``; None when a loss among them
    is not finite."""

    samples_seen: int
    loss: float | None


@final
class EvaluationPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation of all evaluation samples; ``loss`` is None when it is not finite."""

    epochs_done: int
    samples_seen: int
    loss: float | None
    accuracy: float


@final
class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """The curves of one run, as far as it got."""

    arm: str
    seed: int
    status: RunStatus
    training: tuple[TrainingPoint, ...]
    evaluation: tuple[EvaluationPoint, ...]


def measure_curves(study: Study) -> tuple[Curve, ...]:
    """One curve per run that left anything to draw; unfinished runs too."""
    curves = (_curve_of(run) for run in study.runs.values() if _has_all_ranks(run))
    return tuple(curve for curve in curves if curve.training or curve.evaluation)


def _has_all_ranks(run: Run) -> bool:
    # Without every rank's share neither loss nor accuracy is that of the whole batch.
    return run.manifest is not None and len(run.ranks) == run.manifest.num_ranks


def _curve_of(run: Run) -> Curve:
    return Curve(
        arm=run.arm.name,
        seed=run.seed,
        status=run.status,
        training=_training_points(run),
        evaluation=_evaluation_points(run),
    )


def _training_points(run: Run) -> tuple[TrainingPoint, ...]:
    losses = run.step_losses
    samples_seen = np.cumsum(_step_samples(run, len(losses)))
    bins = np.array_split(np.arange(len(losses)), min(len(losses), MAX_TRAINING_POINTS) or 1)
    return tuple(
        TrainingPoint(samples_seen=int(samples_seen[steps[-1]]), loss=_finite_mean(losses[steps]))
        for steps in bins
        if len(steps)
    )


def _step_samples(run: Run, num_steps: int) -> NDArray[np.int64]:
    """Samples of all ranks in each step, shape ``(num_steps,)``."""
    total = np.zeros(num_steps, dtype=np.int64)
    for rank in run.ranks:
        tables = [rank.steps(epoch)["num_samples"] for epoch in rank.epochs]
        if tables:
            total += np.concatenate(tables)[:num_steps]
    return total


def _evaluation_points(run: Run) -> tuple[EvaluationPoint, ...]:
    points: list[EvaluationPoint] = []
    for epochs_done in run.evaluated_epochs:
        table = unique_samples(run.evaluation(epochs_done))
        if len(table) == 0:
            continue
        points.append(
            EvaluationPoint(
                epochs_done=epochs_done,
                samples_seen=sum(
                    epoch.num_samples
                    for rank in run.ranks
                    for epoch in rank.epochs
                    if epoch.epoch < epochs_done
                ),
                loss=_finite_mean(table["loss"]),
                accuracy=float((table["prediction"] == table["target"]).mean()),
            )
        )
    return tuple(points)


def _finite_mean(losses: NDArray[np.floating]) -> float | None:
    if not np.all(np.isfinite(losses)):
        return None
    mean = float(np.mean(losses, dtype=np.float64))
    return mean if np.isfinite(mean) else None
