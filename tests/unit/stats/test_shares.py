import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleproof.stats.shares import (
    chance_mean_reaches,
    chance_of_at_least,
    chance_of_at_most,
    chance_of_larger_share,
    holm,
    mean_interval,
    wilson_interval,
)


def test_wilson_by_hand() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662
    assert wilson_interval(81, 263, error=0.05) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 10, error=0.05)[0] == 0
    assert wilson_interval(10, 10, error=0.05)[1] == 1


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_a_share(hits_and_samples: tuple[int, int]) -> None:
    hits, samples = hits_and_samples
    lower, upper = wilson_interval(hits, samples, error=0.05)

    assert 0 <= lower <= hits / samples + 1e-12
    assert hits / samples - 1e-12 <= upper <= 1


def test_binomial_tails_by_hand() -> None:
    assert chance_of_at_most(1, 3, 0.5) == pytest.approx(0.5)
    assert chance_of_at_least(2, 3, 0.5) == pytest.approx(0.5)
    assert chance_of_at_least(0, 3, 0.5) == 1
    assert chance_of_at_least(3, 3, 0.5) == pytest.approx(0.125)


def test_mean_interval_by_hand() -> None:
    # mean 2, s 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt(3)
    assert mean_interval([1, 2, 3], error=0.05) == pytest.approx((-0.4841, 4.4841), abs=1e-4)


def test_equal_values_have_no_width_and_no_rounding() -> None:
    assert mean_interval([0.1, 0.1, 0.1], error=0.05) == (0.1, 0.1)
    assert chance_mean_reaches(0.1, [0.1, 0.1, 0.1]) == 1
    assert chance_mean_reaches(0.2, [0.1, 0.1, 0.1]) == 0


def test_one_value_has_no_spread() -> None:
    with pytest.raises(AssertionError):
        mean_interval([1.0], error=0.05)


def test_chance_of_the_mean_agrees_with_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=5).tolist()
    _, upper = mean_interval(values, error=0.05)

    assert chance_mean_reaches(upper, values) == pytest.approx(0.025)


def test_fisher_by_hand() -> None:
    # all 3 hits among the first 3 of 6: 1 of the 20 ways to choose
    assert chance_of_larger_share(3, 3, 0, 3) == pytest.approx(1 / 20)
    assert chance_of_larger_share(0, 3, 0, 3) == 1


def test_holm_by_hand() -> None:
    assert holm([]) == ()
    assert holm([0.03]) == pytest.approx((0.03,))
    assert holm([0.04, 0.01, 0.03]) == pytest.approx((0.06, 0.03, 0.06))
