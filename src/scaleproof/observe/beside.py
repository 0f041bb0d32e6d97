"""Modules that run forward beside those that are trained: teachers, frozen encoders, target
networks. They are looked for among all live objects once, and known when one is first called."""

import sys
import weakref
from collections.abc import Iterator
from typing import Any, final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scaleproof.observe.guard import Troubles, guarded
from scaleproof.observe.model import FSDP, ModelInventory, live_modules, plain_name, unwrapped

MAX_NUMBERS = 1 << 16
"""Of each of their tensors, evenly spaced: what differs between ranks differs almost everywhere."""

_KEPT_NUMBERS = 16 << 20
"""Modules up to this size are kept, so that the last state can be recorded."""


@final
class ModulesBeside:
    """Those found, which wait to be called, and those that were, in that order."""

    def __init__(self, inventory: ModelInventory, troubles: Troubles) -> None:
        self.troubles = troubles
        self._inventory = inventory
        self._waiting: dict[int, weakref.ref[nn.Module]] = {}  # by id of each module inside
        self._ran: list[tuple[str, weakref.ref[nn.Module]]] = []
        self._kinds: list[str] = []
        self._kept: list[nn.Module] = []

    @guarded("snapshot")
    def find(self) -> None:
        """Look for modules with parameters that no root of the inventory has."""
        known = {id(parameter) for _, parameter in self._inventory.parameters()}
        roots = self._inventory.roots
        inside = {id(child) for root in roots for child in root.modules()}
        live = [module for module in live_modules() if id(module) not in inside]
        parts = {id(child) for module in live for child in module.modules() if child is not module}
        for module in live:
            if id(module) in parts or _is_sharded_by_fsdp1(module):
                continue
            if any(id(parameter) not in known for parameter in module.parameters()):
                reference = weakref.ref(module)
                self._waiting |= {id(child): reference for child in module.modules()}

    def wait(self, called: dict[int, Any]) -> None:
        """Have their calls told: ``called`` has the ids that are listened to, the roots' by now."""
        self._waiting = {key: value for key, value in self._waiting.items() if key not in called}
        called.update(self._waiting)

    def ran(self, called: Any, listened: dict[int, Any]) -> bool:
        """``called``, which is listened to, is about to run. False for a root."""
        reference = self._waiting.get(id(called))
        if reference is None:
            return False
        for key in [key for key, value in self._waiting.items() if value is reference]:
            del self._waiting[key]
            listened.pop(key, None)
        self._name(reference, called)
        return True

    @guarded("snapshot")
    def _name(self, reference: weakref.ref[nn.Module], called: Any) -> None:
        module = reference()
        if module is None or all(child is not called for child in module.modules()):
            return  # it is gone, and another module has an id of its parts
        kind = type(unwrapped(module)).__name__
        self._kinds.append(kind)
        number = self._kinds.count(kind)
        label = f"{kind} (not trained{f', {number}' if number > 1 else ''})."
        self._ran.append((label, reference))
        sizes = (p.numel() for p in module.parameters() if not is_lazy(p))
        if sum(sizes) <= _KEPT_NUMBERS:
            self._kept.append(module)

    def labels(self) -> tuple[str, ...]:
        """What the names of their parameters begin with, of those that are alive."""
        return tuple(label for label, _ in self._alive())

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names, and evenly spaced numbers of each, but for those that are trained by now."""
        trained = {id(parameter) for _, parameter in self._inventory.parameters()}
        for label, module in self._alive():
            for name, parameter in module.named_parameters():
                if id(parameter) not in trained and not is_lazy(parameter):
                    yield f"{label}{plain_name(name)}", _some_of(parameter.detach())

    def _alive(self) -> Iterator[tuple[str, nn.Module]]:
        for label, reference in self._ran:
            module = reference()
            if module is not None:
                yield label, module


def _some_of(tensor: Tensor) -> Tensor:
    stride = -(-tensor.numel() // MAX_NUMBERS)
    return tensor if stride <= 1 else tensor.reshape(-1)[::stride]


def _is_sharded_by_fsdp1(module: nn.Module) -> bool:
    fsdp = sys.modules.get(FSDP)
    return fsdp is not None and any(
        isinstance(child, fsdp.FullyShardedDataParallel) for child in module.modules()
    )
