"""What an observed script was seen to do: how it ran, where its steps' time went, what observing
cost, and what could not be observed."""

from collections.abc import Iterable, Sequence
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.evidence.observations import (
    OBSERVED_STEP_TABLE,
    EndRecord,
    LoaderRecord,
    OptimizerRecord,
    PassRecord,
    ProcessRecord,
)
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Run, Study
from scaleproof.evidence.troubles import Unobserved, read_troubles, unobserved_by_ranks
from scaleproof.report.compared import compared_runs

PHASES = tuple(
    name.removesuffix("_s") for name in OBSERVED_STEP_TABLE.names or () if name.endswith("_s")
)
"""What a step consists of: the columns of ``OBSERVED_STEP_TABLE`` that are times."""

NUM_WARM_UP_STEPS = 1
"""Left out of the phases: the first step waits for workers, compilers and allocators."""


@final
class ObservedLoader(msgspec.Struct, frozen=True, kw_only=True):
    """A loader of rank 0. ``num_items`` is -1 when it has no length; ``uses``: what for."""

    where: str
    uses: tuple[str, ...]
    data_set_type: str
    num_items: int
    batch_size: int | None
    sampler: str
    num_workers: int


@final
class ObservedOptimizer(msgspec.Struct, frozen=True, kw_only=True):
    """An optimizer of rank 0, and what it owned at its first step."""

    kind: str
    where: str
    num_parameters: int
    num_tensors: int


@final
class RankPhases(msgspec.Struct, frozen=True, kw_only=True):
    """Time of a rank's steps, over all runs of its arm. ``median_s`` and ``share`` are by phase;
    the shares are of the time of all steps together."""

    rank: int
    num_steps: int
    median_step_s: float
    median_s: dict[str, float]
    share: dict[str, float]


@final
class ObservingCost(msgspec.Struct, frozen=True, kw_only=True):
    """Time and memory that observing took on the rank where it took most of each; the times are
    of the rank with the largest share."""

    observed_s: float
    observer_s: float
    memory_bytes: int

    @property
    def share(self) -> float:
        return self.observer_s / self.observed_s


@final
class ObservedArm(msgspec.Struct, frozen=True, kw_only=True):
    """One command. Its words are those of the first run shown; None and empty where unknown.

    ``samples_per_update`` is the median over optimizer steps of the samples of all ranks.
    """

    arm: str
    script: str
    arguments: tuple[str, ...]
    num_ranks: int
    rank_source: str
    parallelism: str
    backend: str
    num_threads: tuple[int, ...]
    """Each number that some rank has, once."""
    loaders: tuple[ObservedLoader, ...]
    optimizers: tuple[ObservedOptimizer, ...]
    num_steps: int | None
    num_epochs: int | None
    num_skipped_steps: int
    samples_per_update: int | None
    phases: tuple[RankPhases, ...]
    cost: ObservingCost | None


@final
class ObservedScript(msgspec.Struct, frozen=True, kw_only=True):
    """``arms``: the baseline, when there is one, then the candidate, as far as they trained.
    ``troubles``: as said by processes, ``unobserved``: as said by ranks."""

    arms: tuple[ObservedArm, ...]
    unobserved: tuple[Unobserved, ...]
    troubles: tuple[str, ...]


def measure_observed(study: Study) -> ObservedScript | None:
    """None for a recipe."""
    if not study.is_script:
        return None
    arms = sorted(study.request.arms, key=lambda arm: arm.role != "baseline")
    runs = study.runs.values()
    troubles = (
        f"{trouble.what}: {trouble.why}" for run in runs for trouble in read_troubles(run.paths)
    )
    return ObservedScript(
        arms=tuple(found for arm in arms if (found := _arm(study, arm)) is not None),
        unobserved=tuple(gap for run in runs for gap in unobserved_by_ranks(run)),
        troubles=tuple(dict.fromkeys(troubles)),
    )


def _arm(study: Study, arm: Arm) -> ObservedArm | None:
    all_runs = [run for run in study.runs.values() if run.arm.name == arm.name]
    runs = [
        run
        for run in compared_runs(study, arm) or all_runs  # a run that failed is better than none
        if any(rank.of(ProcessRecord) for rank in run.ranks)
    ]
    if not runs:
        return None
    first = next(rank for rank in runs[0].ranks if rank.of(ProcessRecord))
    process = first.of(ProcessRecord)[0]
    ranks = [rank for run in runs for rank in run.ranks]
    ends = [end for rank in ranks for end in rank.of(EndRecord)]
    return ObservedArm(
        arm=arm.name,
        script=process.script,
        arguments=process.arguments,
        num_ranks=process.num_ranks,
        rank_source=process.rank_source,
        parallelism=process.parallelism,
        backend=process.backend,
        num_threads=tuple(
            sorted({p.num_threads for rank in ranks for p in rank.of(ProcessRecord)})
        ),
        loaders=_loaders(first),
        optimizers=_optimizers(first),
        num_steps=max((end.steps_done for end in ends), default=None),
        num_epochs=max((end.epochs_begun for end in ends), default=None),
        num_skipped_steps=max((end.num_skipped_steps for end in ends), default=0),
        samples_per_update=_samples_per_update(runs),
        phases=_phases(ranks),
        cost=_cost(ends),
    )


def _loaders(rank: Rank) -> tuple[ObservedLoader, ...]:
    uses: dict[int, dict[str, None]] = {}
    for record in rank.of(PassRecord):
        uses.setdefault(record.loader, {})[record.use] = None
    return tuple(
        ObservedLoader(
            where=loader.where,
            uses=tuple(uses.get(loader.loader, ())),
            data_set_type=_last(loader.data_set_type),
            num_items=loader.num_items,
            batch_size=loader.batch_size,
            sampler=_last(loader.sampler),
            num_workers=loader.num_workers,
        )
        for loader in rank.of(LoaderRecord)
    )


def _optimizers(rank: Rank) -> tuple[ObservedOptimizer, ...]:
    return tuple(
        ObservedOptimizer(
            kind=_last(record.kind),
            where=record.where,
            num_parameters=sum(tensor.numel for tensor in record.owned),
            num_tensors=len(record.owned),
        )
        for record in rank.of(OptimizerRecord)
        if record.moment == "first-step"
    )


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _samples_per_update(runs: Iterable[Run]) -> int | None:
    """None when a rank's batches were not seen."""
    counts: list[NDArray[np.int64]] = []
    for run in runs:
        tables = [rank.observed_steps["num_samples"].astype(np.int64) for rank in run.ranks]
        num_steps = min(map(len, tables))
        total = np.sum([table[:num_steps] for table in tables], axis=0)
        is_known = np.all([table[:num_steps] >= 0 for table in tables], axis=0)
        counts.append(total[is_known & (total > 0)])  # of two optimizers, one takes no new batch
    known = np.concatenate(counts)
    return int(np.median(known)) if len(known) else None


def _phases(ranks: Sequence[Rank]) -> tuple[RankPhases, ...]:
    by_rank: dict[int, list[NDArray[Any]]] = {}
    for rank in ranks:
        by_rank.setdefault(rank.rank, []).append(rank.observed_steps[NUM_WARM_UP_STEPS:])
    found = (_rank_phases(rank, np.concatenate(tables)) for rank, tables in by_rank.items())
    return tuple(phases for phases in found if phases is not None)


def _rank_phases(rank: int, table: NDArray[Any]) -> RankPhases | None:
    """None without a step after warm-up, and where the clock stood still."""
    times_s = np.array([table[f"{phase}_s"] for phase in PHASES], dtype=np.float64)
    total_s = times_s.sum()
    if len(table) == 0 or not 0 < total_s < np.inf:
        return None
    return RankPhases(
        rank=rank,
        num_steps=len(table),
        median_step_s=float(np.median(times_s.sum(axis=0))),
        median_s=dict(zip(PHASES, np.median(times_s, axis=1).tolist(), strict=True)),
        share=dict(zip(PHASES, (times_s.sum(axis=1) / total_s).tolist(), strict=True)),
    )


def _cost(ends: Iterable[EndRecord]) -> ObservingCost | None:
    timed = [end for end in ends if end.observed_s > 0]
    if not timed:
        return None
    most = max(timed, key=lambda end: end.observer_s / end.observed_s)
    return ObservingCost(
        observed_s=most.observed_s,
        observer_s=most.observer_s,
        memory_bytes=max(end.observer_memory_bytes for end in timed),
    )
