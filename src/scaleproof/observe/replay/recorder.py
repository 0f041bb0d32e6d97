"""Keeps what a rank is given and the weights it begins each step with, for replays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from scaleproof.observe.model import is_dtensor, is_sharded
from scaleproof.observe.observer import Observer
from scaleproof.observe.replay.joining import leaves
from scaleproof.observe.replay.material import MaterialWriter

Stored = tuple[str, Tensor, tuple[int, ...] | None, tuple[int, ...] | None]


@final
class Recorder:
    """``num_kept``: steps that will be replayed; nothing is kept beyond."""

    def __init__(self, observer: Observer, folder: Path, num_kept: int) -> None:
        self._observer = observer
        self._folder = folder
        self._num_kept = num_kept
        self._writer: MaterialWriter | None = None
        self._waiting: list[tuple[Any, ...]] = []
        self._lengths: dict[str, int] = {}
        self._num_given: dict[tuple[int, int], int] = {}
        self._is_started = False

    @property
    def _is_done(self) -> bool:
        return self._observer.steps_done >= self._num_kept

    def batch_given(self, iterator: Any, batch: Any, length: int, where: str) -> None:
        """A loader handed out a batch with gradients enabled; ``length`` is the loader's."""
        this = getattr(iterator, "_scaleproof_pass", None)
        if this is None or self._is_done:
            return
        of_pass = (this.info.number, this.number)
        ordinal = self._num_given.get(of_pass, 0)
        self._num_given[of_pass] = ordinal + 1
        self._lengths.setdefault(where, length)
        batch_of = (
            (*of_pass, ordinal),
            None if this.last_ids is None else list(this.last_ids),
            this.last_num_items,
            [(path, tensor.detach().clone()) for path, tensor in leaves(batch)],
        )
        if self._open() is None:
            self._waiting.append(batch_of)  # the rank is known at the first step
        else:
            self._write_batch(*batch_of)

    def forward_begins(self) -> None:
        """A forward in training."""
        if not self._is_started:
            self._is_started = True
            self._first = list(_weights(self._observer, copies=True))

    def step_begins(self) -> None:
        """The first step's gradients are there; its weights are still those it began with."""
        if not self._is_started:
            self.forward_begins()

    def step_ended(self, draws: list[tuple[str, Tensor]]) -> None:
        """The observer has counted it; ``draws``: what the step drew."""
        writer = self._open()
        if writer is None or self._observer.steps_done > self._num_kept:
            return
        if draws:
            writer.draws(self._observer.steps_done, draws)
        if self._observer.steps_done == 1:
            writer.weights(0, self._first)
            self._first = []
        if not self._is_done:  # nobody begins with those after the last step
            writer.weights(self._observer.steps_done, _weights(self._observer, copies=False))

    def _open(self) -> MaterialWriter | None:
        if self._writer is None and self._observer.who is not None:
            self._writer = MaterialWriter(self._folder, self._observer.who.rank)
            for batch_of in self._waiting:
                self._write_batch(*batch_of)
            self._waiting.clear()
        return self._writer

    def _write_batch(self, key: Any, ids: Any, num_items: int, tensors: Any) -> None:
        assert self._writer is not None  # opened by the caller
        steps_done = self._observer.steps_done
        self._writer.batch(key, ids, num_items, tensors, steps_done=steps_done)
        for where, length in self._lengths.items():
            self._writer.length(where, length)
        self._lengths.clear()


def _weights(observer: Observer, *, copies: bool) -> Iterator[Stored]:
    """Of rank 0 everything, of the others their shards. ``copies``: of what will change before it
    is written."""
    is_first = observer.who is None or observer.who.rank == 0
    for tensors in (observer.inventory.parameters(), observer.inventory.buffers()):
        for name, tensor in tensors:
            if is_sharded(tensor):
                yield _shard(name, tensor, copies=copies)
            elif is_first:
                whole: Any = tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
                yield name, _kept(whole, copies=copies), None, None


def _shard(name: str, tensor: Any, *, copies: bool) -> Stored:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, starts = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    local = _kept(tensor.to_local(), copies=copies)
    return name, local, tuple(tensor.shape), tuple(int(start) for start in starts)


def _kept(tensor: Tensor, *, copies: bool) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone() if copies else tensor.detach()
