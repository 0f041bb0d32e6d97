"""Listens to forward and backward, and to the wrappers that models are put into."""

import functools
import time
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from scaleproof.observe import current


def patch_forward() -> None:
    """Time the forwards of root modules, and see the first of each module beside them: a call of
    any other module costs one comparison more."""
    if getattr(torch.nn.Module.__call__, "_is_scaleproof", False):
        return
    original = torch.nn.Module.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in current.roots:
            return original(self, *args, **kwargs)
        observer = current.observer
        if observer is None or torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        if observer.beside.ran(self, current.roots) or observer.is_in_root:
            return original(self, *args, **kwargs)
        began_s = time.perf_counter()
        has_gradients = torch.is_grad_enabled()
        observer.forward_begins(self, (args, kwargs), has_gradients=has_gradients)
        observer.is_in_root = True
        try:
            result = original(self, *args, **kwargs)
        finally:
            observer.is_in_root = False
        observer.forward_ended(began_s, has_gradients=has_gradients)
        return result

    __call__._is_scaleproof = True  # type: ignore[attr-defined]
    torch.nn.Module.__call__ = __call__


def patch_backward() -> None:
    def around(original: Any) -> Any:
        def backward(*args: Any, **kwargs: Any) -> None:
            observer = current.observer
            if observer is None:
                return original(*args, **kwargs)
            began_s = time.perf_counter()
            observer.backward_begins(args[0] if args else kwargs.get("tensors"))
            result = original(*args, **kwargs)
            observer.backward_ended(began_s)
            return result

        return backward

    current.replace(torch.autograd, "backward", around)


def patch_wrappers() -> None:
    def around(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if current.observer is not None:
                current.observer.wrapper_made(self)

        return __init__

    for wrapper in (DistributedDataParallel, DataParallel):
        current.replace(wrapper, "__init__", around)

    def preparing(original: Any) -> Any:
        def _pre_forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
            if (
                torch.compiler.is_compiling()
                or current.observer is None
                or not self.will_sync_module_buffers()
            ):
                return original(self, *inputs, **kwargs)
            began_s, before = time.perf_counter(), current.observer.group.sequence()
            result = original(self, *inputs, **kwargs)
            seconds = time.perf_counter() - began_s
            current.observer.buffers_synced(seconds, current.observer.group.sequence() - before)
            return result

        return _pre_forward

    current.replace(DistributedDataParallel, "_pre_forward", preparing)

    def compiling(original: Any) -> Any:
        def compile(*args: Any, **kwargs: Any) -> Any:  # noqa: A001 - torch's name
            compiled = original(*args, **kwargs)
            if current.observer is not None and isinstance(compiled, torch.nn.Module):
                current.observer.wrapper_made(compiled)
            return compiled

        return compile

    current.replace(torch, "compile", compiling)
