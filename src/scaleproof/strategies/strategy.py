"""The interface between the one training loop and a way to spread it over devices.

The loop never asks how many ranks there are. It asks a strategy which share of the samples to
feed, hands it the batch, and steps the optimizer. What differs between strategies - who holds
which tensor, who sends what to whom - stays behind these methods:

* a *data shard* is not a rank: ranks of one tensor- or pipeline-parallel group are fed the same
  samples and say so with the same ``data_shard``;
* ``prepare`` gives back what the optimizer must own, so a strategy may shard or move parameters;
* ``forward_backward`` is one call, because a pipeline interleaves the two;
* ``predict`` may return None on ranks that do not end up with the outputs;
* ``has_replicas`` says whether all ranks must hold the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``(outputs, targets) -> losses`` of shape ``(batch,)``."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DataShard:
    """Which share of every global batch this rank is fed."""

    index: int
    num_shards: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one rank runs.

    ``devices`` are the torch devices this rank computes on (several for ``dp``), ``cores`` the
    processor cores behind them, one per device, on CPU. A collective that takes longer than
    ``collective_timeout_s`` is an error.
    """

    rank: int
    num_ranks: int
    num_devices: int
    devices: tuple[torch.device, ...]
    cores: tuple[int, ...]
    precision: Literal["bf16", "fp32"]
    collective_timeout_s: float

    @property
    def device(self) -> torch.device:
        """Where batches are made and the loss is computed."""
        return self.devices[0]

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model runs; the loss is computed outside it, in fp32.

        Without the cache of cast weights: most are used once a step.
        """
        return torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=False,
        )


class AbstractStrategy(ABC):
    """One way to spread a training over devices. Subclasses are final."""

    name: ClassVar[str]
    has_replicas: ClassVar[bool]
    needs_process_group: ClassVar[bool]

    @property
    @abstractmethod
    def data_shard(self) -> DataShard:
        """This rank's share of every global batch."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, str | int | float | bool]:
        """What was chosen for this run, for the manifest."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """Take the model, place it, and return the named parameters the optimizer must own."""

    @abstractmethod
    def forward_backward(
        self, inputs: Tensor, targets: Tensor, loss: LossFunction, *, num_global_samples: int
    ) -> Tensor:
        """Leave in ``.grad`` the gradient of the mean loss over the *global* batch.

        ``inputs`` and ``targets`` are this shard's samples; ``num_global_samples`` counts those
        of all shards, which may differ in size. Returns this shard's own mean loss, a detached
        scalar on the device, without waiting for it.
        """

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor | None:
        """Outputs in evaluation mode, without gradients; None where another rank has them."""

    @abstractmethod
    def train_mode(self) -> None:
        """Make the model ready for training steps."""

    @abstractmethod
    def evaluation_mode(self) -> None:
        """Make the model ready for ``predict``, the same on all ranks."""

    @abstractmethod
    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        """The model's buffers, for the record of the training state."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until this rank's devices have done what they were given."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abstractmethod
    def any_rank(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank; every rank gets the same answer."""

    @abstractmethod
    def close(self) -> None:
        """Leave the process group together with the other ranks."""


def synchronize_device(device: torch.device) -> None:
    """Wait for the work queued on ``device``; on CPU nothing is ever queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def channels_last(model: nn.Module) -> nn.Module:
    """The model with 4-dimensional weights laid out channels-last: what convolutions want."""
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
