"""How much each call of a loss function counts in what backward was called on."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from scaleproof.evidence.close_ups import LossArrival
from scaleproof.observe import current
from scaleproof.observe.arrivals import LOSS_FUNCTIONS, MAX_CALLS, Arrivals, patch_losses

TARGET = torch.tensor([0, 2, -100, 1, 2, -100])
"""Six items, two of which are ignored."""


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    for name in LOSS_FUNCTIONS:  # monkeypatch puts the originals back
        monkeypatch.setattr(functional, name, getattr(functional, name))
    monkeypatch.setattr(current, "observer", SimpleNamespace())
    found = Arrivals()
    patch_losses(found)
    yield found


def logits() -> Tensor:
    return torch.randn(6, 3, requires_grad=True)


def only(arrivals: Arrivals, loss: Tensor, scale: float = 1.0) -> LossArrival:
    loss.backward()
    (arrival,) = arrivals.take(scale)
    return arrival


def none_then(reduce: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: reduce(functional.cross_entropy(logits(), TARGET, reduction="none"))


CASES: dict[str, tuple[Callable[[], Tensor], str, int, float]] = {
    "mean": (lambda: functional.cross_entropy(logits(), TARGET), "mean", 4, 1.0),
    "mean, module": (lambda: nn.CrossEntropyLoss()(logits(), TARGET), "mean", 4, 1.0),
    "mean, named": (
        lambda: functional.cross_entropy(input=logits(), target=TARGET),
        "mean",
        4,
        1.0,
    ),
    "mean / 3": (lambda: functional.cross_entropy(logits(), TARGET) / 3, "mean", 4, 1 / 3),
    "sum": (lambda: functional.cross_entropy(logits(), TARGET, reduction="sum"), "sum", 4, 4.0),
    "sum / items": (
        lambda: functional.cross_entropy(logits(), TARGET, reduction="sum") / 4,
        "sum",
        4,
        1.0,
    ),
    "sum / batch": (
        lambda: functional.cross_entropy(logits(), TARGET, reduction="sum") / 6,
        "sum",
        4,
        4 / 6,
    ),
    "none, mean": (none_then(torch.mean), "none", 6, 1.0),
    "none, sum": (none_then(torch.sum), "none", 6, 6.0),
    "none, masked mean": (
        none_then(lambda each: (each * (TARGET != -100)).sum() / (TARGET != -100).sum()),
        "none",
        6,
        1.0,
    ),
    "none, chosen mean": (none_then(lambda each: each[TARGET != -100].mean()), "none", 6, 1.0),
    "another ignore_index": (
        lambda: functional.cross_entropy(logits(), TARGET.clamp(min=0), ignore_index=2),
        "mean",
        4,
        1.0,
    ),
    "nll_loss": (
        lambda: functional.nll_loss(logits().log_softmax(1), TARGET),
        "mean",
        4,
        1.0,
    ),
    "classes of floats": (
        lambda: functional.cross_entropy(logits(), torch.full((6, 3), 1 / 3)),
        "mean",
        18,
        1.0,
    ),
    "mse_loss": (lambda: functional.mse_loss(logits(), torch.ones(6, 3)), "mean", 18, 1.0),
    "mse_loss, sum": (
        lambda: nn.MSELoss(reduction="sum")(logits(), torch.ones(6, 3)) / 18,
        "sum",
        18,
        1.0,
    ),
    "binary": (
        lambda: functional.binary_cross_entropy_with_logits(logits(), torch.ones(6, 3)),
        "mean",
        18,
        1.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weights(arrivals: Arrivals, name: str) -> None:
    make, reduction, num_items, weight = CASES[name]
    arrival = only(arrivals, make())
    assert (arrival.reduction, arrival.num_items) == (reduction, num_items)
    assert arrival.weight == pytest.approx(weight)
    assert arrival.where.startswith("test_arrivals.py:")


@pytest.mark.parametrize(
    ("arguments", "reduction", "num_items"),
    [
        ((None, None, 2), "mean", 4),
        ((None, None, -100, None, "sum"), "sum", 4),
    ],
)
def test_arguments_by_position(
    arrivals: Arrivals, arguments: tuple[Any, ...], reduction: str, num_items: int
) -> None:
    target = TARGET.clamp(min=0) if arguments[2] == 2 else TARGET
    arrival = only(arrivals, functional.cross_entropy(logits(), target, *arguments))
    assert (arrival.reduction, arrival.num_items) == (reduction, num_items)


def test_several_losses_and_what_each_counts(arrivals: Arrivals) -> None:
    values = logits()
    first = functional.cross_entropy(values, TARGET)
    second = functional.mse_loss(values, torch.ones(6, 3))
    (first + 0.1 * second).backward()
    found = {arrival.function: arrival.weight for arrival in arrivals.take(1.0)}
    assert found == {"cross_entropy": pytest.approx(1.0), "mse_loss": pytest.approx(0.1)}


def test_backwards_are_counted(arrivals: Arrivals) -> None:
    for backward in range(3):
        arrivals.backward = backward
        (functional.cross_entropy(logits(), TARGET) / 3).backward()
    found = arrivals.take(1.0)
    assert [arrival.backward for arrival in found] == [0, 1, 2]
    assert {round(arrival.weight or 0, 6) for arrival in found} == {0.333333}
    assert arrivals.take(1.0) == ()
    assert arrivals.backward == 0


def test_the_scale_of_a_grad_scaler_is_taken_out(arrivals: Arrivals) -> None:
    arrival = only(arrivals, functional.cross_entropy(logits(), TARGET) * 1024 / 2, 1024.0)
    assert arrival.weight == pytest.approx(0.5)


def test_an_overflowing_weight_is_unknown(arrivals: Arrivals) -> None:
    for factor in (float("inf"), float("nan")):
        assert only(arrivals, functional.cross_entropy(logits(), TARGET) * factor).weight is None


def test_losses_of_no_gradient_do_not_count(arrivals: Arrivals) -> None:
    with torch.no_grad():
        functional.cross_entropy(logits(), TARGET)
    functional.mse_loss(torch.ones(2), torch.ones(2))
    functional.cross_entropy(logits(), TARGET)  # never backward
    assert arrivals.take(1.0) == ()


def test_only_so_many_calls_are_kept(arrivals: Arrivals) -> None:
    values = logits()
    losses = [functional.mse_loss(values, torch.ones(6, 3)) for _ in range(MAX_CALLS + 3)]
    torch.stack(losses).sum().backward()
    assert len(arrivals.take(1.0)) == MAX_CALLS


def test_a_loss_function_inside_a_loss_function_is_one_call(arrivals: Arrivals) -> None:
    anchor, positive, negative = (torch.randn(4, 3, requires_grad=True) for _ in range(3))
    loss = functional.triplet_margin_with_distance_loss(
        anchor,
        positive,
        negative,
        distance_function=lambda a, b: functional.mse_loss(a, b),
        margin=99.0,
    )
    assert only(arrivals, loss).function == "triplet_margin_with_distance_loss"


def test_a_loss_function_that_fails_leaves_the_next_as_it_was(arrivals: Arrivals) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        functional.cross_entropy(logits(), torch.zeros(2).long())
    assert only(arrivals, functional.cross_entropy(logits(), TARGET)).weight == pytest.approx(1.0)


def test_nothing_is_watched_before_there_is_an_observer(
    arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "observer", None)
    functional.cross_entropy(logits(), TARGET).backward()
    assert arrivals.take(1.0) == ()


def test_gradients_are_what_they_were(arrivals: Arrivals) -> None:
    values = logits()
    functional.cross_entropy(values, TARGET).backward()
    counts = (TARGET != -100).float()
    expected = values.detach().softmax(1) - functional.one_hot(TARGET.clamp(min=0), 3)
    assert values.grad is not None
    assert torch.allclose(values.grad, expected * counts[:, None] / 4, atol=1e-6)
