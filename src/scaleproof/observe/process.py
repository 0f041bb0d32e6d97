"""What a process knows of itself: its rank, its process group, its parallelism, its memory."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from scaleproof.evidence.observations import ProcessRecord
from scaleproof.observe.model import FSDP, is_fsdp2_unit
from scaleproof.observe.model_parallel import model_peers

Parallelism = Literal["ddp", "fsdp2", "fsdp1", "data-parallel", "none"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Whoami:
    """This process among those that train together."""

    pid: int
    rank: int
    num_ranks: int
    source: Literal["process-group", "environment", "none"]
    script: str


def who_am_i(environment: tuple[int, int] | None) -> Whoami:
    """``environment``: rank and number of ranks as a launcher said, where one did."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    script = Path(file).name if file else ""
    if dist.is_available() and dist.is_initialized():
        rank, num_ranks, source = dist.get_rank(), dist.get_world_size(), "process-group"
    elif environment is not None:
        (rank, num_ranks), source = environment, "environment"
    else:
        rank, num_ranks, source = 0, 1, "none"
    return Whoami(
        pid=os.getpid(),
        rank=rank,
        num_ranks=num_ranks,
        source=source,  # type: ignore[arg-type]
        script=script,
    )


def parallelism_of(roots: Iterable[nn.Module]) -> Parallelism:
    modules = [module for root in roots for module in root.modules()]
    if any(map(is_fsdp2_unit, modules)):
        return "fsdp2"
    fsdp = sys.modules.get(FSDP)
    if fsdp and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in modules):
        return "fsdp1"
    if any(isinstance(module, DistributedDataParallel) for module in modules):
        return "ddp"
    if any(isinstance(module, DataParallel) for module in modules):
        return "data-parallel"
    return "none"


def process_record(who: Whoami, roots: list[nn.Module]) -> ProcessRecord:
    """What a process says of itself at its first step."""
    wrappers = [root for root in roots if isinstance(root, DistributedDataParallel)]
    return ProcessRecord(
        pid=who.pid,
        rank=who.rank,
        num_ranks=who.num_ranks,
        rank_source=who.source,
        parallelism=parallelism_of(roots),
        backend=dist.get_backend() if dist.is_available() and dist.is_initialized() else "",
        script=who.script,
        arguments=tuple(sys.argv[1:]),
        num_threads=torch.get_num_threads(),
        broadcasts_buffers=all(wrapper.broadcast_buffers for wrapper in wrappers)
        if wrappers
        else None,
        model_peers=model_peers(roots),
    )


@final
class ProcessGroupWatch:
    """Counts collectives of the default group by its own sequence number."""

    def __init__(self) -> None:
        self._group: Any = None
        self._evaluation_began = 0

    @property
    def is_there(self) -> bool:
        return self._group is not None

    def find(self) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.group.WORLD

    def forget(self) -> None:
        self._group = None

    def sequence(self) -> int:
        """Collectives started in the default group; 0 without one."""
        return 0 if self._group is None else self._group._get_sequence_number_for_group()

    def begin_evaluation(self) -> None:
        self._evaluation_began = self.sequence()

    def leave_out(self, num_collectives: int) -> None:
        """So many were not the evaluation's own: a wrapper sent buffers."""
        self._evaluation_began += num_collectives

    @property
    def num_since_evaluation(self) -> int:
        """Collectives that an evaluation's figures may have gone through; -1 without a group."""
        return self.sequence() - self._evaluation_began if self.is_there else -1


@final
class MemoryMeter:
    """Memory of this process, and what observing added to it."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.observer_bytes = 0

    def now_bytes(self) -> int:
        """Allocated on its CUDA device, or else resident."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            return torch.cuda.memory_allocated()
        return self.resident_bytes()

    def resident_bytes(self) -> int:
        return self._process.memory_info().rss

    def add(self, before_bytes: int) -> None:
        """Something of ours was loaded or made; ``before_bytes`` was resident before it."""
        self.observer_bytes += max(self.resident_bytes() - before_bytes, 0)
