"""``torch.nn.parallel.DistributedDataParallel``: one process and one model copy per device.

On CPU its gradients are averaged through shared memory where there is room for them, which costs
much less than the loopback network (bench/gradient_exchange.py); otherwise by gloo or NCCL.
"""

from collections.abc import Iterable
from typing import ClassVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from scaleproof.strategies.shared_memory import SharedMemoryAverage, can_share_memory
from scaleproof.strategies.strategy import (
    AbstractStrategy,
    DataShard,
    LossFunction,
    Placement,
    channels_last,
    synchronize_device,
)

BUCKET_CAP_MB = 25
"""Largest gradient bucket. Chosen by bench/gradient_exchange.py; see docs/design.md."""


@final
class DdpStrategy(AbstractStrategy):
    name: ClassVar[str] = "ddp"
    has_replicas: ClassVar[bool] = True
    needs_process_group: ClassVar[bool] = True

    def __init__(self, placement: Placement, *, bucket_cap_mb: float = BUCKET_CAP_MB) -> None:
        self._placement = placement
        self._bucket_cap_mb = bucket_cap_mb
        self._model: nn.Module = nn.Identity()
        self._parallel_model: nn.Module = self._model
        self._shared_memory: SharedMemoryAverage | None = None

    @property
    @override
    def data_shard(self) -> DataShard:
        return DataShard(index=self._placement.rank, num_shards=self._placement.num_ranks)

    @property
    @override
    def settings(self) -> dict[str, str | int | float | bool]:
        return {
            "bucket_cap_mb": self._bucket_cap_mb,
            "gradient_as_bucket_view": True,
            "gradient_exchange": "shared memory" if self._shared_memory else dist.get_backend(),
        }

    @override
    def prepare(self, model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        self._model = channels_last(model.to(self._placement.device))
        on_cuda = self._placement.device.type == "cuda"
        parallel_model = DistributedDataParallel(
            self._model,
            device_ids=[self._placement.device] if on_cuda else None,
            bucket_cap_mb=self._bucket_cap_mb,
            gradient_as_bucket_view=True,
        )
        gradient_bytes = sum(p.nbytes for p in self._model.parameters() if p.requires_grad)
        if not on_cuda and self._placement.num_ranks > 1 and can_share_memory(gradient_bytes):
            self._shared_memory = SharedMemoryAverage(self._placement.collective_timeout_s)
            parallel_model.register_comm_hook(None, self._shared_memory.average)
        self._parallel_model = parallel_model
        return list(self._model.named_parameters())

    @override
    def forward_backward(
        self, inputs: Tensor, targets: Tensor, loss: LossFunction, *, num_global_samples: int
    ) -> Tensor:
        with self._placement.autocast():
            outputs = self._parallel_model(inputs)
        mean_loss = loss(outputs.float(), targets).mean()
        # DDP averages the ranks' gradients with equal weights; a rank that has more samples than
        # another must count for more, or the result is a mean of means.
        weight = len(targets) * self._placement.num_ranks / num_global_samples
        (mean_loss if weight == 1.0 else mean_loss * weight).backward()
        return mean_loss.detach()

    @override
    def predict(self, inputs: Tensor) -> Tensor | None:
        with torch.no_grad(), self._placement.autocast():
            return self._model(inputs).float()

    @override
    def train_mode(self) -> None:
        self._parallel_model.train()

    @override
    def evaluation_mode(self) -> None:
        # Between forwards the ranks' buffers (BatchNorm statistics) differ: DDP broadcasts rank
        # 0's at the next training forward. All ranks must score the same model, so do it now.
        for buffer in self._model.buffers():
            dist.broadcast(buffer, src=0)
        self._parallel_model.eval()

    @override
    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        return self._model.named_buffers()

    @override
    def synchronize(self) -> None:
        synchronize_device(self._placement.device)

    @override
    def barrier(self) -> None:
        dist.barrier()

    @override
    def any_rank(self, flag: bool) -> bool:
        votes = torch.tensor([int(flag)], device=self._placement.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    @override
    def close(self) -> None:
        # Without the barrier a rank sometimes aborts at interpreter exit (torch 2.13, gloo).
        dist.barrier()
        if self._shared_memory is not None:
            self._shared_memory.close()
        dist.destroy_process_group()
