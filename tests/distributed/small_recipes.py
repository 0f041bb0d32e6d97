"""Small recipes for real runs: one that is sound, and one for each way to go wrong."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaleproof.recipes.recipe import Data, Recipe, Split

NUM_TRAIN, NUM_EVALUATION, NUM_FEATURES = 70, 31, 8  # ragged for 2 ranks of 8


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _load_data(data_dir: Path | None) -> Data:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_TRAIN + NUM_EVALUATION, NUM_FEATURES, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    return Data(
        train=Split(inputs=inputs[:NUM_TRAIN], targets=targets[:NUM_TRAIN]),
        evaluation=Split(inputs=inputs[NUM_TRAIN:], targets=targets[NUM_TRAIN:]),
        class_names=("below", "above"),
    )


def _build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)
    )


def _build_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def sound() -> Recipe:
    return Recipe(
        name="small",
        load_data=_load_data,
        build_model=_build_model,
        build_optimizer=_build_optimizer,
        loss=_loss,
        learning_rate=1e-2,
        batch_per_device=8,
        num_epochs=3,
    )


def without_batch_norm() -> Recipe:
    """Nothing in it couples the samples of a batch: N devices must equal one."""
    return dataclasses.replace(
        sound(),
        build_model=lambda: nn.Sequential(
            nn.Linear(NUM_FEATURES, 16), nn.Tanh(), nn.Linear(16, 2)
        ).double(),
        prepare=lambda inputs, draws: inputs.double(),
        build_optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    )


def without_batch_norm_double_batch() -> Recipe:
    return dataclasses.replace(without_batch_norm(), batch_per_device=16)


def wide() -> Recipe:
    """Several blocks of gradients for the average through shared memory."""
    width = 20_000
    return dataclasses.replace(
        without_batch_norm(),
        build_model=lambda: nn.Sequential(
            nn.Linear(NUM_FEATURES, width), nn.Tanh(), nn.Linear(width, 2)
        ).double(),
        learning_rate=1e-4,
    )


def wide_triple_batch() -> Recipe:
    return dataclasses.replace(wide(), batch_per_device=24)


class _CountsSamples(nn.Module):
    """Counts, in a buffer, the samples it was given in training."""

    samples_seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = _build_model()
        self.register_buffer("samples_seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.samples_seen += len(inputs)
        return self.inner(inputs)


def counts_buffers() -> Recipe:
    return dataclasses.replace(sound(), build_model=_CountsSamples)


class _Hooked(nn.Module):
    """A model that does something else on rank 1 in one training forward."""

    def __init__(self, act, at_call: int = 3) -> None:
        super().__init__()
        self.inner = _build_model()
        self._act, self._at_call, self._calls = act, at_call, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and _rank() == 1:
            self._calls += 1
            if self._calls == self._at_call:
                self._act()
        return self.inner(inputs)


def _with_act(act) -> Recipe:
    return dataclasses.replace(sound(), build_model=lambda: _Hooked(act))


def _raise() -> None:
    raise ValueError("the third batch of rank 1 is bad")


def raises_on_rank_1() -> Recipe:
    return _with_act(_raise)


def raises_on_loading() -> Recipe:
    def load(data_dir: Path | None) -> Data:
        raise KeyError("no such column: label")

    return dataclasses.replace(sound(), load_data=load)


def raises_on_building() -> Recipe:
    def build() -> nn.Module:
        raise TypeError("hidden_size must be an int")

    return dataclasses.replace(sound(), build_model=build)


def stuck_on_rank_1() -> Recipe:
    return _with_act(lambda: time.sleep(3600))


def killed_on_rank_1() -> Recipe:
    return _with_act(lambda: os.kill(os.getpid(), signal.SIGKILL))


def mismatched_collective() -> Recipe:
    def act() -> None:
        dist.all_reduce(torch.ones(3 if _rank() == 0 else 4_000_000))

    class BothRanks(_Hooked):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self._calls += 1
                if self._calls == self._at_call and dist.is_initialized():
                    act()
            return self.inner(inputs)

    return dataclasses.replace(sound(), build_model=lambda: BothRanks(act))


def loss_becomes_nan() -> Recipe:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        losses = _loss(outputs, targets)
        return losses * float("nan") if calls > 8 and _rank() == 1 else losses

    return dataclasses.replace(sound(), loss=loss)


class _NoisyOnRank1(torch.optim.Adam):
    """Replicas that part: rank 1 adds something to a weight at every step."""

    def step(self, closure=None):
        result = super().step(closure)
        if _rank() == 1:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(0.01)
        return result


def replicas_part() -> Recipe:
    return dataclasses.replace(
        sound(), build_optimizer=lambda parameters, rate: _NoisyOnRank1(parameters, lr=rate)
    )


def slow() -> Recipe:
    """Long enough to be interrupted."""

    def prepare(inputs: Tensor, draws: Tensor | None) -> Tensor:
        time.sleep(0.05)
        return inputs

    return dataclasses.replace(sound(), prepare=prepare, num_epochs=50)


def prints_a_lot() -> Recipe:
    def prepare(inputs: Tensor, draws: Tensor | None) -> Tensor:
        print("x" * 100_000)
        return inputs

    return dataclasses.replace(sound(), prepare=prepare)


def different_models() -> Recipe:
    return dataclasses.replace(
        sound(), build_model=lambda: nn.Linear(NUM_FEATURES, 2, bias=_rank() == 0)
    )


def wide_without_shared_memory() -> Recipe:
    """As on a machine, or in a container, that has no room to share memory."""
    from scaleproof.strategies import shared_memory

    shared_memory.SHARED_MEMORY_FOLDER = Path("/nowhere")
    return wide()
