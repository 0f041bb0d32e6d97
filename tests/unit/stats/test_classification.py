import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from scaleproof.errors import EvidenceError
from scaleproof.evidence.records import EVALUATION_TABLE
from scaleproof.stats.classification import (
    ClassificationQuality,
    measure_classification,
    unique_samples,
)


def measure(
    targets: list[int],
    predictions: list[int],
    losses: list[float] | None = None,
    num_classes: int = 3,
) -> ClassificationQuality:
    return measure_classification(
        np.array(targets, dtype=np.int32),
        np.array(predictions, dtype=np.int32),
        np.array([0.5] * len(targets) if losses is None else losses, dtype=np.float32),
        num_classes=num_classes,
    )


def test_by_hand():
    quality = measure([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], [0, 1, 2, 3, 4, 5], num_classes=2)
    assert quality.accuracy == pytest.approx(4 / 6)
    assert quality.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert quality.no_information_rate == pytest.approx(4 / 6)
    assert quality.precision == pytest.approx((3 / 4, 1 / 2))
    assert quality.recall == pytest.approx((3 / 4, 1 / 2))
    assert quality.f1 == pytest.approx((3 / 4, 1 / 2))
    assert quality.support == (4, 2)
    assert quality.confusion == ((3, 1), (1, 1))
    assert quality.mean_loss == pytest.approx(2.5)
    assert quality.num_samples == 6


def test_what_is_undefined_is_none():
    quality = measure([0, 0, 1], [0, 2, 0], num_classes=4)
    assert quality.precision == (0.5, None, 0.0, None)  # 1 and 3 are never predicted
    assert quality.recall == (0.5, 0.0, None, None)  # 2 and 3 never occur
    assert quality.f1 == (0.5, 0.0, 0.0, None)
    assert quality.balanced_accuracy == pytest.approx(0.25)
    assert quality.macro_f1 == pytest.approx(0.5 / 3)


def test_a_single_class():
    assert measure([0, 0], [0, 0], num_classes=1).confusion == ((2,),)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_has_no_mean(loss: float):
    assert measure([0, 1], [0, 1], [1.0, loss]).mean_loss is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_agrees_with_scikit_learn(pairs: list[tuple[int, int]]):
    targets, predictions = (list(side) for side in zip(*pairs, strict=True))
    quality = measure(targets, predictions)
    assert quality.macro_f1 == pytest.approx(f1_score(targets, predictions, average="macro"))
    if set(predictions) <= set(targets) and len(set(targets)) > 1:  # it warns otherwise
        expected = balanced_accuracy_score(targets, predictions)
        assert quality.balanced_accuracy == pytest.approx(expected)
    assert sum(sum(row) for row in quality.confusion) == len(pairs)


def test_refuses_what_can_not_be_counted():
    with pytest.raises(EvidenceError, match="no evaluation samples"):
        measure([], [])
    with pytest.raises(EvidenceError, match=r"target 3 \(row 1\) is no class: expected 0 to 2"):
        measure([0, 3], [0, 0])
    with pytest.raises(EvidenceError, match=r"prediction -1 \(row 0\) is no class"):
        measure([0], [-1])
    with pytest.raises(EvidenceError, match="2 targets, 1 predictions and 2 losses"):
        measure([0, 1], [0], [0.0, 0.0])


def test_each_sample_counts_once():
    table = np.zeros(5, EVALUATION_TABLE)
    table["sample_id"] = [1, 2, 2, 2, 7]
    table["prediction"] = [0, 1, 2, 3, 4]
    assert unique_samples(table)["prediction"].tolist() == [0, 1, 4]
    assert len(unique_samples(table[:0])) == 0
