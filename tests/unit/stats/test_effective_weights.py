import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleproof.stats.effective_weights import MAX_CONDITION, effective_weights


def gradients(num_ranks: int = 2, num_coordinates: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_ranks, num_coordinates))


def test_by_hand() -> None:
    locals_ = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    fit = effective_weights(locals_, np.array([0.5, 1.0, 0.0]))

    assert fit.weights == pytest.approx([0.5, 0.5])
    assert fit.total == pytest.approx(1)
    assert fit.residual == pytest.approx(0)
    assert fit.is_determined


def test_what_no_rank_computed_is_the_residual_by_hand() -> None:
    locals_ = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    fit = effective_weights(locals_, np.array([3.0, 0.0, 4.0]))

    assert fit.weights == pytest.approx([3, 0])
    assert fit.residual == pytest.approx(0.8)  # 4 of |(3, 0, 4)| = 5
    assert fit.errors == pytest.approx([4, 4])  # 4 / sqrt(3 coordinates - 2 weights)


weights_of_ranks = st.lists(st.floats(-4, 4), min_size=1, max_size=8)


@given(weights_of_ranks, st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_known_weights_are_found_whatever_the_size_of_the_gradients(
    weights: list[float], seed: int, size: float
) -> None:
    locals_ = gradients(len(weights), seed=seed) * size
    locals_[0] *= 1e3  # one rank's gradient is far larger than the others'
    fit = effective_weights(locals_, np.array(weights) @ locals_)

    assert fit.is_determined
    assert fit.weights == pytest.approx(weights, abs=1e-8)
    assert fit.total == pytest.approx(sum(weights), abs=1e-8)
    assert fit.residual < 1e-9


@given(weights_of_ranks.filter(lambda w: len(w) > 1), st.integers(0, 1000))
def test_equal_gradients_determine_only_the_sum(weights: list[float], seed: int) -> None:
    locals_ = np.repeat(gradients(1, seed=seed), len(weights), axis=0)
    fit = effective_weights(locals_, np.array(weights) @ locals_)

    assert not fit.is_determined
    assert np.isnan(fit.weights).all()
    assert fit.total == pytest.approx(sum(weights), abs=1e-8)


@given(st.integers(0, 1000), st.sets(st.integers(0, 63), max_size=50))
def test_unknown_coordinates_are_as_if_they_were_not_there(seed: int, unknown: set[int]) -> None:
    locals_ = gradients(3, seed=seed)
    final = 0.2 * locals_.sum(axis=0) + 0.01 * gradients(1, seed=seed + 1)[0]
    kept = [index for index in range(64) if index not in unknown]
    holed = locals_.copy()
    for index in unknown:
        holed[index % 3, index] = [np.nan, np.inf, -np.inf][index % 3]

    with_holes, without = (
        effective_weights(holed, final),
        effective_weights(locals_[:, kept], final[kept]),
    )

    assert with_holes.num_coordinates == len(kept)
    assert np.array_equal(with_holes.weights, without.weights)
    assert with_holes.residual == without.residual


def test_of_three_ranks_two_alike_the_third_is_determined() -> None:
    first, third = gradients(2)
    fit = effective_weights(np.array([first, first, third]), 0.75 * first + 0.25 * third)

    assert np.isnan(fit.weights[:2]).all()
    assert fit.weights[2] == pytest.approx(0.25)
    assert fit.total == pytest.approx(1)


def test_a_zero_gradient_has_no_weight_and_spoils_only_the_total() -> None:
    mine = gradients(1)[0]
    fit = effective_weights(np.array([mine, np.zeros(64)]), 0.5 * mine)

    assert fit.weights[0] == pytest.approx(0.5)
    assert np.isnan(fit.weights[1])
    assert np.isnan(fit.total)


def test_parallel_gradients_of_different_length_determine_nothing() -> None:
    mine = gradients(1)[0]
    fit = effective_weights(np.array([mine, 2 * mine]), mine)

    assert np.isnan(fit.weights).all()
    assert np.isnan(fit.total)
    assert fit.residual < 1e-12


@pytest.mark.parametrize("angle_factor", [1.5, 0.6])
def test_the_condition_rule_is_held_on_both_sides(angle_factor: float) -> None:
    # two unit vectors at the angle 2 a have the condition number 1 / tan(a)
    a = angle_factor / MAX_CONDITION
    first = np.array([np.cos(a), np.sin(a), 0])
    second = np.array([np.cos(a), -np.sin(a), 0])
    fit = effective_weights(np.array([first, second]), (first + second) / 2)

    assert fit.is_determined == (angle_factor > 1)
    assert fit.total == pytest.approx(1)


def test_coordinates_no_more_than_ranks_determine_nothing() -> None:
    locals_ = gradients(2, 2)
    exact = effective_weights(locals_, locals_.mean(axis=0))
    one_more = effective_weights(gradients(2, 3), gradients(2, 3).mean(axis=0))

    assert not exact.is_determined
    assert np.isnan(exact.residual)
    assert one_more.is_determined


def test_nothing_known_and_no_gradient_at_all() -> None:
    unknown = effective_weights(np.full((2, 64), np.nan), np.ones(64))
    zero = effective_weights(np.zeros((2, 64)), np.zeros(64))
    dropped = effective_weights(gradients(2), np.zeros(64))

    assert unknown.num_coordinates == 0
    assert not unknown.is_determined
    assert not zero.is_determined
    assert dropped.weights == pytest.approx([0, 0])
    assert dropped.residual == 0


def test_standard_errors_hold_for_noise() -> None:
    rng = np.random.default_rng(1)
    locals_ = gradients(2)
    misses = []
    for _ in range(300):
        final = 0.5 * locals_.sum(axis=0) + 0.05 * rng.normal(size=64)
        fit = effective_weights(locals_, final)
        misses.append(((fit.weights - 0.5) / fit.errors, (fit.total - 1) / fit.total_error))

    assert np.std([weight for weight, _ in misses]) == pytest.approx(1, abs=0.12)
    assert np.std([total for _, total in misses]) == pytest.approx(1, abs=0.12)
