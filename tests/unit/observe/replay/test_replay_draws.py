"""What ranks drew in a step becomes what one process draws, where it goes by items."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaleproof.observe.replay.draws import MAX_DRAWS, Draws, joined_draws


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    rest=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int32, torch.bool]),
)
@settings(max_examples=50, deadline=None)
def test_draws_by_item_stand_behind_one_another(
    sizes: list[int], rest: list[int], dtype: torch.dtype
) -> None:
    parts = [torch.randint(0, 2, (size, *rest)).to(dtype) for size in sizes]
    joined = joined_draws(torch.zeros(sum(sizes), *rest, dtype=dtype), parts)
    assert joined is not None
    assert torch.equal(joined, torch.cat(parts))


@given(sizes=st.lists(st.integers(2, 5), min_size=2, max_size=3))
@settings(max_examples=30, deadline=None)
def test_each_rank_permutes_its_own_items(sizes: list[int]) -> None:
    parts = [torch.randperm(size) for size in sizes]
    joined = joined_draws(torch.randperm(sum(sizes)), parts)
    assert joined is not None
    assert sorted(joined.tolist()) == list(range(sum(sizes)))
    first = 0
    for part in parts:
        assert (joined[first : first + len(part)] - first).tolist() == part.tolist()
        first += len(part)


def test_one_number_that_all_ranks_drew_alike_is_that_number() -> None:
    joined = joined_draws(torch.tensor(9.0), [torch.tensor(3.0), torch.tensor(3.0)])
    assert joined is not None
    assert joined == 3


@pytest.mark.parametrize(
    ("own", "parts"),
    [
        (torch.ones(()), [torch.tensor(1.0), torch.tensor(2.0)]),  # a scalar per rank
        (torch.ones(4), [torch.ones(4), torch.zeros(4)]),  # a fixed size
        (torch.ones(4), [torch.ones(2), torch.ones(3)]),
        (torch.ones(4, 2), [torch.ones(2, 2), torch.ones(2, 3)]),
        (torch.ones(4), [torch.ones(2), torch.ones(2).double()]),
        (torch.ones(4), []),
    ],
)
def test_draws_that_do_not_go_by_items_are_none(own: Tensor, parts: list[Tensor]) -> None:
    assert joined_draws(own, parts) is None


# the calls of a step


class Told:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.draws = Draws(lambda: self.calls.append("before"), lambda: self.calls.append("after"))
        self.draws.is_open = True

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.draws.around(function)(*args)


def test_calls_are_kept_by_backward_and_call() -> None:
    told = Told()
    first = told.call(torch.rand, 2)
    told.call(torch.randn, 3)
    told.draws.begin_backward()
    told.call(torch.rand, 4)
    assert [name for name, _ in told.draws.kept] == ["0/0", "0/1", "1/0"]
    assert torch.equal(told.draws.kept[0][1], first)
    assert told.calls == ["before", "after"] * 3

    told.draws.begin_step()
    assert told.draws.kept == []
    told.call(torch.rand, 1)
    assert told.draws.kept[0][0] == "0/0"


def test_what_is_kept_is_a_copy() -> None:
    told = Told()
    told.call(torch.rand, 2).zero_()
    assert told.draws.kept[0][1].sum() > 0


def test_nothing_is_kept_where_no_training_batch_was_given() -> None:
    told = Told()
    told.draws.is_open = False
    told.call(torch.rand, 2)
    assert (told.draws.kept, told.calls) == ([], [])


def test_a_draw_inside_a_draw_counts_once() -> None:
    told = Told()

    def nested(size: int) -> Tensor:
        return told.call(torch.rand, size)

    told.call(nested, 2)
    assert len(told.draws.kept) == 1


def test_a_draw_that_fails_leaves_things_as_they_were() -> None:
    told = Told()
    with pytest.raises(RuntimeError):
        told.call(torch.rand, -1)
    told.call(torch.rand, 2)
    assert len(told.draws.kept) == 1


def test_too_many_draws_are_not_kept() -> None:
    told = Told()
    for _ in range(MAX_DRAWS + 5):
        told.call(torch.rand, 1)
    assert len(told.draws.kept) == MAX_DRAWS


def test_a_replay_is_given_what_was_drawn() -> None:
    told = Told()
    told.draws.substitute = lambda name, own: torch.full_like(own, 7.0)
    assert told.call(torch.randn, 2).tolist() == [7, 7]
    in_place = torch.zeros(2)
    assert told.call(torch.Tensor.normal_, in_place) is in_place
    assert in_place.tolist() == [7, 7]
    assert not told.draws.has_missed


def test_a_leaf_that_requires_gradients_still_does() -> None:
    told = Told()
    told.draws.substitute = lambda name, own: torch.full((2,), 7.0)
    drawn = told.draws.around(torch.randn)(2, requires_grad=True)
    assert drawn.requires_grad
    assert drawn.is_leaf


def test_a_draw_that_has_no_substitute_is_missed() -> None:
    told = Told()
    told.draws.substitute = lambda name, own: None
    told.call(torch.rand, 2)
    assert told.draws.has_missed
    told.draws.begin_step()
    assert not told.draws.has_missed
