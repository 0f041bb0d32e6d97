"""``torch.nn.DataParallel``: one process, the batch scattered over replicas in threads.

On CUDA it is torch's own class. On CPU, where torch has none, ``CpuReplicas`` keeps its semantics,
so that its pitfalls can be shown anywhere.
"""

from collections.abc import Iterable
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from scaleproof.strategies.cpu_replicas import CpuReplicas
from scaleproof.strategies.strategy import (
    AbstractStrategy,
    DataShard,
    LossFunction,
    Placement,
    channels_last,
    synchronize_device,
)


@final
class DataParallelStrategy(AbstractStrategy):
    name: ClassVar[str] = "dp"
    has_replicas: ClassVar[bool] = True
    needs_process_group: ClassVar[bool] = False

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._model: nn.Module = nn.Identity()
        self._replicas: nn.Module = self._model

    @property
    @override
    def data_shard(self) -> DataShard:
        return DataShard(index=0, num_shards=1)

    @property
    @override
    def settings(self) -> dict[str, str | int | float | bool]:
        on_cuda = self._placement.device.type == "cuda"
        return {"replicas": "torch.nn.DataParallel" if on_cuda else "threads"}

    @override
    def prepare(self, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        self._model = channels_last(model.to(self._placement.device))
        if self._placement.device.type == "cuda":
            self._replicas = nn.DataParallel(self._model, device_ids=self._placement.devices)
        else:
            self._replicas = CpuReplicas(
                self._model, cores=self._placement.cores, autocast=self._placement.autocast
            )
        return list(self._model.named_parameters())

    @override
    def forward_backward(
        self, inputs: Tensor, targets: Tensor, loss: LossFunction, *, num_global_samples: int
    ) -> Tensor:
        with self._placement.autocast():
            outputs = self._replicas(inputs)
        mean_loss = loss(outputs.float(), targets).mean()
        mean_loss.backward()
        return mean_loss.detach()

    @override
    def predict(self, inputs: Tensor) -> Tensor | None:
        with torch.no_grad(), self._placement.autocast():
            return self._replicas(inputs).float()

    @override
    def train_mode(self) -> None:
        self._replicas.train()

    @override
    def evaluation_mode(self) -> None:
        self._replicas.eval()

    @override
    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        return self._model.named_buffers()

    @override
    def synchronize(self) -> None:
        for device in self._placement.devices:
            synchronize_device(device)

    @override
    def barrier(self) -> None:
        """There is one process."""

    @override
    def any_rank(self, flag: bool) -> bool:
        return flag

    @override
    def close(self) -> None:
        if isinstance(self._replicas, CpuReplicas):
            self._replicas.close()
