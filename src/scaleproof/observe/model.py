"""Which modules and parameters a script trains, found without its help: names, roots, buffers.

An optimizer knows tensors, not names. The modules that hold them are looked for among all live
objects, once per optimizer; those that no other of them contains are the roots.
"""

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, final

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from scaleproof.evidence.observations import OwnedTensor

_WRAPPER_PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")


@final
class _Root:
    """A root module, which the script may drop, and what stands before its tensors' names."""

    def __init__(self, module: nn.Module, label: str | None) -> None:
        self.reference = weakref.ref(module)
        self.label = label


@final
class ModelInventory:
    """The root modules seen so far, and what they call their tensors.

    Nothing is kept alive. Once given, a name stays: with a single root there is nothing before
    it, with several the class of each, numbered where two are alike.
    """

    def __init__(self) -> None:
        self._roots: list[_Root] = []
        self._kinds: list[str] = []

    @property
    def roots(self) -> list[nn.Module]:
        return [module for root in self._roots if (module := root.reference()) is not None]

    def add(self, module: nn.Module) -> None:
        """A root is known; a wrapper takes the place, and the name, of what it contains."""
        inside = set(module.modules())
        replaced = [root for root in self._roots if root.reference() in inside]
        label = next((root.label for root in replaced if root.label is not None), None)
        self._roots = [
            root for root in self._roots if root not in replaced and root.reference() is not None
        ]
        self._roots.append(_Root(module, label))

    def find(self, parameters: Iterable[Tensor]) -> list[nn.Module]:
        """Roots of ``parameters``: looked for among all live objects where they are not known."""
        missing = {id(parameter) for parameter in parameters}
        for root in self.roots:
            missing -= {id(parameter) for parameter in root.parameters()}
        if not missing:
            return []
        live = list(live_modules())
        owners = {id(module) for module in live if _holds(module, missing)}
        if not owners:
            return []
        holders = [m for m in live if any(id(child) in owners for child in m.modules())]
        inside = {id(child) for m in holders for child in m.modules() if child is not m}
        found = [module for module in holders if id(module) not in inside]
        for module in found:
            self.add(module)
        return found

    def names(self) -> dict[int, str]:
        """Name of each parameter of the roots, by id."""
        return {id(tensor): name for name, tensor in self._named(lambda m: m.named_parameters())}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._named(lambda module: module.named_parameters())

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._named(lambda module: module.named_buffers())

    def _named(self, tensors_of: Any) -> Iterator[tuple[str, Any]]:
        self._label()
        for root in self._roots:
            module = root.reference()
            if module is not None:
                for name, tensor in tensors_of(module):
                    yield f"{root.label}{plain_name(name)}", tensor

    def _label(self) -> None:
        """Give every root that has none its label, for good."""
        is_single = len(self._roots) == 1 and not self._kinds
        for root in self._roots:
            module = root.reference()
            if root.label is None and module is not None:
                kind = type(unwrapped(module)).__name__
                self._kinds.append(kind)
                number = self._kinds.count(kind)
                root.label = "" if is_single else kind + (f"#{number}." if number > 1 else ".")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel and ``torch.compile``."""
    while isinstance(module, DistributedDataParallel | DataParallel):
        module = module.module
    return getattr(module, "_orig_mod", module)


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before and into it."""
    changed = True
    while changed:
        changed = False
        for prefix in _WRAPPER_PREFIXES:
            if name.startswith(prefix) and "." in name.removeprefix(prefix):
                name, changed = name.removeprefix(prefix), True
    return name.replace("._orig_mod.", ".").replace("._fsdp_wrapped_module.", ".")


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All tensors an optimizer owns, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def learning_rates(optimizer: Optimizer) -> list[float | None]:
    """Of each of its tensors, in the order of ``parameters_of``."""
    return [
        float(group["lr"]) if "lr" in group else None
        for group in optimizer.param_groups
        for _ in group["params"]
    ]


def owned_tensor(name: str, parameter: Tensor, learning_rate: float | None = None) -> OwnedTensor:
    return OwnedTensor(
        name=name,
        numel=parameter.numel(),
        requires_grad=parameter.requires_grad,
        is_sharded=is_sharded(parameter),
        has_gradient=parameter.grad is not None,
        learning_rate=learning_rate,
    )


FSDP = "torch.distributed.fsdp"
"""Asked for among the modules that are imported already: it takes a second to import."""


def is_fsdp2_unit(module: nn.Module) -> bool:
    """``fully_shard`` was called on it."""
    fsdp = sys.modules.get(FSDP)
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_sharded(tensor: Tensor) -> bool:
    """A DTensor of which this rank holds a part only, or a part of the sum."""
    return is_dtensor(tensor) and not all(p.is_replicate() for p in tensor.placements)  # type: ignore[attr-defined]


def live_modules() -> Iterator[nn.Module]:
    """All there are."""
    for candidate in gc.get_objects():
        # The type, not isinstance: a lazy object may do anything when asked for its class.
        if issubclass(type(candidate), nn.Module) and "_parameters" in candidate.__dict__:
            yield candidate


def _holds(module: nn.Module, wanted: set[int]) -> bool:
    return any(id(parameter) in wanted for parameter in module._parameters.values())
