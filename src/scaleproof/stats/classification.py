# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
"""How good a classifier's predictions are, as counts and shares.

Formulas: those of scikit-learn. Per class, with true positives, false positives and false
negatives: ``precision = tp / (tp + fp)``, ``recall = tp / (tp + fn)``,
``f1 = 2 tp / (2 tp + fp + fn)``; accuracy is the share of correct predictions, balanced accuracy
the mean recall of the classes that occur (Brodersen et al., The balanced accuracy and its
posterior distribution, ICPR 2010). The no-information rate is the accuracy of always naming the
largest class.

Assumes that every sample is there once (``unique_samples`` sees to it) and that the samples stand
for the use the model is meant for.

What the numbers do not mean: how much they would change with another seed or other samples
(``noninferiority.py`` says that); and a high accuracy next to a high no-information rate means
little.
"""

from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from scaleproof.errors import EvidenceError


@final
class ClassificationQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of one set of predictions; tuples have one entry per class.

    ``precision`` is None for a class never predicted, ``recall`` for one that never occurs, ``f1``
    for one that does neither. ``macro_f1`` and ``balanced_accuracy`` are means over the classes
    for which f1 and recall exist. ``mean_loss`` is None when a loss is not finite. ``confusion``
    has the true classes as rows and the predicted ones as columns.
    """

    num_samples: int
    accuracy: float
    balanced_accuracy: float
    no_information_rate: float
    macro_f1: float
    mean_loss: float | None
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]
    support: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]


def unique_samples(table: NDArray[Any]) -> NDArray[Any]:
    """The rows of an ``EVALUATION_TABLE`` sorted by sample id, the first of each id only."""
    ids = table["sample_id"]
    assert bool(np.all(ids[1:] >= ids[:-1])), "the table must be sorted by sample id"
    is_first = np.ones(len(table), dtype=bool)
    is_first[1:] = ids[1:] != ids[:-1]
    return table[is_first]


def measure_classification(
    targets: NDArray[np.int32],
    predictions: NDArray[np.int32],
    losses: NDArray[np.float32],
    *,
    num_classes: int,
) -> ClassificationQuality:
    """Quality of ``predictions`` for ``targets``; all arrays have shape ``(num_samples,)``.

    Raises ``EvidenceError`` when there are no samples, when the lengths differ, or for a class
    outside ``0 .. num_classes - 1``.
    """
    _check_classes(targets, predictions, losses, num_classes)
    labels = np.arange(num_classes)
    # scikit-learn calls f1 undefined only where a class is neither predicted nor there.
    scores: Any = precision_recall_fscore_support(
        targets,
        predictions,
        labels=labels,
        average=None,
        zero_division=np.nan,  # pyright: ignore[reportArgumentType] - documented, not inferred
    )
    precision, recall, f1, support = (np.asarray(values) for values in scores)
    # By hand: scikit-learn's confusion_matrix warns when there is a single class.
    cells = np.bincount(
        targets.astype(np.int64) * num_classes + predictions, minlength=num_classes**2
    )
    matrix = cells.reshape(num_classes, num_classes)
    mean_loss = float(np.mean(losses, dtype=np.float64)) if np.isfinite(losses).all() else None
    return ClassificationQuality(
        num_samples=len(targets),
        accuracy=float(accuracy_score(targets, predictions)),
        balanced_accuracy=float(np.nanmean(recall)),
        no_information_rate=float(np.max(support)) / len(targets),
        macro_f1=float(np.nanmean(f1)),
        mean_loss=mean_loss,
        precision=_none_for_nan(precision),
        recall=_none_for_nan(recall),
        f1=_none_for_nan(f1),
        support=tuple(int(count) for count in support),
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
    )


def _none_for_nan(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)


def _check_classes(
    targets: NDArray[np.int32],
    predictions: NDArray[np.int32],
    losses: NDArray[np.float32],
    num_classes: int,
) -> None:
    if not len(targets) == len(predictions) == len(losses):
        raise EvidenceError(
            f"{len(targets)} targets, {len(predictions)} predictions and {len(losses)} losses, "
            "expected one of each per sample. Restore the record from where the study was made."
        )
    if len(targets) == 0:
        raise EvidenceError(
            "there are no evaluation samples, expected one or more. Evaluate after training."
        )
    for what, classes in (("target", targets), ("prediction", predictions)):
        wrong = np.flatnonzero((classes < 0) | (classes >= num_classes))
        if len(wrong):
            raise EvidenceError(
                f"{what} {classes[wrong[0]]} (row {wrong[0]}) is no class: expected 0 to "
                f"{num_classes - 1}. Name every class in the recipe, and count from 0."
            )
