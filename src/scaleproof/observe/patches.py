"""Where torch is listened to. Everything is put in place when torch has been imported, and does
nothing until an optimizer is made: launchers, workers and helpers never make one.

Patches are functions of this module or closures that replace functions of torch by name: nothing
is attached to a script's own objects but tensor hooks, which torch never copies or saves.
"""

import functools
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils.fetch import _IterableDatasetFetcher, _MapDatasetFetcher
from torch.utils.data.dataloader import _BaseDataLoaderIter

from scaleproof.evidence.pulse import Activity
from scaleproof.observe import fetching
from scaleproof.observe.observer import Observer

F = TypeVar("F", bound=Callable[..., Any])

loader_lines: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
"""The script's line that made each loader."""

_observer: Observer | None = None
_make_observer: Callable[[], Observer] | None = None


def install(make_observer: Callable[[], Observer]) -> None:
    """Patch torch. ``make_observer`` is called when the first optimizer of a process is made."""
    global _make_observer
    _make_observer = make_observer
    os.register_at_fork(after_in_child=_forget)
    _patch_optimizers()
    _patch_loaders()
    _patch_backward()
    _patch_wrappers()
    _patch_clipping()
    _patch_scaler()
    _patch_process_group()


def active() -> Observer | None:
    """The observer of this process, when it trains."""
    return _observer


def _forget() -> None:
    """A forked child is another process: a data worker, or a rank that will make an optimizer."""
    global _observer
    _observer = None


def where_called() -> str:
    """The innermost line outside of libraries, ``train.py:37``; empty when there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_OURS, _TORCH, "<")) and _LIBRARIES not in name:
            return f"{os.path.basename(name)}:{frame.f_lineno}"  # noqa: PTH119 - a string, hot
        frame = frame.f_back
    return ""


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))  # noqa: PTH120, PTH100
_LIBRARIES = f"{os.sep}site-packages{os.sep}"


def _replace(owner: Any, name: str, around: Callable[[F], F]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(around(original)))


# --- optimizers


def _patch_optimizers() -> None:
    def around(original: Any) -> Any:
        def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            observer = _observer or _start()
            if observer is not None:
                observer.optimizer_made(self, where_called())

        return __init__

    _replace(Optimizer, "__init__", around)
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)

    def loading(original: Any) -> Any:
        def load_state_dict(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if _observer is not None and self.state:  # frameworks load empty states too
                _observer.state_loaded("optimizer", _steps_in(self.state))
            return result

        return load_state_dict

    _replace(Optimizer, "load_state_dict", loading)

    def loading_schedule(original: Any) -> Any:
        def load_state_dict(self: LRScheduler, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if _observer is not None:
                _observer.state_loaded("scheduler", None)
            return result

        return load_state_dict

    _replace(LRScheduler, "load_state_dict", loading_schedule)


def _start() -> Observer | None:
    """The first optimizer of this process: from now on it is observed."""
    global _observer
    if get_worker_info() is not None or _make_observer is None:
        return None
    _observer = _make_observer()
    _patch_calls()
    return _observer


def _steps_in(state: Any) -> int | None:
    steps = [int(entry["step"]) for entry in state.values() if "step" in entry]
    return max(steps, default=None)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _observer is not None:
        has_closure = (len(args) > 1 and args[1] is not None) or bool(kwargs.get("closure"))
        _observer.step_begins(optimizer, has_closure=has_closure)


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    if _observer is not None:
        _observer.step_ended(optimizer)


# --- loaders


def _patch_loaders() -> None:
    def making(original: Any) -> Any:
        def __init__(self: DataLoader[Any], *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            loader_lines[self] = where_called()

        return __init__

    def beginning(original: Any) -> Any:
        def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
            original(self, loader, *args, **kwargs)
            if _observer is not None:
                _observer.loader_begins(self, loader)

        return __init__

    def resetting(original: Any) -> Any:
        def _reset(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            is_first = kwargs.get("first_iter", args[1] if len(args) > 1 else False)
            if _observer is not None and args and not is_first:
                _observer.loader_begins(self, args[0])

        return _reset

    def drawing(original: Any) -> Any:
        def _next_index(self: Any) -> Any:
            index = original(self)
            this = getattr(self, "_scaleproof_pass", None)
            if this is not None:
                this.drawn_ahead.append(index)
            return index

        return _next_index

    def handing_out(original: Any) -> Any:
        def __next__(self: Any) -> Any:
            observer = _observer
            if observer is None:
                return original(self)
            began_s = time.perf_counter()
            observer.pulse.beat(Activity.INPUT)
            try:
                batch = original(self)
            except StopIteration:
                observer.loader_ended(self)
                raise
            observer.loader_handed_out(self, batch, began_s)
            return batch

        return __next__

    _replace(DataLoader, "__init__", making)
    _replace(_BaseDataLoaderIter, "__init__", beginning)
    _replace(_BaseDataLoaderIter, "_reset", resetting)
    _replace(_BaseDataLoaderIter, "_next_index", drawing)
    _replace(_BaseDataLoaderIter, "__next__", handing_out)
    for fetcher in (_MapDatasetFetcher, _IterableDatasetFetcher):
        _replace(fetcher, "fetch", _around_fetch)


def _around_fetch(original: Any) -> Any:
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not fetching.is_looked_at():
            return original(self, *args, **kwargs)
        look = fetching.FetchLook()
        result = original(self, *args, **kwargs)
        worker = get_worker_info()
        look.write(0 if worker is None else worker.id)
        return result

    return fetch


# --- forward and backward


def _patch_calls() -> None:
    """Time the forwards of root modules: a call of any other module costs two comparisons more."""
    if getattr(torch.nn.Module.__call__, "_is_scaleproof", False):
        return
    original = torch.nn.Module.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        observer = _observer
        if torch.compiler.is_compiling() or observer is None or id(self) not in observer.root_ids:
            return original(self, *args, **kwargs)
        began_s = time.perf_counter()
        has_gradients = torch.is_grad_enabled()
        observer.forward_begins(self, (args, kwargs))
        result = original(self, *args, **kwargs)
        observer.forward_ended(began_s, has_gradients=has_gradients)
        return result

    __call__._is_scaleproof = True  # type: ignore[attr-defined]
    torch.nn.Module.__call__ = __call__


def _patch_backward() -> None:
    def around(original: Any) -> Any:
        def backward(*args: Any, **kwargs: Any) -> None:
            observer = _observer
            if observer is None:
                return original(*args, **kwargs)
            began_s = time.perf_counter()
            observer.backward_begins(args[0] if args else kwargs.get("tensors"))
            result = original(*args, **kwargs)
            observer.backward_ended(began_s)
            return result

        return backward

    _replace(torch.autograd, "backward", around)


def _patch_wrappers() -> None:
    def around(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if _observer is not None:
                _observer.wrapper_made(self)

        return __init__

    for wrapper in (DistributedDataParallel, DataParallel):
        _replace(wrapper, "__init__", around)

    def preparing(original: Any) -> Any:
        def _pre_forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
            if (
                torch.compiler.is_compiling()
                or _observer is None
                or not self.will_sync_module_buffers()
            ):
                return original(self, *inputs, **kwargs)
            began_s = time.perf_counter()
            result = original(self, *inputs, **kwargs)
            if torch.is_grad_enabled():
                _observer.buffers_synced(time.perf_counter() - began_s)
            return result

        return _pre_forward

    _replace(DistributedDataParallel, "_pre_forward", preparing)

    def compiling(original: Any) -> Any:
        def compile(*args: Any, **kwargs: Any) -> Any:  # noqa: A001 - torch's name
            compiled = original(*args, **kwargs)
            if _observer is not None and isinstance(compiled, torch.nn.Module):
                _observer.wrapper_made(compiled)
            return compiled

        return compile

    _replace(torch, "compile", compiling)


# --- what changes gradients or steps


def _patch_clipping() -> None:
    def around(original: Any) -> Any:
        def clip(*args: Any, **kwargs: Any) -> Any:
            norm = original(*args, **kwargs)
            if _observer is not None:
                limit = kwargs.get("max_norm", kwargs.get("clip_value"))
                _observer.clipped(norm, args[1] if limit is None else limit)
            return norm

        return clip

    for name in ("clip_grad_norm_", "clip_grad_value_"):
        _replace(torch.nn.utils.clip_grad, name, around)
        setattr(torch.nn.utils, name, getattr(torch.nn.utils.clip_grad, name))


def _patch_scaler() -> None:
    from torch.amp.grad_scaler import GradScaler

    def scaling(original: Any) -> Any:
        def scale(self: Any, *args: Any, **kwargs: Any) -> Any:
            scaled = original(self, *args, **kwargs)
            if _observer is not None and self.is_enabled():
                _observer.loss_scaled(self)
            return scaled

        return scale

    def stepping(original: Any) -> Any:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            observer = _observer
            if observer is None:
                return original(self, *args, **kwargs)
            num_before = observer.steps_done
            result = original(self, *args, **kwargs)
            observer.scaler_stepped(num_before)
            return result

        return step

    _replace(GradScaler, "scale", scaling)
    _replace(GradScaler, "step", stepping)


def _patch_process_group() -> None:
    if not dist.is_available():
        return

    def around(original: Any) -> Any:
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            if _observer is not None:
                _observer.group_is_going()
            return original(*args, **kwargs)

        return destroy_process_group

    import torch.distributed.distributed_c10d as c10d

    _replace(c10d, "destroy_process_group", around)
    dist.destroy_process_group = c10d.destroy_process_group
