"""Batches of several ranks become one: those of a data set, as its own collator would have made it;
those of a stream, behind one another. What can't be put together says why."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaleproof.observe.replay.joining import (
    UnjoinableError,
    join_by_ids,
    join_recorded,
    leaves,
    with_leaves,
)

Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str


class Graph:
    def __init__(self, x: Tensor) -> None:
        self.x, self.name = x, "graph"


def found(batch: Any) -> dict[str, Tensor]:
    return dict(leaves(batch))


ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])
BATCHES = {
    "tensor": (ONE, [""]),
    "list": ([ONE, TWO], ["/0", "/1"]),
    "named tuple": (Pair(ONE, {"deep": TWO}), ["/0", "/1/deep"]),
    "mapping": ({"x": ONE, 3: [TWO], "text": ["a"]}, ["/x", "/3/0"]),
    "dataclass": (Frozen(ONE, "a"), ["/x"]),
    "object": ((Graph(ONE), 7), ["/0/x"]),
    "no tensor": (["a", 1, None], []),
}


@pytest.mark.parametrize("name", BATCHES)
def test_every_tensor_is_found_and_can_be_replaced(name: str) -> None:
    batch, paths = BATCHES[name]
    assert list(found(batch)) == paths

    changed = with_leaves(batch, {path: torch.tensor([9.0]) for path in paths})

    assert type(changed) is type(batch)
    assert [leaf.item() for leaf in found(changed).values()] == [9.0] * len(paths)
    assert 9.0 not in [leaf.item() for leaf in found(batch).values()], "the batch itself changed"


def test_what_is_no_tensor_stays() -> None:
    changed = with_leaves({"x": ONE, "text": ["a"], "graph": Graph(ONE)}, {"/x": TWO})
    assert (changed["text"], changed["graph"].name) == (["a"], "graph")


# data sets that can be asked again


def padded(rows: list[list[int]], width: int, *, left: bool, value: int = 0) -> Tensor:
    pads = [[value] * (width - len(row)) for row in rows]
    return torch.tensor(
        [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    )


sentences = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4)


@given(of_ranks=st.lists(sentences, min_size=2, max_size=3), left=st.booleans())
@settings(max_examples=60, deadline=None)
def test_ragged_batches_are_padded_as_the_joint_batch_is(
    of_ranks: list[list[list[int]]], left: bool
) -> None:
    everything = [row for rows in of_ranks for row in rows]
    template = {"words": padded(everything, max(map(len, everything)), left=left)}
    batches = [
        {"/words": padded(rows, max(map(len, rows)), left=left, value=0)} for rows in of_ranks
    ]
    joined = join_by_ids(template, batches)
    assert torch.equal(joined["words"], template["words"])


@pytest.mark.parametrize("left", [False, True])
def test_augmented_rows_of_ragged_batches_stand_where_they_belong(left: bool) -> None:
    """A data set that draws: fetched again, some values are others."""
    fetched_again = padded([[1, 2, 3], [4, 5, 6], [7, 8]], 3, left=left)
    first, second = padded([[1, 2, 3], [4, 9, 6]], 3, left=left), padded([[7, 8]], 2, left=left)
    joined = join_by_ids((fetched_again,), [{"/0": first}, {"/0": second}])
    assert joined[0].tolist() == padded([[1, 2, 3], [4, 9, 6], [7, 8]], 3, left=left).tolist()


def test_floats_of_the_ranks_stand_where_the_fetched_ones_differ() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    fetched = [torch.zeros(4, 2), labels]
    of_ranks = [torch.full((3, 2), 5.0), torch.full((1, 2), 6.0)]
    joined = join_by_ids(
        fetched,
        [{"/0": of_ranks[0], "/1": labels[:3]}, {"/0": of_ranks[1], "/1": labels[3:]}],
    )
    assert torch.equal(joined[0], torch.cat(of_ranks))
    assert torch.equal(joined[1], labels)
    assert isinstance(joined, list)


def test_offsets_into_the_joint_batch_are_the_templates() -> None:
    """An index of the rows in the batch, as graph libraries keep one."""
    fetched = {"x": torch.ones(4, 2), "row": torch.arange(4)}
    parts = [{"/x": torch.ones(2, 2), "/row": torch.arange(2)} for _ in range(2)]
    assert join_by_ids(fetched, parts)["row"].tolist() == [0, 1, 2, 3]


def test_nan_is_equal_to_nan() -> None:
    fetched = {"x": torch.tensor([float("nan"), 1.0]), "row": torch.arange(2)}
    parts = [{"/x": torch.tensor([v]), "/row": torch.zeros(1).long()} for v in (float("nan"), 1.0)]
    assert join_by_ids(fetched, parts)["row"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("parts", "fits"),
    [
        ([torch.ones(2, 3), torch.ones(1, 3)], True),
        ([torch.ones(2, 5), torch.ones(1, 3)], False),  # wider than the joint batch
        ([torch.ones(2, 3), torch.ones(2, 3)], False),  # one row too many
        ([torch.ones(2, 3), torch.ones(1, 3).double()], False),
        ([torch.ones(2, 3), None], False),
    ],
)
def test_augmented_items_that_do_not_fit_say_so(parts: list[Any], fits: bool) -> None:
    fetched = {"x": torch.zeros(3, 3), "noise": torch.zeros(3)}
    batches = [{"/noise": torch.ones(2)}, {"/noise": torch.ones(1)}]
    for batch, part in zip(batches, parts, strict=True):
        if part is not None:
            batch["/x"] = part
    if fits:
        assert join_by_ids(fetched, batches)["x"].sum() == 9
        return
    with pytest.raises(UnjoinableError, match=r"not the same when they are fetched again.* at /x"):
        join_by_ids(fetched, batches)


# streams


def test_a_streams_batches_stand_behind_one_another() -> None:
    batches = [{"/x": torch.full((n, 2), float(n)), "/t": torch.ones(())} for n in (3, 1)]
    joined = join_recorded({"x": torch.zeros(9, 2), "t": torch.ones(())}, batches, (3, 1))
    assert joined["x"][:, 0].tolist() == [3, 3, 3, 1]
    assert joined["t"] == 1


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([{"/x": torch.ones(2, 3)}, {"/x": torch.ones(2, 4)}], r"\(2, 3\) and \(2, 4\)"),
        ([{"/x": torch.ones(2, 3)}, {}], "not all built alike"),
        ([{"/x": torch.tensor(1.0)}, {"/x": torch.tensor(2.0)}], r"shapes .*\(\) and \(\)"),
    ],
)
def test_a_streams_batches_that_do_not_fit_say_why(
    batches: list[dict[str, Tensor]], why: str
) -> None:
    with pytest.raises(UnjoinableError, match=why):
        join_recorded({"x": torch.ones(2, 3)}, batches, (2, 2))
