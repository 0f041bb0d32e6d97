import numpy as np
import pytest

from scaleproof.checks.epoch_speed import interval_words
from scaleproof.checks.wording import counted, listed, percent, short_percent, signed, times


def test_numbers_are_rounded_for_reading() -> None:
    assert percent(0.986) == "98.6 %"
    assert percent(0.99) == "99.0 %"
    assert short_percent(0.12) == "12 %"
    assert short_percent(0.125) == "12.5 %"
    assert short_percent(1.0) == "100 %"


def test_lists_end_in_and() -> None:
    assert listed([1]) == "1"
    assert listed([1, 2]) == "1 and 2"
    assert listed([1, 2, 3]) == "1, 2 and 3"
    assert listed([1, 2, 3, 4, 5]) == "1, 2, 3 and 2 more"


def test_counts_agree_with_their_noun() -> None:
    assert counted(1, "run") == "1 run"
    assert counted(1200, "run") == "1,200 runs"


@pytest.mark.parametrize(
    ("value", "words"), [(-0.004, "+0.0"), (-1.25, "−1.2"), (3.0, "+3.0"), (0.0, "+0.0")]
)
def test_a_signed_number_has_no_negative_zero(value: float, words: str) -> None:
    assert signed(value, 1) == words


def test_a_factor() -> None:
    assert times(1.847) == "1.85×"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (37.94, 42.4, "37.9 to 42.4 %"),
        (-1.0, 2.0, "−1.0 to 2.0 %"),
        (-np.inf, 100.0, "unbounded to 100.0 %"),
        (0.0, np.inf, "0.0 to unbounded"),
    ],
)
def test_an_interval_is_never_inf(low: float, high: float, words: str) -> None:
    assert interval_words(low, high) == words
