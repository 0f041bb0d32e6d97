"""What the last evaluation of a run says, class by class: counts, from which checks of accuracy and
recall take their rates."""

from collections.abc import Iterable, Sequence
from typing import final

import msgspec
import numpy as np

from scaleproof.checks.check import Need
from scaleproof.evidence.study import Run, Study

MAX_NUMBERED_CLASSES = 1000
"""With more, numbers that a script reports are the words of a language rather than classes."""


def has_too_many_classes(study: Study) -> bool:
    """The numbers that a script reported are too many to be classes."""
    runs = tuple(study.usable_runs.values())
    return study.is_script and _num_numbered(runs) > MAX_NUMBERED_CLASSES


CLASSES = Need(
    text="named classes: accuracy and recall are of classifiers",
    kind="structure",
    is_met=lambda study: (
        (
            all(_num_numbered((run,)) for run in study.runs_of(study.candidate))
            and not has_too_many_classes(study)
        )
        if study.is_script
        else all(
            run.manifest is not None and run.manifest.class_names
            for run in study.runs_of(study.candidate)
        )
    ),
)


@final
class FinalScores(msgspec.Struct, frozen=True, kw_only=True):
    """Right answers of one run at its last evaluation, each sample counted once.

    ``num_by_class`` and ``num_right_by_class`` are in the order of ``class_names``.
    """

    run: str
    seed: int
    epochs_done: int
    class_names: tuple[str, ...]
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
    runs = tuple(runs)
    names = class_names_of(runs)
    return tuple(scores for run in runs if (scores := _scores_of(run, names)) is not None)


def class_names_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """As the manifests name them, which agree. A script names none: its classes are the numbers
    up to the largest that a final evaluation has."""
    named = [run.manifest.class_names for run in runs if run.manifest is not None]
    if any(named):
        return named[0]
    return tuple(str(number) for number in range(_num_numbered(runs)))


_SIDES = ("target", "prediction")


def _num_numbered(runs: Sequence[Run]) -> int:
    """One more than the largest class number of their final evaluations; 0 without any."""
    tables = [run.final_evaluation for run in runs]
    largest = (int(table[side].max()) for table in tables if len(table) for side in _SIDES)
    return 1 + max(largest, default=-1)


def _scores_of(run: Run, class_names: tuple[str, ...]) -> FinalScores | None:
    table = run.final_evaluation
    if len(table) == 0:
        return None
    # A sample that was scored twice counts once; that it was is for sample-coverage to say.
    _, first = np.unique(table["sample_id"], return_index=True)
    targets, predictions = table["target"][first], table["prediction"][first]
    right = targets[predictions == targets]
    return FinalScores(
        run=run.name,
        seed=run.seed,
        epochs_done=run.final_epochs_done,
        class_names=class_names,
        num_by_class=_counts(targets, len(class_names)),
        num_right_by_class=_counts(right, len(class_names)),
    )


def _counts(classes: np.ndarray[tuple[int], np.dtype[np.int32]], num: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(classes, minlength=num))
