"""``torch.nn.DataParallel`` for processor cores: replicas in threads, one pinned core each.

What is kept of its semantics, pitfalls included (torch 2.13, ``nn/parallel``):

* *scatter*: the batch is cut by ``torch.chunk``, so the last chunk may be smaller and there may be
  fewer chunks than devices;
* *replicas*: made anew for every forward; their parameters are the model's values of this
  moment; replica 0 shares the model's buffers, the others get copies, and what they write into
  them (BatchNorm statistics, counters) is lost, like every attribute they set;
* *gather*: outputs are concatenated in chunk order and the loss is computed on the whole batch by
  the caller's thread.

What differs: on CUDA each device has a backward thread of autograd's own, on CPU backward runs in
the thread that calls it. So one autograd function stands for the whole forward, and its backward
lets every replica's thread run its own backward and then adds up the replicas' gradients.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from scaleproof.strategies.devices import pin_this_thread

T = TypeVar("T")


@final
class CpuReplicas(nn.Module):
    """Wraps a model so that a call scatters its batch over one replica per core."""

    def __init__(
        self,
        module: nn.Module,
        *,
        cores: Sequence[int],
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        super().__init__()
        self.module = module
        self._autocast = autocast
        self._threads = [
            ThreadPoolExecutor(1, f"replica-{index}", _begin_thread, (core,))
            for index, core in enumerate(cores)
        ]

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        chunks = inputs.chunk(len(self._threads))
        if not torch.is_grad_enabled():
            return torch.cat(self._on_each(partial(self._predict, chunks), len(chunks)))
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        outputs: Any = _ReplicatedForward.apply(self, chunks, *parameters)
        return outputs

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()

    def _predict(self, chunks: Sequence[Tensor], index: int) -> Tensor:
        with torch.no_grad(), self._autocast():
            return replicate(self.module, index)(chunks[index])

    def _train(self, chunks: Sequence[Tensor], index: int) -> tuple[nn.Module, Tensor]:
        replica = replicate(self.module, index)
        with torch.enable_grad(), self._autocast():
            return replica, replica(chunks[index])

    def _on_each(self, function: Callable[[int], T], num_chunks: int) -> list[T]:
        """``function(index)`` of the first ``num_chunks`` replicas, each in its own thread."""
        futures = [self._threads[i].submit(function, i) for i in range(num_chunks)]
        return [future.result() for future in futures]


def replicate(module: nn.Module, index: int) -> nn.Module:
    """A copy of ``module`` for replica ``index`` whose parameters are leaves on shared storage."""
    copies: dict[nn.Module, nn.Module] = {}
    leaves: dict[nn.Parameter, nn.Parameter] = {}
    for original in module.modules():
        copy: Any = original._replicate_for_data_parallel()
        copy._parameters = {}
        for name, parameter in original._parameters.items():
            if parameter is not None and parameter not in leaves:
                leaves[parameter] = nn.Parameter(parameter.detach(), parameter.requires_grad)
            copy._parameters[name] = None if parameter is None else leaves[parameter]
        copy._buffers = {
            name: buffer if index == 0 or buffer is None else buffer.detach().clone()
            for name, buffer in original._buffers.items()
        }
        copies[original] = copy
    for original, copy in copies.items():
        copy._modules = {
            name: None if child is None else copies[child]
            for name, child in original._modules.items()
        }
    return copies[module]


class _ReplicatedForward(torch.autograd.Function):
    """All replicas' forwards as one node; its gradient is the sum over replicas."""

    @staticmethod
    def forward(
        ctx: Any, replicas: CpuReplicas, chunks: Sequence[Tensor], *_parameters: nn.Parameter
    ) -> Tensor:
        # The parameters are arguments only so that autograd asks for their gradients.
        results = replicas._on_each(partial(replicas._train, chunks), len(chunks))
        ctx.replicas, ctx.results = replicas, results
        return torch.cat([outputs.detach() for _, outputs in results])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        results = ctx.results
        sizes = [len(outputs) for _, outputs in results]
        parts = gradient.split(sizes)

        def backward_of(index: int) -> list[Tensor | None]:
            replica, outputs = results[index]
            torch.autograd.backward(outputs, parts[index])
            return [p.grad for p in replica.parameters() if p.requires_grad]

        per_replica = ctx.replicas._on_each(backward_of, len(results))
        summed = [_sum(gradients) for gradients in zip(*per_replica, strict=True)]
        return (None, None, *summed)


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return None
    total = present[0]
    for gradient in present[1:]:
        total = total.add_(gradient)
    return total


def _begin_thread(core: int) -> None:
    pin_this_thread(core)
    torch.set_num_threads(1)
