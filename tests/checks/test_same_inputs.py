import pytest

from scaleproof.checks.same_inputs import most_alike

STEPS = range(10)


def by_step(rank_0: str, rank_1: str) -> list[dict[int, str]]:
    """``{s}`` stands for the step."""
    return [{0: rank_0.format(s=s), 1: rank_1.format(s=s)} for s in STEPS]


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "num_same"),
    [
        pytest.param("tokens {s}", "tokens {s}", 10, id="all of it"),
        pytest.param("tokens {s}/state 0 {s}", "tokens {s}/state 1 {s}", 10, id="a state beside"),
        pytest.param("edges/x {s}/h 0 {s}", "edges/x {s}/h 1 {s}", 10, id="behind a constant"),
        pytest.param("~mask {s}/a {s}", "~mask {s}/b {s}", 0, id="a mask of ones before it"),
        pytest.param("positions/a {s}", "positions/b {s}", 0, id="positions before it"),
        pytest.param("a {s}/time {s}", "b {s}/time {s}", 0, id="a later one says nothing"),
        pytest.param("a {s}", "b {s}", 0, id="nothing"),
        pytest.param("fixed", "fixed", 10, id="the same batch for ever"),
    ],
)
def test_the_first_tensor_that_changes_tells(rank_0: str, rank_1: str, num_same: int) -> None:
    assert most_alike(by_step(rank_0, rank_1)) == (num_same, (0, 1))


def test_the_pair_that_shares_most_is_named() -> None:
    steps = [{0: f"a{s}", 1: f"b{s}", 2: f"b{s}" if s else "c"} for s in STEPS]

    assert most_alike(steps) == (9, (1, 2))


def test_steps_that_one_rank_has_not_are_no_evidence() -> None:
    assert most_alike([{0: "a"}, {1: "a"}]) == (0, (0, 1))
    assert most_alike([]) == (0, (0, 0))
