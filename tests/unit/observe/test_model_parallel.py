"""Which ranks hold other parts of the same model, on a mesh of ranks that are not there."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from scaleproof.observe.model_parallel import model_peers


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Of 4 ranks, this one is the third."""
    dist.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dist.destroy_process_group()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))


def split(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    parallelize_module(model, mesh, {"0": ColwiseParallel()})
    return model


def test_a_model_in_one_piece_has_no_peers(mesh: DeviceMesh):
    assert model_peers([net()]) == ()


def test_tensor_parallel_ranks_are_peers(mesh: DeviceMesh):
    assert model_peers([split(net(), mesh["tp"])]) == (2, 3)


def test_shards_of_fsdp_are_none(mesh: DeviceMesh):
    model = net()
    fully_shard(model, mesh=mesh["dp"])

    assert model_peers([model]) == ()


def test_with_fsdp_the_other_axis_is_left(mesh: DeviceMesh):
    model = split(net(), mesh["tp"])
    fully_shard(model[0], mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])

    assert model_peers([model]) == (2, 3)


def test_experts_spread_over_the_ranks_that_average_are_none(mesh: DeviceMesh):
    model = nn.Sequential(nn.Linear(8, 8), split(net(), mesh["tp"]))
    fully_shard(model[0], mesh=mesh["tp"])

    assert model_peers([model]) == ()


def test_an_axis_of_one_rank_splits_nothing(mesh: DeviceMesh):
    alone = init_device_mesh("cpu", (4, 1), mesh_dim_names=("dp", "tp"))

    assert model_peers([split(net(), alone["tp"])]) == ()


def test_a_replicated_parameter_says_nothing(mesh: DeviceMesh):
    model = net()
    weight = DTensor.from_local(torch.zeros(8), mesh["tp"], [Replicate()], run_check=False)
    model[1].weight = nn.Parameter(weight)

    assert model_peers([model]) == ()


def test_parameters_gathered_whole_before_use_are_none(mesh: DeviceMesh):
    class Gathered(nn.Linear):
        @property
        def weight(self) -> torch.Tensor:  # type: ignore[override]
            raise AssertionError("it takes a collective")

    module = nn.Linear(8, 8)
    shard = DTensor.from_local(torch.zeros(4, 8), mesh["tp"], [Shard(0)], run_check=False)
    module.weight = nn.Parameter(shard)

    assert model_peers([module]) == (2, 3)
    module.__class__ = Gathered
    assert model_peers([module]) == ()


def test_experts_in_one_tensor_are_none(mesh: DeviceMesh):
    experts = nn.Module()
    shard = DTensor.from_local(torch.zeros(2, 8, 8), mesh["tp"], [Shard(0)], run_check=False)
    experts.w1 = nn.Parameter(shard)

    assert model_peers([experts]) == ()
