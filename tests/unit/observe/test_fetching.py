"""Fetches are told apart by the pass that they are of."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from scaleproof.evidence.observations import RandomSource
from scaleproof.observe import fetching
from scaleproof.observe.patch_loaders import _around_fetch


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(2)


class Plain(Noisy):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(2)


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_MapDatasetFetcher, "fetch", _around_fetch(_MapDatasetFetcher.fetch))
    monkeypatch.setattr(fetching, "current", None)


def begin(number: int, data: Dataset[Any], file: Path) -> SimpleNamespace:
    """A pass begins: its iterator, and its look."""
    look = fetching.begin(number, 0, file)
    return SimpleNamespace(items=iter(DataLoader(data, batch_size=2)), look=look)


def take(this: SimpleNamespace) -> None:
    fetching.current = this.look
    next(this.items)


def fetched(file: Path) -> Iterator[fetching.Fetched | None]:
    return (fetching.of_pass(file, loader, 0) for loader in (0, 1))


def test_a_pass_that_begins_in_between_takes_nothing_over(tmp_path: Path):
    file = tmp_path / "fetched.jsonl"
    training = begin(0, Noisy(), file)
    evaluation = begin(1, Plain(), file)
    take(evaluation)
    take(training)
    first, second = fetched(file)

    assert first is not None
    assert second is not None
    assert first.drawn == (RandomSource.TORCH,)
    assert second.drawn == ()


def test_only_the_first_fetches_of_each_pass_are_looked_at(tmp_path: Path):
    file = tmp_path / "fetched.jsonl"
    one, other = begin(0, Noisy(), file), begin(1, Plain(), file)
    for _ in range(4):
        take(one)
        take(other)

    assert len(file.read_bytes().splitlines()) == 2 * fetching.NUM_FETCHES


def test_before_any_pass_began_fetching_goes_on_unseen():
    assert len(list(DataLoader(Noisy(), batch_size=2))) == 4
