"""The fixed positions at which gradients are probed: the same on every rank."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaleproof.evidence.observations import NUM_COORDINATES


@lru_cache(maxsize=4096)
def positions(numel: int) -> NDArray[np.int64]:
    """Flat positions in a tensor of ``numel`` numbers: all of them, or ``NUM_COORDINATES`` drawn
    once for each size; ascending."""
    if numel <= NUM_COORDINATES:
        return np.arange(numel)
    drawn = np.random.default_rng(numel).choice(numel, NUM_COORDINATES, replace=False)
    return np.sort(drawn)


@lru_cache(maxsize=4096)
def _indices(numel: int, device: torch.device) -> Tensor:
    return torch.from_numpy(positions(numel)).to(device)


def gather(values: Tensor) -> Tensor:
    """The probed numbers of a whole dense tensor, shape ``(min(numel, NUM_COORDINATES),)``."""
    flat = values.detach().reshape(-1)
    return flat[_indices(flat.numel(), flat.device)]


def gather_shard(values: Any) -> NDArray[np.float64]:
    """The same of a DTensor: NaN at positions that this rank does not hold."""
    # A second to import: not for those who have no DTensor.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    wanted = np.stack(np.unravel_index(positions(values.numel()), values.shape), axis=1)
    shape, offset = compute_local_shape_and_global_offset(
        values.shape, values.device_mesh, values.placements
    )
    local = wanted - np.array(offset)
    is_here = ((local >= 0) & (local < np.array(shape))).all(axis=1)
    result = np.full(len(wanted), np.nan)
    if is_here.any():
        index = tuple(torch.from_numpy(column) for column in local[is_here].T)
        result[is_here] = values.to_local().detach()[index].double().cpu().numpy()
    return result


def padded(values: NDArray[Any]) -> NDArray[np.float64]:
    """Shape ``(NUM_COORDINATES,)``; NaN behind what there is."""
    row = np.full(NUM_COORDINATES, np.nan)
    row[: len(values)] = values
    return row
