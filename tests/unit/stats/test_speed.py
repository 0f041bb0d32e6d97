import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scaleproof.errors import EvidenceError, UsageError
from scaleproof.stats.speed import (
    measure_speed_up,
    p_value_at_least,
    repetitions_to_decide_speed,
)


def times(*values: float) -> np.ndarray:
    return np.array(values)


def test_by_hand_over_epochs():
    # log2 ratios 1 and 3: mean 2, standard error 1; the first epoch is warm-up
    speed = measure_speed_up([times(99, 2, 8)], [times(1, 1, 1)], num_devices=4)
    half_width = float(stats.t.ppf(0.975, 1)) * np.log(2)
    assert speed.speed_up == pytest.approx(4)
    assert speed.speed_up_low == pytest.approx(4 * np.exp(-half_width))
    assert speed.speed_up_high == pytest.approx(4 * np.exp(half_width))
    assert speed.efficiency == pytest.approx(1)
    assert speed.time_reduction == pytest.approx(0.75)
    assert speed.time_reduction_high == pytest.approx(1 - 1 / speed.speed_up_high)
    assert speed.baseline_epoch_time_s == 5 and speed.candidate_epoch_time_s == 1
    assert (speed.varies_over, speed.num_runs, speed.num_epoch_pairs) == ("epochs", 1, 2)


def test_three_seeds_count_as_three_observations():
    baseline = [times(9, 2, 2, 2, 2), times(9, 4, 4, 4, 4), times(9, 8, 8, 8, 8)]
    speed = measure_speed_up(baseline, [np.ones(5)] * 3, num_devices=2)
    standard_error = np.std(np.log([2, 4, 8]), ddof=1) / np.sqrt(3)
    assert (speed.varies_over, speed.degrees_of_freedom) == ("runs", 2)
    assert speed.log_standard_error == pytest.approx(standard_error)
    assert speed.speed_up_low == pytest.approx(4 * np.exp(-stats.t.ppf(0.975, 2) * standard_error))


def test_a_single_pair_shows_nothing():
    speed = measure_speed_up([times(9, 2)], [times(9, 1)], num_devices=2)
    assert (speed.speed_up_low, speed.speed_up_high) == (0, np.inf)
    assert (speed.time_reduction_low, speed.time_reduction_high) == (-np.inf, 1)
    assert p_value_at_least(speed, 1.0) == 1
    assert repetitions_to_decide_speed(speed, 1.0) is None


def test_no_variation_gives_an_interval_without_width():
    speed = measure_speed_up([times(9, 2, 2)], [times(9, 1, 1)], num_devices=2)
    assert speed.speed_up_low == speed.speed_up == speed.speed_up_high == pytest.approx(2)
    assert p_value_at_least(speed, 2.5) == 0
    assert p_value_at_least(speed, 1.5) == 1
    assert repetitions_to_decide_speed(speed, 1.5) == 2


def test_a_shorter_run_is_compared_as_far_as_it_goes():
    speed = measure_speed_up(
        [times(9, 2, 2, 2), times(9, 2)], [times(9, 1), times(9)], num_devices=2
    )
    assert (speed.num_runs, speed.num_epoch_pairs) == (1, 1)


def test_the_p_value_agrees_with_the_interval():
    rng = np.random.default_rng(0)
    baseline = [np.exp(rng.normal(0.6, 0.1, 6)) for _ in range(4)]
    speed = measure_speed_up(baseline, [np.ones(6)] * 4, num_devices=2)
    assert p_value_at_least(speed, speed.speed_up_high) == pytest.approx(0.025)
    assert p_value_at_least(speed, speed.speed_up) == pytest.approx(0.5)


@given(
    st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)), min_size=3, max_size=8),
    st.floats(0.01, 100),
)
def test_the_unit_of_time_does_not_matter(pairs: list[tuple[float, float]], unit: float):
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    speed = measure_speed_up([first], [second], num_devices=2)
    scaled = measure_speed_up([first * unit], [second * unit], num_devices=2)
    assert speed.speed_up_low <= speed.speed_up <= speed.speed_up_high
    assert scaled.speed_up == pytest.approx(speed.speed_up)
    assert scaled.speed_up_low == pytest.approx(speed.speed_up_low)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_refuses_a_time_that_is_none(wrong: float):
    with pytest.raises(EvidenceError, match=r"epoch 2 of the candidate's run 1 took .*positive"):
        measure_speed_up([np.ones(3)] * 2, [np.ones(3), times(1, 1, wrong)], num_devices=2)


@pytest.mark.parametrize("baseline", [[], [np.ones(1)], [np.zeros(0)]])
def test_refuses_when_only_warm_up_is_left(baseline: list[np.ndarray]):
    with pytest.raises(EvidenceError, match="no epoch after the warm-up"):
        measure_speed_up(baseline, baseline, num_devices=2)


def test_refuses_what_makes_no_sense():
    with pytest.raises(EvidenceError, match="2 baseline runs and 1 candidate runs"):
        measure_speed_up([np.ones(3)] * 2, [np.ones(3)], num_devices=2)
    with pytest.raises(UsageError, match="confidence is 95"):
        measure_speed_up([np.ones(3)], [np.ones(3)], num_devices=2, confidence=95)
    with pytest.raises(UsageError, match="num_devices is 0"):
        measure_speed_up([np.ones(3)], [np.ones(3)], num_devices=0)


@pytest.mark.parametrize(("num_seeds", "run_spread"), [(3, 0.05), (6, 0.05), (1, 0.0), (2, 0.0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(num_seeds: int, run_spread: float):
    rng = np.random.default_rng(1)
    num_replications, covered, below = 1000, 0, 0
    for _ in range(num_replications):
        drift = rng.normal(0, 0.3, (num_seeds, 8))  # the machine, alike for both arms
        run = rng.normal(0, run_spread, (num_seeds, 1))
        baseline = np.exp(np.log(1.8) + drift + run + rng.normal(0, 0.02, (num_seeds, 8)))
        candidate = np.exp(drift + rng.normal(0, 0.02, (num_seeds, 8)))
        speed = measure_speed_up(list(baseline), list(candidate), num_devices=2)
        covered += speed.speed_up_low <= 1.8 <= speed.speed_up_high
        below += p_value_at_least(speed, 1.8) <= 0.05
    # 95 % and 5 %, with four standard errors of 1000 replications
    assert abs(covered / num_replications - 0.95) < 4 * np.sqrt(0.95 * 0.05 / num_replications)
    assert abs(below / num_replications - 0.05) < 4 * np.sqrt(0.95 * 0.05 / num_replications)
