import numpy as np
import pytest
from scipy import stats

from scaleproof.stats.sample_size import repetitions_to_decide


def test_the_number_found_decides_and_one_less_does_not():
    number = repetitions_to_decide(gap=0.01, standard_deviation=0.02, tail=0.05)
    assert number is not None

    def half_width(n: int) -> float:
        return float(stats.t.isf(0.05, n - 1)) * 0.02 / np.sqrt(n)

    assert half_width(number) <= 0.01 < half_width(number - 1)


def test_without_variation_two_repetitions_decide():
    assert repetitions_to_decide(gap=0.01, standard_deviation=0.0, tail=0.05) == 2


@pytest.mark.parametrize(
    ("gap", "deviation", "fixed"),
    [
        (0.0, 0.1, 0.0),  # the mean sits on the limit
        (0.001, 0.1, 0.0),  # more than a thousand
        (0.01, 0.001, 0.02),  # what repeating can't shrink is too wide already
        (0.01, np.inf, 0.0),
        (np.inf, 0.1, 0.0),
    ],
)
def test_none_when_no_sensible_number_decides(gap: float, deviation: float, fixed: float):
    number = repetitions_to_decide(
        gap=gap, standard_deviation=deviation, tail=0.05, fixed_half_width=fixed
    )
    assert number is None
