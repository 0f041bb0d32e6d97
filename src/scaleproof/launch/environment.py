"""The only place that reads environment variables."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

from scaleproof.errors import UsageError
from scaleproof.evidence.paths import RunPaths
from scaleproof.observe.replay.asked import CheckFacts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """Who this process is among the ranks, as torch's elastic agent says."""

    rank: int
    num_ranks: int


def rank_facts() -> RankFacts:
    try:
        return RankFacts(rank=int(os.environ["RANK"]), num_ranks=int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"RANK and WORLD_SIZE must be set by a launcher: {error}. Workers are started by "
            "scaleproof compare or scaleproof train, not by hand."
        ) from error


ALLOCATOR_TUNABLES = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        f"glibc.malloc.mmap_threshold={32 << 20}",
        f"glibc.malloc.top_pad={256 << 20}",
        f"glibc.malloc.trim_threshold={8 << 30}",
    )
)
"""Keep freed memory instead of returning it to the kernel after every step and paying for the page
faults again in the next: steps of the CIFAR-10 recipe took 1.0 to 1.6 times as long without it
(bench/gradient_exchange.py). glibc alone reads it."""


def agent_environment() -> dict[str, str]:
    """This environment, for an agent and its ranks: one intra-op thread, memory that is kept.

    OpenMP reads its thread count once, when a thread first uses it; torch.set_num_threads reaches
    only the calling thread.
    """
    return {
        "GLIBC_TUNABLES": ALLOCATOR_TUNABLES,
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


BOOTSTRAP = Path(__file__).parent / "bootstrap"
"""The folder that the command of an observed run has first on its ``PYTHONPATH``."""

FLIGHT_RECORDER_ENTRIES = 2000
"""Collectives that torch remembers in each process, for the report of a hang."""

RUN_VARIABLE = "SCALEPROOF_RUN"
"""Where an observed process writes: the absolute path of the run's folder."""

_EVERY, _PIN, _CHECK = "SCALEPROOF_EVERY", "SCALEPROOF_PIN", "SCALEPROOF_CHECK"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What a process of an observed command knows from its environment.

    ``rank``, ``num_ranks``, ``local_rank``: None where no launcher said it. ``every``: look closely
    at every such step. ``pin``: on CPU, pin each rank to a core of its own. ``check``: None when
    it is only observed.
    """

    rank: int | None
    num_ranks: int | None
    local_rank: int | None
    every: int
    pin: bool
    check: CheckFacts | None

    @property
    def launched_as(self) -> tuple[int, int] | None:
        """Rank and number of ranks, where a launcher said both."""
        if self.rank is None or self.num_ranks is None:
            return None
        return self.rank, self.num_ranks


def observed_environment(
    paths: RunPaths, every: int, pin: bool, check: CheckFacts | None = None
) -> dict[str, str]:
    """This environment, for a command whose processes are to be observed into ``paths``."""
    python_path = [str(BOOTSTRAP), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "TORCH_FR_BUFFER_SIZE": str(FLIGHT_RECORDER_ENTRIES),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(python_path),
        RUN_VARIABLE: str(paths.root.absolute()),
        _EVERY: str(every),
        _PIN: "1" if pin else "0",
        _CHECK: "" if check is None else msgspec.json.encode(check).decode(),
        **({"CUDA_VISIBLE_DEVICES": ""} if check is not None and check.forced_devices else {}),
    }


def world_of_one(port: int) -> dict[str, str]:
    """The variables that ``torchrun --nproc-per-node 1`` gives to its process."""
    ranks = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK")
    sizes = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE")
    return {
        **dict.fromkeys(ranks, "0"),
        **dict.fromkeys(sizes, "1"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }


def observed_run() -> RunPaths | None:
    """Where this process is observed into; None when it is not observed."""
    root = os.environ.get(RUN_VARIABLE)
    return RunPaths(Path(root)) if root else None


def observed_facts() -> ProcessFacts:
    """The facts of this process, which is observed."""
    return ProcessFacts(
        rank=_integer("RANK"),
        num_ranks=_integer("WORLD_SIZE"),
        local_rank=_integer("LOCAL_RANK"),
        every=_integer(_EVERY) or 1,
        pin=os.environ.get(_PIN) == "1",
        check=_check_facts(),
    )


def _check_facts() -> CheckFacts | None:
    text = os.environ.get(_CHECK)
    return msgspec.json.decode(text, type=CheckFacts) if text else None


def _integer(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
