"""``SyncBatchNorm`` on the CPU, where torch has no kernel for it."""

from typing import Any, final

import torch
import torch.distributed as dist
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from scaleproof.observe.forced import asked, replace


def force_sync_batch_norm() -> None:
    def around(original: Any) -> Any:
        def forward(self: SyncBatchNorm, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
            if input.device.type != "cpu" or not (self.training and dist.is_initialized()):
                return original(self, input)
            group = self.process_group or dist.group.WORLD
            if dist.get_world_size(group) == 1:
                self._check_input_dim(input)
                return _BatchNorm.forward(self, input)
            asked("SyncBatchNorm")
            return _normalized(self, input, group)

        return forward

    replace(SyncBatchNorm, "forward", around)


@final
class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _summed(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over the ranks, whose gradient is the sum of the ranks' gradients."""
    summed = _SumOverRanks.apply(tensor, group)
    assert isinstance(summed, torch.Tensor)
    return summed


def _normalized(norm: SyncBatchNorm, given: torch.Tensor, group: Any) -> torch.Tensor:
    """``given``, shape ``(batch, channels, ...)``, with the statistics of all ranks' samples.

    Each channel: ``(x - mean) / sqrt(variance + eps) * weight + bias``. The sums over ranks are
    differentiable: their gradients are summed over the ranks too, as torch's kernels do.
    """
    norm._check_input_dim(given)
    x = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
    dims = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    local = x.new_tensor([x.numel() / x.size(1)])
    sums = _summed(torch.cat([x.sum(dims), local]), group)
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centered = x - mean.view(shape)
    variance = _summed(centered.square().sum(dims), group) / count
    if norm.track_running_stats:
        _update(norm, mean.detach(), variance.detach() * count / (count - 1))
    result = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(given.dtype)


@torch.no_grad()
def _update(norm: SyncBatchNorm, mean: torch.Tensor, unbiased_variance: torch.Tensor) -> None:
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / int(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(unbiased_variance.to(norm.running_var.dtype), share)
