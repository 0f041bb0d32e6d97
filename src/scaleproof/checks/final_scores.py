"""What the last evaluation of a run says, class by class: counts, from which checks of accuracy and
recall take their rates."""

from collections.abc import Iterable
from typing import final

import msgspec
import numpy as np

from scaleproof.checks.check import Need
from scaleproof.evidence.study import Run

CLASSES = Need(
    text="named classes: accuracy and recall are of classifiers",
    kind="structure",
    is_met=lambda study: all(
        run.manifest is not None and run.manifest.class_names
        for run in study.runs_of(study.candidate)
    ),
)


@final
class FinalScores(msgspec.Struct, frozen=True, kw_only=True):
    """Right answers of one run at its last evaluation, each sample counted once.

    ``num_by_class`` and ``num_right_by_class`` are in the order of the manifest's class names.
    """

    run: str
    seed: int
    epochs_done: int
    num_by_class: tuple[int, ...]
    num_right_by_class: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        return sum(self.num_by_class)

    @property
    def num_right(self) -> int:
        return sum(self.num_right_by_class)

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_samples


def final_scores(runs: Iterable[Run]) -> tuple[FinalScores, ...]:
    """One entry per run that has a final evaluation."""
    return tuple(scores for run in runs if (scores := _scores_of(run)) is not None)


def _scores_of(run: Run) -> FinalScores | None:
    assert run.manifest is not None  # the run is usable
    table = run.final_evaluation
    if len(table) == 0:
        return None
    # A sample that was scored twice counts once; that it was is for sample-coverage to say.
    _, first = np.unique(table["sample_id"], return_index=True)
    targets, predictions = table["target"][first], table["prediction"][first]
    num_classes = len(run.manifest.class_names)
    right = targets[predictions == targets]
    return FinalScores(
        run=run.name,
        seed=run.seed,
        epochs_done=run.final_epochs_done,
        num_by_class=_counts(targets, num_classes),
        num_right_by_class=_counts(right, num_classes),
    )


def _counts(classes: np.ndarray[tuple[int], np.dtype[np.int32]], num: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(classes, minlength=num))
