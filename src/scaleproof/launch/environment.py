"""The only place that reads environment variables."""

import os
from dataclasses import dataclass
from typing import final

from scaleproof.errors import UsageError


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
