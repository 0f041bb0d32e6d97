"""Gives the script's loaders, in a replay, what all ranks were given together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.utils.data import Subset
from torch.utils.data.dataloader import _DatasetKind

from scaleproof.evidence.close_ups import ReplayName
from scaleproof.observe.loaders import Pass, to_root
from scaleproof.observe.replay.joining import UnjoinableError, join_by_ids, join_recorded
from scaleproof.observe.replay.material import Material, StoredBatch
from scaleproof.observe.replay.plan import BatchKey, ReplayPlan

NUM_EVALUATION_BATCHES = 1
"""Evaluations change no gradient: they are cut short, but a script may divide by their size."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one rank was given once, in the order in which it is given again."""

    indices: tuple[int, ...] | None
    num_rows: int
    tensors: Mapping[str, Tensor]


@final
class Feeder:
    """Joins the batches of all ranks, one joint batch at a time."""

    def __init__(self, material: Material, plan: ReplayPlan, name: ReplayName) -> None:
        self._material = material
        self._training = frozenset(plan.training)
        self._is_shared = plan.is_shared
        self._continues = plan.continues
        self.only_rank = plan.num_ranks - 1 if name == "last-rank" else None
        self._last_passes = {
            max(key[:2] for key in material.batches if key[0] == loader)
            for loader in {key[0] for key in material.batches}
        }
        self.is_reordered = name == "reordered"
        self.gives_whole_steps = name == "whole-step"
        self._groups: dict[BatchKey, tuple[BatchKey, ...]] = {}
        if name == "whole-step":
            for keys in plan.microbatches:
                self._groups.update(dict.fromkeys(keys, keys))
        self._places: dict[int, tuple[Any, dict[int, int]]] = {}
        self._num_given: dict[tuple[int, int], int] = {}
        self.sizes: tuple[int, ...] = ()
        """Items of each part of the joint batch given last: what BatchNorm normalised together."""

    def next(self, iterator: Any, this: Pass, original: Any) -> Any:
        """The next batch of a pass; raises ``StopIteration`` at its end, ``UnjoinableError``.

        ``original`` makes the batch that the iterator would have made.
        """
        of_pass = (this.info.number, this.number)
        ordinal = self._num_given.get(of_pass, 0)
        self._num_given[of_pass] = ordinal + 1
        if of_pass not in self._training:
            if ordinal >= NUM_EVALUATION_BATCHES:
                raise StopIteration
            return original()
        key = (*of_pass, ordinal)
        parts = [part for one in self._groups.get(key, (key,)) for part in self._parts(one)]
        if not parts:
            if self._continues and of_pass in self._last_passes:
                return original()  # asked for ahead; it is not used any more
            raise StopIteration
        if self.is_reordered:
            parts = [_reversed(part) for part in reversed(parts)]
        self.sizes = tuple(part.num_rows for part in parts)
        tensors = [part.tensors for part in parts]
        if iterator._dataset_kind != _DatasetKind.Map or any(p.indices is None for p in parts):
            return join_recorded(original(), tensors, self.sizes)
        ids = [index for part in parts for index in part.indices or ()]
        return join_by_ids(_fetch(iterator, self._positions(this.data_set, ids)), tensors)

    def _positions(self, data_set: Any, ids: list[int]) -> list[int]:
        """Where the root data set's ids are in ``data_set``: the way back through ``Subset``."""
        if not isinstance(data_set, Subset):
            return ids
        if id(data_set) not in self._places:
            roots = to_root(data_set, range(len(data_set)))
            places = {root: place for place, root in reversed(list(enumerate(roots)))}
            self._places[id(data_set)] = data_set, places
        _, places = self._places[id(data_set)]
        return [places.get(root, root) for root in ids]

    def _parts(self, key: BatchKey) -> list[Part]:
        entries = self._material.batches.get(key, [])
        if self.only_rank is not None:
            entries = [(rank, entry) for rank, entry in entries if rank == self.only_rank]
        elif self._is_shared:
            entries = _once(entries)
        return [
            Part(
                indices=entry.indices,
                num_rows=entry.num_rows,
                tensors=self._material.tensors_of(rank, entry),
            )
            for rank, entry in sorted(entries, key=lambda pair: pair[0])
        ]


def _once(entries: list[tuple[int, StoredBatch]]) -> list[tuple[int, StoredBatch]]:
    """Batches of the same items, once."""
    first = {entry.indices: (rank, entry) for rank, entry in reversed(entries)}
    return [pair for pair in entries if pair in first.values() or pair[1].indices is None]


def _reversed(part: Part) -> Part:
    return Part(
        indices=None if part.indices is None else part.indices[::-1],
        num_rows=part.num_rows,
        tensors={
            path: leaf.flip(0) if leaf.dim() and len(leaf) == part.num_rows else leaf
            for path, leaf in part.tensors.items()
        },
    )


def _fetch(iterator: Any, positions: list[int]) -> Any:
    """The joint batch as the script's own data set and ``collate_fn`` make it."""
    fetcher = iterator._dataset_fetcher
    index = positions if fetcher.auto_collation or len(positions) != 1 else positions[0]
    try:
        return fetcher.fetch(index)
    except (IndexError, KeyError):
        # Its data set is another one than the ranks': the values are theirs in any case.
        length = len(iterator._dataset)
        if length == 0:
            raise UnjoinableError("on one process, the script's data set is empty") from None
        return fetcher.fetch([position % length for position in positions])
