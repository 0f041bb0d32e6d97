"""One device, no communication: the baseline of every comparison."""

from collections.abc import Iterable
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from scaleproof.strategies.strategy import (
    AbstractStrategy,
    DataShard,
    LossFunction,
    Placement,
    channels_last,
    synchronize_device,
)


@final
class SingleStrategy(AbstractStrategy):
    name: ClassVar[str] = "single"
    has_replicas: ClassVar[bool] = True
    needs_process_group: ClassVar[bool] = False

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._model: nn.Module = nn.Identity()

    @property
    @override
    def data_shard(self) -> DataShard:
        return DataShard(index=0, num_shards=1)

    @property
    @override
    def settings(self) -> dict[str, str | int | float | bool]:
        return {}

    @override
    def prepare(self, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        self._model = channels_last(model.to(self._placement.device))
        return list(self._model.named_parameters())

    @override
    def forward_backward(
        self, inputs: Tensor, targets: Tensor, loss: LossFunction, *, num_global_samples: int
    ) -> Tensor:
        with self._placement.autocast():
            outputs = self._model(inputs)
        mean_loss = loss(outputs.float(), targets).mean()
        mean_loss.backward()
        return mean_loss.detach()

    @override
    def predict(self, inputs: Tensor) -> Tensor | None:
        with torch.no_grad(), self._placement.autocast():
            return self._model(inputs).float()

    @override
    def train_mode(self) -> None:
        self._model.train()

    @override
    def evaluation_mode(self) -> None:
        self._model.eval()

    @override
    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        return self._model.named_buffers()

    @override
    def synchronize(self) -> None:
        synchronize_device(self._placement.device)

    @override
    def barrier(self) -> None:
        """There is nobody to wait for."""

    @override
    def any_rank(self, flag: bool) -> bool:
        return flag

    @override
    def close(self) -> None:
        """There is no group to leave."""
