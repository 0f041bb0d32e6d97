"""Makes a script that would start or join N processes content with one.

The launcher's variables say a world of one already; what a script says itself is changed on its
way to torch and to Lightning: numbers of processes, ranks, devices.
"""

import inspect
import multiprocessing.process
from argparse import Namespace
from collections.abc import Callable
from copy import copy
from types import ModuleType
from typing import Any, NoReturn, final

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
import torch.multiprocessing
from torch._C._distributed_c10d import HashStore
from torch.utils.data import DataLoader

from scaleproof.observe import current
from scaleproof.observe.libraries import when_imported

_WITHOUT_WORKERS: dict[str, Any] = {
    "num_workers": 0,
    "timeout": 0,
    "multiprocessing_context": None,
    "prefetch_factor": None,
    "persistent_workers": False,
}
"""Options of a ``DataLoader`` that fetches in this process."""


def stay_alone(num_ranks: int, leave: Callable[[str], NoReturn]) -> None:
    """Patch whatever would make this process one of several: ``num_ranks`` in the run that is
    replayed. ``leave`` ends the process and says why."""

    def joining(original: Any) -> Any:
        signature = inspect.signature(original)

        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            if (bound.arguments.get("world_size") or 1) > 1:
                leave(
                    f"the script tells init_process_group a world of {num_ranks} of its own "
                    "making; let it take the number of ranks from its launcher (WORLD_SIZE)"
                )
            if bound.arguments.get("store") is None:  # replays run side by side: no port
                bound.arguments |= {"store": HashStore(), "rank": 0, "world_size": 1}
                bound.arguments.pop("init_method", None)
            return original(*bound.args, **bound.kwargs)

        return init_process_group

    def spawning(original: Any) -> Any:
        def spawn(fn: Any, args: Any = (), nprocs: int = 1, *rest: Any, **kwargs: Any) -> Any:
            alone = tuple(_of_one(arg, nprocs) for arg in args)
            return original(fn, alone, 1, *rest, **kwargs)

        return spawn

    if dist.is_available():
        current.replace(c10d, "init_process_group", joining)
        dist.init_process_group = c10d.init_process_group
    for name in ("spawn", "start_processes"):
        current.replace(torch.multiprocessing, name, spawning)
    current.replace(multiprocessing.process.BaseProcess, "start", _starting(num_ranks))
    for module in ("lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer"):
        when_imported(module, _patch_trainer)


def fetch_alone() -> None:
    """Make loaders without workers."""

    def making(original: Any) -> Any:
        signature = inspect.signature(original)

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            bound.arguments |= {k: v for k, v in _WITHOUT_WORKERS.items() if k in bound.arguments}
            original(*bound.args, **bound.kwargs)

        return __init__

    current.replace(DataLoader, "__init__", making)


def _of_one(argument: Any, num_ranks: int) -> Any:
    """An argument of a rank's process, with one rank instead of ``num_ranks``."""
    if type(argument) is int and argument == num_ranks > 1:
        return 1
    if isinstance(argument, Namespace):
        changed = copy(argument)
        for name in ("world_size", "nprocs", "num_processes", "ngpus", "gpus", "num_gpus"):
            if getattr(argument, name, None) == num_ranks:
                setattr(changed, name, 1)
        return changed
    return argument


def _starting(num_ranks: int) -> Callable[[Any], Any]:
    """Of several processes with one target only the first is started."""
    started: list[Any] = []

    def around(original: Any) -> Any:
        def start(self: Any) -> None:
            target = getattr(self, "_target", None)
            arguments = (*getattr(self, "_args", ()), *getattr(self, "_kwargs", {}).values())
            if target is None or num_ranks not in arguments:
                original(self)
            elif target in started:
                self._popen = _Ended()
            else:
                started.append(target)
                self._args = tuple(_of_one(argument, num_ranks) for argument in self._args)
                self._kwargs = {k: _of_one(v, num_ranks) for k, v in self._kwargs.items()}
                original(self)

        return start

    return around


@final
class _Ended:
    """Stands for a process that never ran and ended well."""

    pid = 0
    returncode = 0
    sentinel = 0

    def poll(self) -> int:
        return 0

    def wait(self, timeout: float | None = None) -> int:  # noqa: ARG002 - as Popen has it
        return 0


def _patch_trainer(module: ModuleType) -> None:
    """Lightning refuses a world of one when it was told of two devices."""

    def making(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **{**kwargs, "devices": 1, "num_nodes": 1})

        return __init__

    current.replace(module.Trainer, "__init__", making)
