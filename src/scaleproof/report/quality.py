"""How well each arm's model does at the end of training, overall and class by class."""

from collections.abc import Sequence
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.final_scores import class_names_of, has_too_many_classes
from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Study
from scaleproof.report.compared import compared_runs
from scaleproof.stats.classification import (
    ClassificationQuality,
    measure_classification,
    unique_samples,
)

MAX_MATRIX_CLASSES = 20
"""Beyond this, a confusion matrix is unreadable and the most frequent confusions stand for it."""
MAX_CLASSES_LISTED = 20
NUM_CONFUSIONS_LISTED = 12

Matrix = tuple[tuple[int, ...], ...]


@final
class ArmQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of one arm's models after their last evaluation: all seeds' predictions together.

    ``loss`` is None when it is not finite. ``confusion``, rows truth and columns prediction, is
    None for more than ``MAX_MATRIX_CLASSES`` classes. Tuples by seed are in the order of
    ``seeds``.
    """

    arm: str
    seeds: tuple[int, ...]
    epochs_done: tuple[int, ...]
    accuracy_by_seed: tuple[float, ...]
    num_predictions: int
    loss: float | None
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    no_information_rate: float
    confusion: Matrix | None


@final
class ClassScores(msgspec.Struct, frozen=True, kw_only=True):
    """One class in one arm; None where the score is undefined."""

    support: int
    recall: float | None
    precision: float | None
    f1: float | None


@final
class ClassQuality(msgspec.Struct, frozen=True, kw_only=True):
    """One class in both arms; an arm's scores are None when it has no evaluation."""

    index: int
    name: str
    baseline: ClassScores | None
    candidate: ClassScores | None

    @property
    def recall_change(self) -> float | None:
        """Candidate minus baseline; None unless both are defined."""
        if self.baseline is None or self.candidate is None:
            return None
        if self.baseline.recall is None or self.candidate.recall is None:
            return None
        return self.candidate.recall - self.baseline.recall


@final
class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """Samples of class ``truth`` taken for ``prediction``; the shares are of the class's samples,
    None without an evaluation of that arm or without such samples."""

    truth: str
    prediction: str
    baseline_share: float | None
    candidate_share: float | None


@final
class QualityComparison(msgspec.Struct, frozen=True, kw_only=True):
    """``classes`` has all classes in their own order, ``listed`` the indices of those a person is
    shown. ``confusion_change`` is candidate minus baseline in shares of each row."""

    class_names: tuple[str, ...]
    baseline: ArmQuality | None
    candidate: ArmQuality | None
    classes: tuple[ClassQuality, ...]
    listed: tuple[int, ...]
    confusions: tuple[Confusion, ...]
    confusion_change: tuple[tuple[float | None, ...], ...] | None


def compare_quality(study: Study) -> QualityComparison | None:
    """None when no usable run was evaluated after training, and when there are no classes or, of a
    script, too many numbers to be classes."""
    names = _class_names(study)
    if not names:
        return None
    before = _measure(study, study.baseline, len(names)) if study.baseline is not None else None
    after = _measure(study, study.candidate, len(names))
    if before is None and after is None:
        return None
    baseline, baseline_scores = before or (None, None)
    candidate, candidate_scores = after or (None, None)
    classes = tuple(
        ClassQuality(
            index=index,
            name=name,
            baseline=_scores(baseline_scores, index),
            candidate=_scores(candidate_scores, index),
        )
        for index, name in enumerate(names)
    )
    shares = _row_shares(baseline_scores), _row_shares(candidate_scores)
    return QualityComparison(
        class_names=names,
        baseline=baseline,
        candidate=candidate,
        classes=classes,
        listed=_classes_to_list(classes),
        confusions=_top_confusions(names, *shares),
        confusion_change=_confusion_change(*shares),
    )


def _class_names(study: Study) -> tuple[str, ...]:
    if not study.is_script:
        return next((run.manifest.class_names for run in study.runs.values() if run.manifest), ())
    if has_too_many_classes(study):
        return ()
    return class_names_of(tuple(study.usable_runs.values()))


def _measure(
    study: Study, arm: Arm, num_classes: int
) -> tuple[ArmQuality, ClassificationQuality] | None:
    # An evaluation before the first epoch shows the initial weights, not what training came to.
    runs = [run for run in compared_runs(study, arm) if run.final_epochs_done > 0]
    tables = [unique_samples(run.final_evaluation) for run in runs]
    if not any(len(table) for table in tables):
        return None
    table = np.concatenate(tables)
    quality = measure_classification(
        table["target"], table["prediction"], table["loss"], num_classes=num_classes
    )
    return ArmQuality(
        arm=arm.name,
        seeds=tuple(run.seed for run in runs),
        epochs_done=tuple(run.final_epochs_done for run in runs),
        accuracy_by_seed=tuple(
            float((table["prediction"] == table["target"]).mean()) for table in tables
        ),
        num_predictions=quality.num_samples,
        loss=quality.mean_loss,
        accuracy=quality.accuracy,
        balanced_accuracy=quality.balanced_accuracy,
        macro_f1=quality.macro_f1,
        no_information_rate=quality.no_information_rate,
        confusion=quality.confusion if num_classes <= MAX_MATRIX_CLASSES else None,
    ), quality


def _scores(quality: ClassificationQuality | None, index: int) -> ClassScores | None:
    if quality is None:
        return None
    return ClassScores(
        support=quality.support[index],
        recall=quality.recall[index],
        precision=quality.precision[index],
        f1=quality.f1[index],
    )


def _classes_to_list(classes: Sequence[ClassQuality]) -> tuple[int, ...]:
    """All of them in their order when few; otherwise those whose recall fell or rose most, then
    those with the worst recall."""
    if len(classes) <= MAX_CLASSES_LISTED:
        return tuple(range(len(classes)))
    changed = sorted(
        (row for row in classes if row.recall_change),
        key=lambda row: -abs(row.recall_change or 0.0),
    )
    chosen = [row.index for row in changed[: MAX_CLASSES_LISTED // 2]]
    for row in sorted(classes, key=_worst_recall):
        if len(chosen) == MAX_CLASSES_LISTED:
            break
        if row.index not in chosen:
            chosen.append(row.index)
    return tuple(chosen)


def _worst_recall(row: ClassQuality) -> float:
    recalls = [scores.recall for scores in (row.baseline, row.candidate) if scores is not None]
    return min((recall for recall in recalls if recall is not None), default=2.0)


def _row_shares(quality: ClassificationQuality | None) -> NDArray[np.float64] | None:
    """Confusion as shares of each true class, shape ``(num_classes, num_classes)``; NaN in the
    rows of classes that don't occur."""
    if quality is None:
        return None
    counts = np.array(quality.confusion, dtype=np.float64)
    rows = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, rows, out=np.full_like(counts, np.nan), where=rows > 0)


def _top_confusions(
    names: tuple[str, ...],
    baseline: NDArray[np.float64] | None,
    candidate: NDArray[np.float64] | None,
) -> tuple[Confusion, ...]:
    """The off-diagonal cells with the largest share in either arm, largest first."""
    both = [np.nan_to_num(shares) for shares in (baseline, candidate) if shares is not None]
    largest = np.max(both, axis=0)
    np.fill_diagonal(largest, 0.0)
    order = np.argsort(-largest, axis=None, kind="stable")[:NUM_CONFUSIONS_LISTED]
    cells = [divmod(int(flat), len(names)) for flat in order]
    return tuple(
        Confusion(
            truth=names[truth],
            prediction=names[prediction],
            baseline_share=_cell(baseline, truth, prediction),
            candidate_share=_cell(candidate, truth, prediction),
        )
        for truth, prediction in cells
        if largest[truth, prediction] > 0
    )


def _confusion_change(
    baseline: NDArray[np.float64] | None, candidate: NDArray[np.float64] | None
) -> tuple[tuple[float | None, ...], ...] | None:
    if baseline is None or candidate is None or len(baseline) > MAX_MATRIX_CLASSES:
        return None
    change = candidate - baseline
    indices = range(len(change))
    return tuple(tuple(_cell(change, row, column) for column in indices) for row in indices)


def _cell(shares: NDArray[np.float64] | None, row: int, column: int) -> float | None:
    if shares is None or np.isnan(shares[row, column]):
        return None
    return float(shares[row, column])
