"""Fingerprints of the training state."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaleproof.evidence.records import SKETCH_SIZE, TensorKind
from scaleproof.observe.state import StateFingerprint


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer):
    return StateFingerprint().take(model.named_parameters(), model.named_buffers(), optimizer)


def stepped_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_parameters_buffers_and_optimizer_state_are_all_there():
    tensors, sketches = fingerprint(*stepped_model())
    names = {(tensor.kind, tensor.name) for tensor in tensors}
    assert (TensorKind.PARAMETER, "0.weight") in names
    assert (TensorKind.BUFFER, "1.running_var") in names
    assert (TensorKind.OPTIMIZER, "0.weight/exp_avg_sq") in names
    assert sketches.shape == (len(tensors), SKETCH_SIZE)
    assert len(names) == len(tensors) == 4 + 3 + 4 * 3


def test_one_changed_bit_changes_one_digest():
    model, optimizer = stepped_model()
    before, _ = fingerprint(model, optimizer)
    with torch.no_grad():
        weight = model[0].weight
        weight[1, 1] = torch.nextafter(weight[1, 1], torch.tensor(torch.inf))
    after, _ = fingerprint(model, optimizer)
    assert [a.name for a, b in zip(after, before, strict=True) if a != b] == ["0.weight"]


def test_a_norm_that_is_not_finite_is_none():
    model, optimizer = stepped_model()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    tensors, _ = fingerprint(model, optimizer)
    assert {t.name for t in tensors if t.norm is None} == {"0.bias"}


@given(size=st.integers(1, 2000), scale=st.floats(1e-6, 1e3), seed=st.integers(0, 1000))
def test_distance_of_sketches_estimates_distance_of_tensors(size: int, scale: float, seed: int):
    """Unbiased, with a relative standard deviation below sqrt(2 / SKETCH_SIZE) (18 %)."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(size, generator=generator)
    other = one + scale * torch.randn(size, generator=generator)
    prints = StateFingerprint()
    sketches = [prints._sketch(values).numpy() for values in (one, other)]
    estimate = np.linalg.norm(sketches[0] - sketches[1])
    distance = float(torch.linalg.vector_norm((one - other).double()))
    assert 0.3 * distance <= estimate <= 2.0 * distance


def test_bf16_and_integer_tensors_have_fingerprints():
    model = nn.Linear(3, 2).to(torch.bfloat16)
    model.register_buffer("count", torch.tensor(7))
    tensors, _ = fingerprint(model, torch.optim.SGD(model.parameters()))
    assert {t.name: t.norm for t in tensors}["count"] == 7.0
