"""What replays are made of: the batches each rank was given and the weights of each step, on disk
until the replays are done.

Tensors are raw bytes in one file per batch or set of weights; one line per file, in the rank's
index, says what is where. Nothing is pickled.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from scaleproof.observe.replay.stored import (
    LoaderLength,
    MaterialIndex,
    OutOfSpace,
    Stored,
    StoredBatch,
    StoredDraws,
    StoredTensor,
    StoredWeights,
    data_of,
    index_of,
    line_of,
)

MAX_BYTES = 2 << 30
"""What one rank may leave at most; replays end where it ends."""


@final
class MaterialWriter:
    """Stores what one rank was given."""

    def __init__(self, folder: Path, rank: int, *, max_bytes: int = MAX_BYTES) -> None:
        self._data = data_of(folder, rank)
        self._data.mkdir(parents=True, exist_ok=True)
        self._index = index_of(folder, rank).open("ab", buffering=0)
        self._left = max_bytes
        self.is_full = False

    def length(self, where: str, length: int) -> None:
        self._write(LoaderLength(where=where, length=length))

    def batch(
        self,
        key: tuple[int, int, int],
        indices: Sequence[int] | None,
        num_rows: int,
        tensors: Iterable[tuple[str, Tensor]],
        *,
        steps_done: int,
    ) -> None:
        """``key``: loader, pass, ordinal."""
        file = "batch-{}-{}-{}.bin".format(*key)
        stored = self._store(file, [(name, t, None, None) for name, t in tensors], steps_done)
        if stored is None:
            return
        self._write(
            StoredBatch(
                loader=key[0],
                number=key[1],
                ordinal=key[2],
                indices=None if indices is None else tuple(indices),
                num_rows=num_rows,
                file=file,
                tensors=stored,
            )
        )

    def draws(self, step: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        file = f"draws-{step}.bin"
        stored = self._store(file, [(name, t, None, None) for name, t in tensors], step - 1)
        if stored is not None:
            self._write(StoredDraws(step=step, file=file, tensors=stored))

    def weights(
        self,
        steps_done: int,
        tensors: Iterable[tuple[str, Tensor, tuple[int, ...] | None, tuple[int, ...] | None]],
    ) -> None:
        """``tensors``: name, values, and of a shard the whole shape and where it begins."""
        file = f"weights-{steps_done}.bin"
        stored = self._store(file, list(tensors), steps_done)
        if stored is not None:
            self._write(StoredWeights(steps_done=steps_done, file=file, tensors=stored))

    def close(self) -> None:
        self._index.close()

    def _store(
        self,
        file: str,
        tensors: list[tuple[str, Tensor, tuple[int, ...] | None, tuple[int, ...] | None]],
        steps_done: int,
    ) -> tuple[StoredTensor, ...] | None:
        size = sum(values.numel() * values.element_size() for _, values, _, _ in tensors)
        if self.is_full or size > self._left:
            if not self.is_full:
                self._write(OutOfSpace(steps_done=steps_done))
            self.is_full = True
            return None
        self._left -= size
        stored: list[StoredTensor] = []
        begin = 0
        with (self._data / file).open("wb") as out:
            for name, values, whole_shape, starts in tensors:
                data = _bytes_of(values)
                out.write(data)
                stored.append(
                    StoredTensor(
                        name=name,
                        dtype=str(values.dtype).removeprefix("torch."),
                        shape=tuple(values.shape),
                        begin=begin,
                        size=len(data),
                        whole_shape=whole_shape,
                        starts=starts,
                    )
                )
                begin += len(data)
        return tuple(stored)

    def _write(self, entry: Stored) -> None:
        self._index.write(line_of(entry))


@final
class Material:
    """What all ranks left, read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.index = index = MaterialIndex(folder)
        self.batches, self.weights, self.draws = index.batches, index.weights, index.draws

    def tensors_of(
        self, rank: int, entry: StoredBatch | StoredWeights | StoredDraws
    ) -> dict[str, Tensor]:
        data = (data_of(self._folder, rank) / entry.file).read_bytes()
        return {stored.name: _tensor_of(data, stored) for stored in entry.tensors}

    def whole_weights(self, steps_done: int) -> Mapping[str, Tensor]:
        """Every parameter and buffer after ``steps_done`` steps; shards are put together."""
        whole: dict[str, Tensor] = {}
        for rank, entry in self.weights.get(steps_done, ()):
            values = self.tensors_of(rank, entry)
            for stored in entry.tensors:
                if stored.whole_shape is None or stored.starts is None:
                    whole.setdefault(stored.name, values[stored.name])
                    continue
                shard = values[stored.name]
                target = whole.setdefault(
                    stored.name, torch.zeros(stored.whole_shape, dtype=shard.dtype)
                )
                target[_region(stored.starts, stored.shape)] = shard
        return whole


def _region(starts: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))


def _bytes_of(values: Tensor) -> bytes:
    host = values.detach().cpu().contiguous().reshape(-1)
    return host.view(torch.uint8).numpy().tobytes() if host.numel() else b""


def _tensor_of(data: bytes, stored: StoredTensor) -> Tensor:
    dtype = getattr(torch, stored.dtype)
    if stored.size == 0:
        return torch.empty(stored.shape, dtype=dtype)
    numbers = np.frombuffer(data, np.uint8, count=stored.size, offset=stored.begin).copy()
    return torch.from_numpy(numbers).view(dtype).reshape(stored.shape)
