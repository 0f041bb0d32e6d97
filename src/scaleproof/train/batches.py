"""Which samples form which batch: decided by (seed, epoch) alone, the same on every rank.

Every sample is fed exactly once an epoch whatever the number of shards. A global batch is cut into
shards of as equal size as possible; a tail with fewer than two samples per shard joins the batch
before it, so that no shard is ever empty, or a single sample, which batch normalisation refuses.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from scaleproof.errors import UsageError
from scaleproof.strategies.strategy import DataShard

MIN_SAMPLES_PER_SHARD = 2

_ORDER, _DRAWS = 0, 1  # streams of random numbers, independent of each other


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One shard's part of one global batch: rows ``start`` to ``stop`` of the shard's epoch."""

    start: int
    stop: int
    num_global_samples: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEpoch:
    """What one shard is fed in one epoch.

    ``sample_ids``: int64, shape ``(num_fed,)``, in feeding order. ``draws``: float32, shape
    ``(num_fed, num_draws)``, uniform in [0, 1), the same for a sample whoever is fed it.
    """

    sample_ids: Tensor
    draws: Tensor
    batches: tuple[Batch, ...]


def plan_epoch(
    *,
    num_samples: int,
    global_batch_size: int,
    shard: DataShard,
    seed: int,
    epoch: int,
    num_draws: int,
) -> ShardEpoch:
    """The part of epoch ``epoch`` (from 0) that ``shard`` is fed."""
    order = torch.randperm(num_samples, generator=_generator(seed, epoch, _ORDER))
    draws = torch.rand((num_samples, num_draws), generator=_generator(seed, epoch, _DRAWS))
    batches: list[Batch] = []
    rows: list[Tensor] = []
    position = 0
    for start, stop in global_batches(num_samples, global_batch_size, shard.num_shards):
        low, high = _cut(stop - start, shard)
        rows.append(order[start + low : start + high])
        batches.append(
            Batch(
                start=position,
                stop=position + high - low,
                num_global_samples=stop - start,
            )
        )
        position += high - low
    sample_ids = torch.cat(rows)
    return ShardEpoch(sample_ids=sample_ids, draws=draws[sample_ids], batches=tuple(batches))


def global_batches(
    num_samples: int, global_batch_size: int, num_shards: int
) -> list[tuple[int, int]]:
    """Start and stop of every global batch in the epoch's order."""
    starts = list(range(0, num_samples, global_batch_size))
    if len(starts) > 1 and num_samples - starts[-1] < MIN_SAMPLES_PER_SHARD * num_shards:
        del starts[-1]
    return list(zip(starts, [*starts[1:], num_samples], strict=True))


def check_batch_size(num_samples: int, batch_per_device: int, num_devices: int) -> None:
    """Raise ``UsageError`` when not even one whole global batch can be made."""
    global_batch_size = batch_per_device * num_devices
    if num_samples < global_batch_size:
        raise UsageError(
            f"{num_devices} devices with {batch_per_device} samples each need a global batch of "
            f"{global_batch_size}, and the data set has {num_samples} training samples. Use at "
            f"most {num_samples // batch_per_device} devices, a smaller batch_per_device in the "
            "recipe, or more data."
        )


def _cut(num_samples: int, shard: DataShard) -> tuple[int, int]:
    """The shard's part of ``num_samples`` rows, differing by at most one between shards."""
    low = shard.index * num_samples // shard.num_shards
    high = (shard.index + 1) * num_samples // shard.num_shards
    return low, high


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
