"""In a replay each rank's items are normalised by themselves, as they were."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from scaleproof.observe.replay.batch_norm import normalise_by_parts

SIZES: list[int] = []


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    original = _BatchNorm.forward
    normalise_by_parts(lambda: SIZES)
    yield
    _BatchNorm.forward = original
    SIZES.clear()


def by_themselves(norm: nn.Module, parts: list[torch.Tensor]) -> torch.Tensor:
    SIZES.clear()
    return torch.cat([norm(part) for part in parts])


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(3), (3,)), (nn.BatchNorm2d(3, affine=False), (3, 4, 4))],
)
@pytest.mark.parametrize("sizes", [(4, 4), (5, 2), (2, 3, 4)])
def test_each_part_is_normalised_by_its_own_statistics(
    norm: nn.Module, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    parts = [torch.randn(size, *shape) * (index + 1) + index for index, size in enumerate(sizes)]
    expected = by_themselves(norm, parts)
    whole = norm(torch.cat(parts))
    SIZES[:] = sizes
    assert torch.allclose(norm(torch.cat(parts)), expected, atol=1e-6)
    assert not torch.allclose(whole, expected, atol=1e-2)


def test_the_running_statistics_are_rank_0s() -> None:
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    parts = [torch.randn(4, 2), torch.randn(4, 2) + 9]
    one(parts[0])
    SIZES[:] = (4, 4)
    other(torch.cat(parts))
    expected, found = one.state_dict(), other.state_dict()
    assert found["num_batches_tracked"] == 1
    for name, values in expected.items():
        assert torch.allclose(found[name], values), name


def test_gradients_reach_the_weights_from_every_part() -> None:
    norm = nn.BatchNorm1d(2)
    SIZES[:] = (4, 4)
    norm(torch.randn(8, 2)).square().sum().backward()
    # Normalised values have a mean square of nearly 1 in every part.
    assert norm.weight.grad is not None
    assert torch.allclose(norm.weight.grad, torch.full((2,), 16.0), atol=1e-2)


def test_items_folded_into_the_batch_stay_together() -> None:
    norm = nn.BatchNorm1d(2)
    parts = [torch.randn(4 * 3, 2), torch.randn(2 * 3, 2) + 5]
    expected = by_themselves(norm, parts)
    SIZES[:] = (4, 2)
    assert torch.allclose(norm(torch.cat(parts)), expected, atol=1e-6)


@pytest.mark.parametrize("sizes", [(), (8,), (0, 8), (5, 4)])
def test_without_known_parts_all_is_normalised_together(sizes: tuple[int, ...]) -> None:
    norm, values = nn.BatchNorm1d(2), torch.randn(8, 2)
    SIZES.clear()
    expected = norm(values)
    SIZES[:] = sizes
    assert torch.equal(norm(values), expected)


def test_evaluation_goes_by_the_running_statistics() -> None:
    norm, values = nn.BatchNorm1d(2).eval(), torch.randn(8, 2)
    SIZES[:] = (4, 4)
    assert torch.allclose(norm(values), values, atol=1e-4)


def test_synchronised_norms_are_left_alone() -> None:
    """They were normalised over all ranks' items, and are so here."""
    norm, values = SyncBatchNorm(2), torch.randn(8, 2)
    expected = by_themselves(nn.BatchNorm1d(2), [values])
    SIZES[:] = (4, 4)
    forward = SyncBatchNorm.forward
    assert forward is not _BatchNorm.forward
    try:
        normalised = norm(values)
    except (RuntimeError, ValueError):  # it has no process group here
        return
    assert torch.allclose(normalised, expected, atol=1e-5)
