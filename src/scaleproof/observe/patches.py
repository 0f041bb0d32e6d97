"""Where torch is listened to. Everything is put in place when torch has been imported, and does
nothing until an optimizer is made: launchers, workers and helpers never make one.

Patches replace functions of torch by name: nothing is attached to a script's own objects but tensor
hooks, which torch never copies or saves.
"""

import os
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import get_worker_info

from scaleproof.observe import current
from scaleproof.observe.checkpoints import is_preparing_to_load, patch_checkpoints
from scaleproof.observe.guard import describe
from scaleproof.observe.observer import Observer
from scaleproof.observe.patch_calls import patch_backward, patch_forward, patch_wrappers
from scaleproof.observe.patch_gradients import (
    patch_clipping,
    patch_process_group,
    patch_scaler,
)
from scaleproof.observe.patch_loaders import patch_loaders
from scaleproof.observe.schedules import patch_schedulers

_make_observer: Callable[[], Observer] | None = None
_made_by: Callable[[], Observer] | None = None
_note: Callable[[str, str], None] | None = None


def install(make_observer: Callable[[], Observer], note: Callable[[str, str], None]) -> None:
    """Patch torch. ``make_observer`` is called when the first optimizer of a process is made;
    ``note`` with what can't be observed of one that has no observer."""
    global _make_observer, _made_by, _note
    _make_observer = _made_by = make_observer
    _note = note
    os.register_at_fork(after_in_child=_forget)
    _patch_optimizers()
    patch_loaders()
    patch_backward()
    patch_wrappers()
    patch_clipping()
    patch_scaler()
    patch_process_group()
    patch_schedulers()
    patch_checkpoints()


def _forget() -> None:
    """A forked child is another process: a data worker, or a rank that will make an optimizer."""
    global _make_observer
    current.observer, current.roots, _make_observer = None, {}, _made_by


def _patch_optimizers() -> None:
    def around(original: Any) -> Any:
        def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            observer = current.observer or _start()
            if observer is not None:
                observer.optimizer_made(self, current.where_called())

        return __init__

    current.replace(Optimizer, "__init__", around)
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)

    def loading(original: Any) -> Any:
        def load_state_dict(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if current.observer is not None and self.state:  # frameworks load empty states too
                current.observer.state_loaded("optimizer", _steps_in(self.state))
            return result

        return load_state_dict

    current.replace(Optimizer, "load_state_dict", loading)

    def loading_schedule(original: Any) -> Any:
        def load_state_dict(self: LRScheduler, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if current.observer is not None:
                current.observer.state_loaded("scheduler", None)
            return result

        return load_state_dict

    current.replace(LRScheduler, "load_state_dict", loading_schedule)


def _start() -> Observer | None:
    """The first optimizer of this process: from now on it is observed."""
    global _make_observer
    make, _make_observer = _make_observer, None  # once, whatever comes of it
    if get_worker_info() is not None or make is None:
        return None
    try:
        current.observer = make()
        current.roots = current.observer.roots
        patch_forward()
    except Exception as error:  # noqa: BLE001 - somebody's training must not end with it
        assert _note is not None  # installed
        _note("process", describe(error))
    return current.observer


def _steps_in(state: Any) -> int | None:
    steps = [int(entry["step"]) for entry in state.values() if "step" in entry]
    return max(steps, default=None)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if current.observer is not None and not is_preparing_to_load():
        has_closure = (len(args) > 1 and args[1] is not None) or bool(kwargs.get("closure"))
        current.observer.step_begins(optimizer, has_closure=has_closure)


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    if current.observer is not None and not is_preparing_to_load():
        current.observer.step_ended(optimizer)
