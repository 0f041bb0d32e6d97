"""Digests of what is in a batch, row by row, without keeping any of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaleproof.evidence.writer import digest_of
from scaleproof.observe.ledger import mixed

MAX_ROW_NUMBERS = 1024
"""Rows with more numbers are told apart by this many of them, evenly spaced."""

MAX_APART = 8
"""Tensors of a forward's arguments that have a digest of their own."""

MIN_TELLING_NUMBERS = 8
"""Two ranks may well be given the same tensor of fewer numbers: a time, a class."""

_MAX_DEPTH = 4


def tensors_in(batch: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings, in order."""
    if isinstance(batch, Tensor):
        if not hasattr(batch, "placements"):  # a DTensor is not all here
            yield batch
    elif depth < _MAX_DEPTH:
        parts = batch.values() if isinstance(batch, Mapping) else batch
        if isinstance(batch, list | tuple | Mapping):
            for part in parts:
                yield from tensors_in(part, depth + 1)


def num_rows(batch: Any) -> int | None:
    """How many items a batch holds: the first dim of its first tensor."""
    for tensor in tensors_in(batch):
        return tensor.shape[0] if tensor.dim() else 1
    return len(batch) if isinstance(batch, list | tuple) else None


def row_digests(batch: Any, num_items: int) -> NDArray[np.uint64] | None:
    """One digest per item, of its largest tensor in host memory; None when there is none."""
    candidates = [
        tensor
        for tensor in tensors_in(batch)
        if tensor.dim() > 0
        and tensor.shape[0] == num_items
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.numel() > 0
    ]
    if not candidates:
        return None
    largest = max(candidates, key=lambda tensor: tensor.numel())
    rows = largest.detach().reshape(num_items, -1)
    if rows.shape[1] > MAX_ROW_NUMBERS:
        rows = rows[:, :: -(-rows.shape[1] // MAX_ROW_NUMBERS)]
    if rows.dtype is torch.bool:
        rows = rows.to(torch.uint8)
    return mixed(rows.contiguous().view(torch.uint8).numpy())


def digest_of_inputs(inputs: Any) -> str:
    """One digest for each tensor of a forward's arguments, in order, joined by ``/``; empty when
    there are none. ``~`` before it: the tensor is too small, or too much alike from row to row, to
    say where it came from. All tensors from number ``MAX_APART`` on have one digest.

    Copies what it reads to host memory: at probed steps only.
    """
    digests: list[str] = []
    last: list[bytes] = []
    for tensor in tensors_in(inputs):
        host = tensor.detach().cpu() if tensor.device.type != "cpu" else tensor
        num_items = host.shape[0] if host.dim() else 0
        rows = row_digests(host, num_items) if num_items else None
        if rows is None:
            continue
        if len(digests) == MAX_APART:
            last.append(rows.tobytes())
            continue
        is_alike = num_items > 1 and bool((rows == rows[0]).all())
        is_telling = host.numel() >= MIN_TELLING_NUMBERS and not is_alike
        digests.append(("" if is_telling else "~") + digest_of(rows.tobytes()))
    if last:
        digests.append("~" + digest_of(b"".join(last)))
    return "/".join(digests)
