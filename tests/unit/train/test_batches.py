"""Which samples form which batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaleproof.errors import UsageError
from scaleproof.strategies.strategy import DataShard
from scaleproof.train.batches import ShardEpoch, check_batch_size, global_batches, plan_epoch


def plan_all_shards(
    num_samples: int, global_batch_size: int, num_shards: int, *, seed: int = 0, epoch: int = 0
) -> list[ShardEpoch]:
    return [
        plan_epoch(
            num_samples=num_samples,
            global_batch_size=global_batch_size,
            shard=DataShard(index=index, num_shards=num_shards),
            seed=seed,
            epoch=epoch,
            num_draws=2,
        )
        for index in range(num_shards)
    ]


@given(
    num_shards=st.integers(1, 5),
    batch_per_shard=st.integers(2, 9),
    extra=st.integers(0, 100),
    seed=st.integers(0, 2**31),
)
def test_every_sample_is_fed_exactly_once(
    num_shards: int, batch_per_shard: int, extra: int, seed: int
):
    global_batch_size = num_shards * batch_per_shard
    num_samples = global_batch_size + extra
    shards = plan_all_shards(num_samples, global_batch_size, num_shards, seed=seed)
    fed = torch.cat([shard.sample_ids for shard in shards])
    assert sorted(fed.tolist()) == list(range(num_samples))
    # All shards take the same number of steps, agree on the global batch, and differ by one.
    for parts in zip(*(shard.batches for shard in shards), strict=True):
        sizes = [part.stop - part.start for part in parts]
        assert sum(sizes) == parts[0].num_global_samples
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(2, batch_per_shard)


def test_union_of_shards_is_the_batch_of_one_device():
    (one,) = plan_all_shards(70, 16, 1)
    two = plan_all_shards(70, 16, 2)
    for step, batch in enumerate(one.batches):
        union = torch.cat([s.sample_ids[s.batches[step].start : s.batches[step].stop] for s in two])
        assert union.tolist() == one.sample_ids[batch.start : batch.stop].tolist()


def test_draws_belong_to_the_sample_whoever_is_fed_it():
    (one,) = plan_all_shards(70, 8, 1)
    by_sample = dict(zip(one.sample_ids.tolist(), one.draws.tolist(), strict=True))
    for shard in plan_all_shards(70, 24, 3):
        for sample, draws in zip(shard.sample_ids.tolist(), shard.draws.tolist(), strict=True):
            assert draws == by_sample[sample]


def test_orders_differ_between_epochs_and_seeds():
    orders = {
        tuple(plan_all_shards(50, 10, 1, seed=seed, epoch=epoch)[0].sample_ids.tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [
        (32, [(0, 16), (16, 32)]),
        (35, [(0, 16), (16, 35)]),  # a tail of 3 for 2 shards joins the batch before it
        (36, [(0, 16), (16, 32), (32, 36)]),  # 4 is two for each
        (16, [(0, 16)]),
        (17, [(0, 17)]),
    ],
)
def test_small_tails_join_the_batch_before(num_samples: int, expected: list[tuple[int, int]]):
    assert global_batches(num_samples, 16, 2) == expected


def test_too_few_samples_for_a_global_batch():
    check_batch_size(256, 128, 2)
    with pytest.raises(UsageError, match="global batch of 256, and the data set has 255"):
        check_batch_size(255, 128, 2)
