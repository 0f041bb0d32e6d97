"""Each rank's own gradients and those its optimizer used, at fixed coordinates of some steps.

A tensor hook sees what this rank's backward produced before anything reduces it; after the
optimizer's step the gradients are still there as it used them. Nothing is communicated. Hooks on
every parameter are there at probed steps only; in between, those that fired last tell when the
rank's own backward was done.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from scaleproof.evidence.observations import NUM_COORDINATES
from scaleproof.observe.coordinates import gather, gather_shard, padded
from scaleproof.observe.model import is_dtensor, is_fsdp2_unit

NUM_TIMED = 2
"""Parameters whose hooks stay: those that got their gradients last."""

_REDUCTIONS: dict[int, Literal["mean", "sum"]] = {1: "mean", 2: "sum"}


@final
class _Local:
    """One parameter's own gradient since it was last cleared."""

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.norm: Tensor | None = None
        self.num_backwards = 0


@final
class GradientProbes:
    """The hooks on parameters."""

    def __init__(self) -> None:
        self.last_own_s = 0.0
        """When this rank last produced a gradient, by ``time.perf_counter``."""
        self.is_armed = False
        self.each: list[dict[int, Tensor]] | None = None
        """Where asked for: what each backward since the last step produced, by parameter."""
        self._locals: dict[int, _Local] = {}
        self._handles: list[RemovableHandle] = []
        self._timed: list[RemovableHandle] = []
        self._order: list[Tensor] = []

    def arm(self, parameters: Iterable[Tensor], modules: Iterable[torch.nn.Module]) -> None:
        """Hook every parameter, for the next step."""
        self.disarm()
        self.is_armed = True
        self._remove(self._timed)
        for parameter in parameters:
            if is_dtensor(parameter):
                continue
            if parameter.requires_grad and parameter.is_leaf:
                hook = self._hook(parameter)
                self._handles.append(parameter.register_hook(hook))
        for module in modules:
            self._arm_sharded(module)

    def disarm(self, *, keep_timed: bool = False) -> None:
        """Take the hooks away; ``keep_timed``: but for those that fired last."""
        self.is_armed = False
        self._remove(self._handles)
        self._locals.clear()
        if self._order and keep_timed:
            self._remove(self._timed)
            last = list({id(p): p for p in reversed(self._order)}.values())[:NUM_TIMED]
            self._timed = [parameter.register_hook(self._time) for parameter in last]
        self._order = []

    def probe(self, parameters: list[Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``ProbeRecord.values`` and ``.norms`` of what an optimizer just used."""
        values = np.full((len(parameters), 2, NUM_COORDINATES), np.nan)
        norms = np.full((len(parameters), 2), np.nan)
        for row, parameter in enumerate(parameters):
            local = self._locals.get(id(parameter))
            if local is not None and local.values is not None:
                values[row, 0] = padded(local.values.double().cpu().numpy())
                if local.num_backwards == 1 and local.norm is not None:
                    norms[row, 0] = float(local.norm)
            gradient = parameter.grad
            if gradient is None or gradient.is_sparse:
                continue
            if is_dtensor(gradient):
                values[row, 1] = padded(gather_shard(gradient))
                gradient = gradient.to_local()  # type: ignore[attr-defined]
            else:
                values[row, 1] = padded(gather(gradient).double().cpu().numpy())
            norms[row, 1] = float(torch.linalg.vector_norm(gradient.detach().float()))
        return values, norms

    def _hook(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def on_gradient(gradient: Tensor) -> None:
            self.last_own_s = time.perf_counter()
            self._order.append(parameter)
            self._add(parameter, gradient)

        return on_gradient

    def _time(self, gradient: Tensor) -> None:  # noqa: ARG002 - torch passes it
        self.last_own_s = time.perf_counter()

    def _add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Sum up what this rank's backwards produce, as ``.grad`` does: anew once it is cleared."""
        if gradient.is_sparse or is_dtensor(gradient):
            return
        local = self._locals.setdefault(id(parameter), _Local())
        values = gather(gradient)
        if self.each is not None:
            self._add_to_last(id(parameter), values)
        before = parameter.grad
        is_cleared = before is None or (
            not is_dtensor(before) and not before.is_sparse and not bool(gather(before).any())
        )
        if is_cleared or local.values is None:
            local.values, local.num_backwards = values, 1
            local.norm = torch.linalg.vector_norm(gradient.detach().float())
        else:
            local.values = local.values + values
            local.num_backwards += 1

    def _add_to_last(self, key: int, values: Tensor) -> None:
        assert self.each is not None  # asked for
        if not self.each:  # autograd.grad: no backward was called
            self.each.append({})
        known = self.each[-1].get(key)
        self.each[-1][key] = values if known is None else known + values

    def _arm_sharded(self, root: torch.nn.Module) -> None:
        """FSDP2: hook the unsharded parameters, which are there only around a unit's forward."""
        units = [module for module in root.modules() if is_fsdp2_unit(module)]
        hooked: set[int] = set()
        for unit in units:
            sharded = [
                (owner, name, parameter)
                for owner in _without(unit, units)
                for name, parameter in owner._parameters.items()
                if parameter is not None and is_dtensor(parameter) and parameter.requires_grad
            ]

            self._handles.append(
                unit.register_forward_pre_hook(functools.partial(self._gathered, sharded, hooked))
            )

    def _gathered(
        self,
        sharded: list[tuple[torch.nn.Module, str, torch.nn.Parameter]],
        hooked: set[int],
        *_: Any,
    ) -> None:
        """Before a unit's forward: its parameters are whole now."""
        if torch.compiler.is_compiling():
            return
        for owner, name, parameter in sharded:
            gathered = owner._parameters.get(name)
            if (
                gathered is not None
                and not is_dtensor(gathered)
                and gathered.requires_grad
                and id(gathered) not in hooked
            ):
                hooked.add(id(gathered))
                self._handles.append(gathered.register_hook(self._hook_sharded(parameter)))

    def _hook_sharded(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def on_gradient(gradient: Tensor) -> None:
            self.last_own_s = time.perf_counter()
            self._add(parameter, gradient)

        return on_gradient

    @staticmethod
    def _remove(handles: list[RemovableHandle]) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()


def _without(unit: Any, units: list[Any]) -> list[torch.nn.Module]:
    """The modules of an FSDP2 unit that belong to no unit inside it."""
    inner = {
        id(module)
        for other in units
        if other is not unit and any(child is other for child in unit.modules())
        for module in other.modules()
    }
    return [module for module in unit.modules() if id(module) not in inner]


def loss_reduction(root: Any) -> Literal["mean", "sum", "unknown"]:
    """How the loss was reduced, when backward began right at it: what its autograd node saved."""
    node = getattr(root, "grad_fn", None)
    if node is None:
        return "unknown"
    saved = getattr(node, "_saved_reduction", None)
    if isinstance(saved, int):
        return _REDUCTIONS.get(saved, "unknown")
    name = type(node).__name__
    if name.startswith("MeanBackward"):
        return "mean"
    return "sum" if name.startswith("SumBackward") else "unknown"
