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


def agent_environment() -> dict[str, str]:
    """This environment, for an agent and its ranks: one intra-op thread, no pooled cores.

    OpenMP reads its thread count once, when a thread first uses it; torch.set_num_threads reaches
    only the calling thread.
    """
    single_threaded = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **single_threaded, "PYTHONUNBUFFERED": "1"}
