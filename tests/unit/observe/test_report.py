"""What a script reports of itself: understood, or left out with a warning, never raised."""

import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

import scaleproof
from scaleproof.observe import report


class Kept:
    """A receiver that keeps what it is given."""

    def __init__(self) -> None:
        self.metrics_seen: list[tuple[int | None, int | None, dict[str, float]]] = []
        self.predictions_seen: list[tuple[Any, ...]] = []

    def metrics(self, epoch: int | None, step: int | None, metrics: Mapping[str, float]) -> None:
        self.metrics_seen.append((epoch, step, dict(metrics)))

    def predictions(self, targets: Any, predictions: Any, sample_ids: Any, epoch: Any) -> None:
        self.predictions_seen.append((targets, predictions, sample_ids, epoch))


@pytest.fixture
def kept() -> Iterator[Kept]:
    receiver = Kept()
    report.set_receiver(receiver)
    yield receiver
    report.set_receiver(None)


class Untouchable:
    """Whoever looks at it is told off."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"somebody looked at {name}")


def test_without_an_observer_nothing_is_looked_at():
    scaleproof.report_metrics(epoch=-1, loss=Untouchable())
    scaleproof.report_predictions(targets=Untouchable(), predictions=Untouchable())
    assert report.dropped() == ()


def test_without_an_observer_neither_torch_nor_numpy_is_imported():
    code = (
        "import sys, scaleproof\n"
        "scaleproof.report_metrics(epoch=0, loss=0.5)\n"
        "scaleproof.report_predictions(targets=[0], predictions=[1])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        np.float32(0.5),
        np.array([0.5]),
        torch.tensor(0.5, requires_grad=True),
        torch.tensor([[0.5]], dtype=torch.bfloat16),
    ],
)
def test_a_metric_is_any_single_number(kept: Kept, value: Any):
    scaleproof.report_metrics(loss=value)
    assert kept.metrics_seen == [(None, None, {"loss": 0.5})]
    assert type(kept.metrics_seen[0][2]["loss"]) is float


def test_whole_numbers_bools_and_what_is_not_finite_are_numbers(kept: Kept):
    scaleproof.report_metrics(
        epoch=np.int64(3), step=7, best=True, count=torch.tensor(4), loss=float("inf")
    )
    expected = {"best": 1.0, "count": 4.0, "loss": float("inf")}
    assert kept.metrics_seen == [(3, 7, expected)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.5", "loss is '0.5', expected real numbers"),
        (None, "loss is of the type NoneType"),
        (1 + 2j, "loss is (1+2j), expected real numbers"),
        (torch.zeros(3), "loss has the shape (3,), expected one number"),
        ([], "loss has the shape (0,), expected one number"),
        ({"a": 1}, "loss is of the type dict"),
        (torch.zeros(2, device="meta"), "loss is of the type Tensor, which can't be read"),
    ],
)
def test_a_wrong_metric_is_left_out_and_the_others_are_kept(kept: Kept, value: Any, expected: str):
    with pytest.warns(UserWarning) as caught:
        scaleproof.report_metrics(epoch=1, loss=value, accuracy=0.9)
    assert expected in str(caught[0].message)
    assert caught[0].filename == __file__  # it points at the script's line, not at ours
    assert kept.metrics_seen == [(1, None, {"accuracy": 0.9})]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"epoch": 1.5, "loss": 1}, "epoch is 1.5, expected a whole number from 0 on"),
        ({"epoch": -1, "loss": 1}, "epoch is -1"),
        ({"step": True, "loss": 1}, "step is True"),
        ({"epoch": {"loss": 1}}, "epoch is of the type dict"),
        ({}, "no metric was given"),
    ],
)
def test_a_call_that_makes_no_sense_is_left_out(kept: Kept, arguments: Any, expected: str):
    with pytest.warns(UserWarning) as caught:
        scaleproof.report_metrics(**arguments)
    assert expected in str(caught[0].message)
    assert kept.metrics_seen == []


def test_it_warns_once_for_each_argument_and_remembers_why(kept: Kept):
    with pytest.warns(UserWarning) as caught:
        for step in range(3):
            scaleproof.report_metrics(step=step, loss="high" * (step + 1), f1="low")
    assert len(caught) == len(report.dropped()) == 2
    assert "'high'" in report.dropped()[0]
    report.set_receiver(Kept())
    assert report.dropped() == ()


def test_where_warnings_are_errors_training_still_goes_on(kept: Kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaleproof.report_metrics(loss="high")
    assert "'high'" in report.dropped()[0]


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [
        ([0, 1, 1], [1, 1, 0]),
        (np.array([0, 1, 1], np.uint8), np.array([True, True, False])),
        (torch.tensor([0.0, 1.0, 1.0], dtype=torch.bfloat16), torch.tensor([1, 1, 0])),
    ],
)
def test_predictions_are_classes_of_any_type(kept: Kept, targets: Any, predictions: Any):
    scaleproof.report_predictions(
        targets=targets, predictions=predictions, sample_ids=torch.tensor([7, 5, 6]), epoch=2
    )
    ((got_targets, got_predictions, ids, epoch),) = kept.predictions_seen
    assert got_targets.tolist() == [0, 1, 1]
    assert got_predictions.tolist() == [1, 1, 0]
    assert ids.tolist() == [7, 5, 6]
    assert epoch == 2
    assert {array.dtype for array in (got_targets, got_predictions, ids)} == {np.dtype(np.int64)}


def test_a_rank_without_samples_reports_none_and_ids_may_be_left_out(kept: Kept):
    scaleproof.report_predictions(targets=[], predictions=torch.zeros(0))
    ((targets, _, ids, epoch),) = kept.predictions_seen
    assert targets.shape == (0,)
    assert ids is None
    assert epoch is None


def test_what_the_script_writes_later_does_not_reach_the_report(kept: Kept):
    predictions = torch.tensor([0, 1])
    scaleproof.report_predictions(targets=[0, 1], predictions=predictions)
    predictions.zero_()
    assert kept.predictions_seen[0][1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"predictions": torch.zeros(3, 10)}, "scores.argmax(dim=1)"),
        ({"predictions": 1}, "predictions has the shape (), expected (num_samples,)"),
        ({"predictions": [0, 1]}, "predictions has 2 entries and targets 3"),
        ({"predictions": [0.9, 0.1, 0.0]}, "predictions has 0.9, expected whole numbers"),
        ({"predictions": [0.0, float("nan"), 0.0]}, "predictions has nan"),
        ({"targets": [0, -100, 1]}, "targets has the class -100"),
        ({"targets": [0, 2**31, 1]}, f"targets has the class {2**31}"),
        ({"targets": ["cat", "dog", "cat"]}, "targets is of the type list, expected real numbers"),
        ({"targets": [[0], [0, 1], [1]]}, "targets is of the type list, which can't be read"),
        ({"sample_ids": [0, 1]}, "sample_ids has 2 entries and targets 3"),
        ({"sample_ids": [0, 1, 2.5]}, "sample_ids has 2.5"),
        ({"sample_ids": np.array([0, 1, 2**63], np.uint64)}, "sample_ids has numbers beyond 64"),
        ({"epoch": "last"}, "epoch is 'last'"),
    ],
)
def test_predictions_that_make_no_sense_are_left_out(kept: Kept, changes: Any, expected: str):
    arguments = {"targets": [0, 1, 1], "predictions": [0, 1, 0], **changes}
    with pytest.warns(UserWarning) as caught:
        scaleproof.report_predictions(**arguments)
    assert expected in str(caught[0].message)
    assert kept.predictions_seen == []
