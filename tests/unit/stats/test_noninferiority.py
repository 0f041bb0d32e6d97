import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scaleproof.errors import EvidenceError, UsageError
from scaleproof.stats.noninferiority import (
    NonInferiority,
    RunSpread,
    flip_standard_deviation,
    measure_noninferiority,
    paired_item_standard_error,
    pool_run_spread,
)

FOUR_STANDARD_ERRORS_OF_1000 = 4 * np.sqrt(0.05 * 0.95 / 1000)


def differences(*values: float) -> np.ndarray:
    return np.array(values)


def test_agrees_with_the_t_test_over_seeds():
    values = differences(0.004, -0.002, 0.001, -0.006)
    result = measure_noninferiority(values, margin=0.01)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.90)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    test = stats.ttest_1samp(values, -0.01, alternative="greater")
    assert result.p_value_not_worse == pytest.approx(test.pvalue)
    assert result.p_value_worse == pytest.approx(1 - test.pvalue)
    assert result.run_standard_error == pytest.approx(stats.sem(values))


def test_the_two_errors_add_in_quadrature_with_their_own_quantiles():
    values = differences(0.0, 0.02, 0.01)
    run = stats.t.isf(0.05, 2) * 0.01 / np.sqrt(3)
    item = stats.norm.isf(0.05) * 0.004
    result = measure_noninferiority(values, margin=0.05, item_standard_error=0.004)
    assert result.low == pytest.approx(0.01 - np.hypot(run, item))
    assert result.high == pytest.approx(0.01 + np.hypot(run, item))


def test_p_values_agree_with_the_bounds():
    values = differences(0.004, -0.002, 0.001)
    for num_samples in (None, 500):
        result = measure_noninferiority(
            values, margin=0.01, item_standard_error=0.002, num_samples=num_samples
        )
        at_low = measure_noninferiority(
            values, margin=-result.low, item_standard_error=0.002, num_samples=num_samples
        )
        assert at_low.p_value_not_worse == pytest.approx(0.05)


def test_one_seed_knows_only_the_samples():
    result = measure_noninferiority(differences(0.0), margin=0.01, item_standard_error=0.002)
    assert result.low == pytest.approx(-stats.norm.isf(0.05) * 0.002)
    assert result.run_standard_error is None
    assert result.seeds_to_decide is None


def test_one_seed_without_samples_shows_nothing():
    result = measure_noninferiority(differences(0.0), margin=0.01)
    assert (result.low, result.high) == (-np.inf, np.inf)
    assert (result.p_value_not_worse, result.p_value_worse) == (1, 1)


def test_no_variation_gives_an_interval_without_width():
    result = measure_noninferiority(differences(-0.02, -0.02), margin=0.01)
    assert result.low == result.high == -0.02
    assert (result.p_value_not_worse, result.p_value_worse) == (1, 0)
    on_the_margin = measure_noninferiority(differences(-0.01, -0.01), margin=0.01)
    assert on_the_margin.low == -0.01
    assert on_the_margin.p_value_worse == 0.5
    assert on_the_margin.seeds_to_decide is None


@pytest.mark.parametrize(("num_seeds", "quantile"), [(1, stats.norm.isf(0.05)), (4, 2.3534)])
def test_equal_shares_prove_no_more_than_their_samples_can(num_seeds: int, quantile: float):
    # Wilson's interval at 0 of num_seeds * 36
    result = measure_noninferiority(np.zeros(num_seeds), margin=0.05, num_samples=36)
    expected = quantile**2 / (num_seeds * 36 + quantile**2)
    assert result.low == pytest.approx(-expected, rel=1e-4)
    assert result.high == pytest.approx(expected, rel=1e-4)


@given(
    st.lists(st.integers(-12, 12), min_size=1, max_size=6),
    st.floats(0, 0.3),
    st.sampled_from([0.8, 0.95]),
)
def test_the_interval_holds_the_mean_and_mirrors(
    counts: list[int], item_standard_error: float, confidence: float
):
    values = np.array(counts) / 36

    def measure(values: np.ndarray) -> NonInferiority:
        return measure_noninferiority(
            values,
            margin=0.05,
            confidence=confidence,
            item_standard_error=item_standard_error,
            num_samples=36,
        )

    result, mirrored = measure(values), measure(-values)
    assert -1 <= result.low <= result.mean_difference + 1e-9
    assert result.mean_difference - 1e-9 <= result.high <= 1
    assert mirrored.low == pytest.approx(-result.high)
    assert 0 <= result.p_value_worse <= 1
    if abs(result.low + 0.05) > 1e-6:
        assert (result.low > -0.05) == (result.p_value_not_worse < 1 - confidence)


def test_seeds_to_decide_would_decide():
    values = differences(0.0, -0.012, 0.012)
    result = measure_noninferiority(values, margin=0.01)
    assert result.low < -0.01 and result.seeds_to_decide is not None
    number = result.seeds_to_decide

    def half_width(n: int) -> float:
        return float(stats.t.isf(0.05, n - 1)) * 0.012 / np.sqrt(n)

    assert half_width(number) <= 0.01 < half_width(number - 1)


def test_the_larger_of_own_and_pooled_spread_counts_with_its_degrees_of_freedom():
    pooled = RunSpread(standard_deviation=0.1, degrees_of_freedom=27)
    result = measure_noninferiority(np.zeros(4), margin=0.05, pooled=pooled)
    assert result.high == pytest.approx(stats.t.isf(0.05, 27) * 0.05)
    values = differences(-0.3, 0.3, -0.3, 0.3)
    result = measure_noninferiority(values, margin=0.05, pooled=pooled)
    assert result.high == pytest.approx(stats.t.isf(0.05, 3) * stats.sem(values))


def test_refuses_bad_input():
    with pytest.raises(EvidenceError, match="no difference between the arms"):
        measure_noninferiority(np.zeros(0), margin=0.01)
    with pytest.raises(EvidenceError, match="seed number 1 is nan"):
        measure_noninferiority(differences(0.0, np.nan), margin=0.01)
    with pytest.raises(UsageError, match=r"margin is -0\.01"):
        measure_noninferiority(np.zeros(3), margin=-0.01)
    with pytest.raises(UsageError, match="confidence is 95"):
        measure_noninferiority(np.zeros(3), margin=0.01, confidence=95)


def test_item_error_by_hand():
    # one seed: the plain standard error
    one = np.array([[1.0, 0.0, 0.0, -1.0]])
    assert paired_item_standard_error(one) == pytest.approx(stats.sem(one[0]))
    # the same difference for the same samples in every seed: all of it stays
    assert paired_item_standard_error(np.repeat(one, 3, axis=0)) == pytest.approx(stats.sem(one[0]))
    assert flip_standard_deviation(np.repeat(one, 3, axis=0)) == 0
    # other samples in every seed: nothing stays, all of it is flips
    flips = np.eye(4)
    assert paired_item_standard_error(flips) == 0
    assert flip_standard_deviation(flips) == pytest.approx(np.sqrt(1 / 12))
    assert paired_item_standard_error(np.ones((3, 1))) == 0
    assert flip_standard_deviation(one) == 0


def test_both_errors_together_have_the_variance_of_the_mean():
    rng = np.random.default_rng(0)
    num_seeds, num_samples = 4, 50
    means, variances = [], []
    for _ in range(2000):
        table = (
            rng.normal(0, 1.0, (1, num_samples))
            + rng.normal(0, 0.2, (num_seeds, 1))
            + rng.normal(0, 2.0, (num_seeds, num_samples))
        )
        means.append(table.mean())
        run = table.mean(axis=1).std(ddof=1) ** 2 / num_seeds
        variances.append(run + paired_item_standard_error(table) ** 2)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.15)


def test_pooling_by_hand():
    own = np.array([0.02, 0.04, 0.0])
    flips = np.array([0.02, 0.02, 0.01])
    factor = np.sqrt((0.02**2 + 0.04**2) / (0.02**2 * 2 + 0.01**2))
    spreads = pool_run_spread(own, flips, num_seeds=4)
    assert [one.standard_deviation for one in spreads] == pytest.approx(
        [0.02 * factor, 0.02 * factor, 0.01 * factor]
    )
    assert [one.degrees_of_freedom for one in spreads] == [6, 6, 6]


def test_pooling_without_any_flip_or_other_class():
    nothing = pool_run_spread(np.zeros(2), np.zeros(2), num_seeds=3)
    assert [one.standard_deviation for one in nothing] == [0, 0]
    alone = pool_run_spread(np.array([0.01]), np.array([0.02]), num_seeds=3)
    assert (alone[0].standard_deviation, alone[0].degrees_of_freedom) == (0.02, 2)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_at_the_margin_one_in_twenty_is_passed(num_seeds: int):
    rng = np.random.default_rng(num_seeds)
    wrong = 0
    for _ in range(1000):
        items = rng.normal(0, 0.003)  # the evaluation set's own luck, alike for all seeds
        values = -0.01 + items + rng.normal(0, 0.004, num_seeds)
        result = measure_noninferiority(values, margin=0.01, item_standard_error=0.003)
        wrong += result.low >= -0.01
    assert wrong / 1000 <= 0.05 + FOUR_STANDARD_ERRORS_OF_1000
