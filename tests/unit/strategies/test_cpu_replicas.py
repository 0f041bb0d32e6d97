"""DataParallel on processor cores: the semantics of torch.nn.DataParallel."""

import contextlib

import pytest
import torch
from torch import nn

from scaleproof.strategies.cpu_replicas import CpuReplicas, replicate
from scaleproof.strategies.devices import available_cores


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def wrap(model: nn.Module, num_replicas: int = 2) -> CpuReplicas:
    cores = available_cores()
    return CpuReplicas(
        model,
        cores=[cores[i % len(cores)] for i in range(num_replicas)],
        autocast=contextlib.nullcontext,
    )


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
@pytest.mark.parametrize("num_replicas", [2, 3])
def test_outputs_and_gradients_are_those_of_the_whole_batch(
    model: nn.Module, batch: int, num_replicas: int
):
    inputs = torch.randn(batch, 6, dtype=torch.float64)
    expected = model(inputs)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    replicas = wrap(model, num_replicas)
    outputs = replicas(inputs)
    outputs.square().sum().backward()
    torch.testing.assert_close(outputs, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    replicas.close()


def test_gradients_accumulate_over_two_backwards(model: nn.Module):
    inputs = torch.randn(4, 6, dtype=torch.float64)
    replicas = wrap(model)
    replicas(inputs).sum().backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    replicas(inputs).sum().backward()
    for parameter, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_only_replica_0_keeps_its_buffers():
    model = nn.BatchNorm1d(3, momentum=1.0)
    inputs = torch.cat([torch.zeros(4, 3), torch.ones(4, 3)])
    wrap(model)(inputs)
    assert model.running_mean.tolist() == [0.0] * 3  # of the first half alone
    assert model.num_batches_tracked.item() == 1


def test_attributes_set_on_replicas_are_lost():
    class Counts(nn.Linear):
        calls = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            self.calls += 1
            return super().forward(input)

    model = Counts(6, 2)
    wrap(model)(torch.randn(4, 6))
    assert model.calls == 0


def test_frozen_parameters_get_no_gradient(model: nn.Module):
    model[0].weight.requires_grad_(False)
    wrap(model)(torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


def test_shared_parameters_stay_shared():
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.ReLU(), first)
    copy = replicate(model, 1)
    assert copy[0].weight is copy[2].weight
    inputs = torch.randn(4, 4)
    model(inputs).sum().backward()
    expected = first.weight.grad.clone()
    model.zero_grad()
    wrap(model)(inputs).sum().backward()
    torch.testing.assert_close(first.weight.grad, expected)


def test_an_error_in_a_replica_reaches_the_caller():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        wrap(nn.Linear(5, 2))(torch.randn(4, 6))
