"""One process is given the joint batch of all ranks, by the script's own data set and collator."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from scaleproof.evidence.close_ups import ReplayName
from scaleproof.observe.loaders import LoaderInfo, Pass
from scaleproof.observe.replay.feeding import Feeder
from scaleproof.observe.replay.joining import UnjoinableError
from scaleproof.observe.replay.material import Material, MaterialWriter
from scaleproof.observe.replay.plan import PlannedStep, ReplayPlan

VALUES = torch.arange(20.0)


class Fed:
    """A loader of one process, fed from what two ranks left in ``folder``."""

    def __init__(
        self,
        folder: Path,
        loader: DataLoader[Any],
        *,
        name: ReplayName = "union",
        training: tuple[tuple[int, int], ...] = ((0, 0),),
        microbatches: tuple[tuple[tuple[int, int, int], ...], ...] = (),
        is_shared: bool = False,
    ) -> None:
        plan = ReplayPlan(
            num_ranks=2,
            steps=(PlannedStep(optimizer=0, num_backwards=1),),
            training=training,
            microbatches=microbatches,
            lengths={},
            continues=False,
            is_shared=is_shared,
        )
        self.feeder = Feeder(Material(folder), plan, name)
        self.iterator: Any = iter(loader)
        self.this = Pass(LoaderInfo(0, 0, "train.py:3"), self.iterator, steps_done=0, epoch=0)
        self.num_own = 0

    def next(self) -> Any:
        def own() -> Any:
            self.num_own += 1
            return _BaseDataLoaderIter.__next__(self.iterator)

        return self.feeder.next(self.iterator, self.this, own)

    def rest(self) -> list[Any]:
        batches = []
        while True:
            try:
                batches.append(self.next())
            except StopIteration:
                return batches


def leave(folder: Path, *of_ranks: list[list[int] | None], values: Any = None) -> None:
    """Of each rank, the ids of its batches; ``values``: what they held, by id."""
    for rank, batches in enumerate(of_ranks):
        writer = MaterialWriter(folder, rank)
        for ordinal, ids in enumerate(batches):
            held = (VALUES if values is None else values[rank])[ids]
            writer.batch((0, 0, ordinal), ids, len(held), [("/0", held)], steps_done=0)
        writer.close()


def loader_of(data_set: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(VALUES) if data_set is None else data_set, 2, **options)


def test_a_joint_batch_holds_the_items_of_all_ranks_in_order(tmp_path: Path) -> None:
    leave(tmp_path, [[3, 1], [7]], [[2], [4, 9]])
    fed = Fed(tmp_path, loader_of())

    assert fed.next()[0].tolist() == [3, 1, 2]
    assert fed.feeder.sizes == (2, 1)
    assert fed.next()[0].tolist() == [7, 4, 9]
    assert fed.rest() == []
    assert fed.num_own == 0


def test_a_rank_that_had_no_more_batches_gives_none(tmp_path: Path) -> None:
    leave(tmp_path, [[0, 1], [2]], [[3, 4]])
    fed = Fed(tmp_path, loader_of())
    assert [batch[0].tolist() for batch in fed.rest()] == [[0, 1, 3, 4], [2]]


def test_reordered_is_the_same_the_other_way_round(tmp_path: Path) -> None:
    leave(tmp_path, [[3, 1]], [[2, 5]])
    fed = Fed(tmp_path, loader_of(), name="reordered")
    assert fed.next()[0].tolist() == [5, 2, 1, 3]


def test_a_whole_step_is_given_to_each_of_its_backwards(tmp_path: Path) -> None:
    leave(tmp_path, [[0], [1], [2]], [[3], [4], [5]])
    groups = (((0, 0, 0), (0, 0, 1)), ((0, 0, 2),))
    fed = Fed(tmp_path, loader_of(), name="whole-step", microbatches=groups)
    assert [batch[0].tolist() for batch in fed.rest()] == [[0, 3, 1, 4], [0, 3, 1, 4], [2, 5]]
    assert Fed(tmp_path, loader_of(), microbatches=groups).next()[0].tolist() == [0, 3]


def test_an_evaluation_is_cut_short_and_its_own(tmp_path: Path) -> None:
    leave(tmp_path, [[0]], [[1]])
    fed = Fed(tmp_path, loader_of(), training=())
    assert [batch[0].tolist() for batch in fed.rest()] == [[0, 1]]
    assert fed.num_own == 1


def test_what_the_ranks_drew_stands_instead_of_what_is_fetched(tmp_path: Path) -> None:
    leave(tmp_path, [[3, 1]], [[2]], values=[VALUES + 0.5, VALUES + 0.25])
    assert Fed(tmp_path, loader_of()).next()[0].tolist() == [3.5, 1.5, 2.25]


def test_ranks_that_share_a_batch_are_given_it_once(tmp_path: Path) -> None:
    leave(tmp_path, [[3, 1], [0]], [[3, 1], [2]])
    fed = Fed(tmp_path, loader_of(), is_shared=True)
    assert [batch[0].tolist() for batch in fed.rest()] == [[3, 1], [0, 2]]
    assert Fed(tmp_path, loader_of()).next()[0].tolist() == [3, 1, 3, 1]


def test_ids_lead_back_through_subsets(tmp_path: Path) -> None:
    leave(tmp_path, [[12]], [[15]])
    chosen = Subset(Subset(TensorDataset(VALUES), range(10, 20)), [5, 2, 0])
    fed = Fed(tmp_path, loader_of(chosen))
    assert fed.next()[0].tolist() == [12, 15]


def test_a_data_set_that_is_another_on_one_process_gives_the_ranks_values(tmp_path: Path) -> None:
    """Each rank cut its own part of the data; one process holds less, or others."""
    leave(tmp_path, [[18, 1]], [[19]])
    assert Fed(tmp_path, loader_of(TensorDataset(VALUES[:3]))).next()[0].tolist() == [18, 1, 19]


class Nothing(Dataset[Any]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def test_an_empty_data_set_is_said(tmp_path: Path) -> None:
    leave(tmp_path, [[0]], [[1]])
    with pytest.raises(UnjoinableError, match="the script's data set is empty"):
        Fed(tmp_path, DataLoader(Nothing(), 2)).next()


class Stream(IterableDataset[Any]):
    def __init__(self, length: int = 9) -> None:
        self.length = length

    def __iter__(self) -> Any:
        return iter([(float(i),) for i in range(self.length)])


def leave_stream(folder: Path, *of_ranks: list[list[float]]) -> None:
    for rank, batches in enumerate(of_ranks):
        writer = MaterialWriter(folder, rank)
        for ordinal, values in enumerate(batches):
            tensors = [("/0", torch.tensor(values, dtype=torch.float64))]
            writer.batch((0, 0, ordinal), None, len(values), tensors, steps_done=0)
        writer.close()


@pytest.mark.parametrize(("name", "expected"), [("union", [5, 6, 7]), ("reordered", [7, 6, 5])])
def test_a_streams_recorded_batches_are_put_together(
    tmp_path: Path, name: ReplayName, expected: list[float]
) -> None:
    leave_stream(tmp_path, [[5, 6]], [[7]])
    fed = Fed(tmp_path, DataLoader(Stream(), 2), name=name)
    assert fed.next()[0].tolist() == expected
    assert (fed.num_own, fed.feeder.sizes[:: 1 if name == "union" else -1]) == (1, (2, 1))


def test_items_of_their_own_collator_are_padded_anew(tmp_path: Path) -> None:
    words = [torch.arange(1, n + 2) for n in range(4)]

    def collate(items: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)

    for rank, ids in enumerate(([0, 1], [3])):
        writer = MaterialWriter(tmp_path, rank)
        batch = collate([words[i] for i in ids])
        writer.batch((0, 0, 0), ids, len(ids), [("", batch)], steps_done=0)
        writer.close()
    fed = Fed(tmp_path, loader_of(SimpleList(words), collate_fn=collate))
    assert fed.next().tolist() == [[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 4]]


class SimpleList(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = SimpleNamespace(all=items)

    def __len__(self) -> int:
        return len(self.items.all)

    def __getitem__(self, index: int) -> Any:
        return self.items.all[index]
