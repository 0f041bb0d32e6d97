import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaleproof.errors import UsageError
from scaleproof.recipes.learning_rate import default_rule, scaled_rate, warmup_factor


class LargeBatchSGD(torch.optim.SGD):
    """A user's own variant."""


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        (torch.optim.SGD, "linear"),
        (torch.optim.ASGD, "linear"),
        (LargeBatchSGD, "linear"),
        (torch.optim.Adam, "sqrt"),
        (torch.optim.AdamW, "sqrt"),
        (torch.optim.RMSprop, "sqrt"),
        (torch.optim.Adagrad, "sqrt"),
    ],
)
def test_the_default_rule_follows_the_optimizer(
    optimizer: type[torch.optim.Optimizer], rule: str
) -> None:
    parameters = nn.Linear(1, 1).parameters()
    assert default_rule(optimizer(parameters, lr=0.1)) == rule  # pyright: ignore[reportCallIssue]


def test_rates_for_four_devices() -> None:
    assert scaled_rate("none", 0.1, 4) == 0.1
    assert scaled_rate("linear", 0.1, 4) == pytest.approx(0.4)
    assert scaled_rate("sqrt", 0.1, 4) == pytest.approx(0.2)


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt"])
def test_one_device_keeps_its_rate(rule: str) -> None:
    assert scaled_rate(rule, 0.3, 1) == 0.3  # pyright: ignore[reportArgumentType]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'cubic'.*none, linear or sqrt"):
        scaled_rate("cubic", 0.1, 2)  # pyright: ignore[reportArgumentType]


def test_no_device_is_refused() -> None:
    with pytest.raises(UsageError, match="0 devices, expected at least 1"):
        scaled_rate("sqrt", 0.1, 0)


def test_the_warmup_is_a_line_from_the_rate_for_one_device() -> None:
    factors = [
        warmup_factor(epoch / 16, num_epochs=16, warmup_epochs=4, scale=2.0)
        for epoch in (0, 1, 2, 3, 4, 15)
    ]
    assert factors == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0, 1.0])


def test_without_warmup_the_scaled_rate_is_used_at_once() -> None:
    assert warmup_factor(0.0, num_epochs=16, warmup_epochs=0, scale=8.0) == 1.0


progresses = st.floats(0, 1)
epochs = st.integers(1, 300)
warmups = st.floats(0, 20)
scales = st.floats(1, 1024)


@given(progress=progresses, num_epochs=epochs, warmup_epochs=warmups, scale=scales)
def test_the_factor_stays_between_the_two_rates(
    progress: float, num_epochs: int, warmup_epochs: float, scale: float
) -> None:
    factor = warmup_factor(
        progress, num_epochs=num_epochs, warmup_epochs=warmup_epochs, scale=scale
    )
    assert 1 / scale <= factor <= 1 + 1e-12


@given(first=progresses, second=progresses, num_epochs=epochs, warmup_epochs=warmups, scale=scales)
def test_the_factor_never_falls(
    first: float, second: float, num_epochs: int, warmup_epochs: float, scale: float
) -> None:
    earlier, later = (
        warmup_factor(progress, num_epochs=num_epochs, warmup_epochs=warmup_epochs, scale=scale)
        for progress in sorted((first, second))
    )
    assert earlier <= later + 1e-12


@given(progress=progresses, num_epochs=epochs, warmup_epochs=warmups)
def test_one_device_has_no_warmup(progress: float, num_epochs: int, warmup_epochs: float) -> None:
    factor = warmup_factor(progress, num_epochs=num_epochs, warmup_epochs=warmup_epochs, scale=1.0)
    assert math.isclose(factor, 1.0)
