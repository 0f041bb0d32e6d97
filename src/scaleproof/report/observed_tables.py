"""The tables and sentences about an observed script that all text formats show."""

from collections.abc import Callable, Sequence

import numpy as np

from scaleproof.report import numbers
from scaleproof.report.observed import (
    PHASES,
    ObservedArm,
    ObservedLoader,
    ObservedOptimizer,
    RankPhases,
)
from scaleproof.report.summary import Summary
from scaleproof.report.tables import Table
from scaleproof.report.words import column_of

SHORT_RUN_S = 60.0
"""Of shorter runs, what observing does once, at the start, is most of what it costs."""
_OF_SHORT_RUNS = "That is mostly spent once, in the first steps: long runs pay a smaller share."

_MOST_RANKS = 4  # columns; more ranks are summed up
_MOST_LISTED = 6  # loaders, and optimizers
_MOST_CHARACTERS = 120

_RANK_SOURCES = {
    "process-group": "as their process group says",
    "environment": "as the environment says",
    "none": "nothing said that there are more",
}
_PARALLELISM = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDP2 (fully_shard)",
    "fsdp1": "FullyShardedDataParallel",
    "data-parallel": "DataParallel",
    "none": "no wrapper of torch's",
}
_PHASES = {
    "input_wait": "Waiting for input",
    "forward": "Forward",
    "backward": "Backward",
    "sync_wait": "Waiting for other ranks",
    "optimizer": "Optimizer",
    "other": "Other",
}


def what_ran(summary: Summary) -> Table | None:
    """How each command ran; None when none trained, and for a recipe."""
    arms = summary.observed.arms if summary.observed is not None else ()
    if not arms:
        return None
    rows = [(label, *map(words, arms)) for label, words in _ROWS]
    num_loaders = max(len(arm.loaders) for arm in arms)
    num_optimizers = max(len(arm.optimizers) for arm in arms)
    rows += [
        (_numbered("Loader", i, num_loaders), *(_loader(arm.loaders, i) for arm in arms))
        for i in range(min(num_loaders, _MOST_LISTED))
    ]
    rows += [
        (
            _numbered("Optimizer", i, num_optimizers),
            *(_optimizer(arm.optimizers, i) for arm in arms),
        )
        for i in range(min(num_optimizers, _MOST_LISTED))
    ]
    columns = [column_of(arm) for arm in summary.arms if arm.name in {a.arm for a in arms}]
    return Table(title="What ran", columns=("", *columns), rows=tuple(rows), numeric=False)


def phases(summary: Summary) -> tuple[Table, ...]:
    """Where the time of a step went: one table, or one per arm when there are many ranks."""
    arms = summary.observed.arms if summary.observed is not None else ()
    timed = [arm for arm in arms if arm.phases]
    if not timed:
        return ()
    title = "Time of a step: median, and share"
    if sum(len(arm.phases) for arm in timed) <= _MOST_RANKS:
        columns = [
            (f"{arm.arm}, rank {rank.rank}" if len(arms) > 1 else f"rank {rank.rank}", rank)
            for arm in timed
            for rank in arm.phases
        ]
        cells = [[_cell(rank, phase) for _, rank in columns] for phase in PHASES]
        total = [numbers.seconds(rank.median_step_s) for _, rank in columns]
        return (_phase_table(title, [heading for heading, _ in columns], cells, total),)
    return tuple(_one_arm(f"{title}; {arm.arm}" if len(arms) > 1 else title, arm) for arm in timed)


def cost(summary: Summary) -> tuple[str, ...]:
    """What observing cost: a sentence per arm and, of short runs, that their share is not that of
    a long one."""
    arms = summary.observed.arms if summary.observed is not None else ()
    sentences = tuple(
        f"Observing cost {numbers.percent(arm.cost.share)} of the run's time "
        f"({numbers.seconds(arm.cost.observer_s)} of {numbers.seconds(arm.cost.observed_s)}) and "
        f"{numbers.megabytes(arm.cost.memory_bytes)}"
        f"{f' in {arm.arm}' if len(arms) > 1 else ''}."
        for arm in arms
        if arm.cost is not None
    )
    is_short = any(arm.cost is not None and arm.cost.observed_s < SHORT_RUN_S for arm in arms)
    return (*sentences, _OF_SHORT_RUNS) if is_short else sentences


def _one_arm(title: str, arm: ObservedArm) -> Table:
    """Lowest, median and highest rank."""
    if len(arm.phases) <= _MOST_RANKS:
        cells = [[_cell(rank, phase) for rank in arm.phases] for phase in PHASES]
        total = [numbers.seconds(rank.median_step_s) for rank in arm.phases]
        return _phase_table(title, [f"rank {rank.rank}" for rank in arm.phases], cells, total)
    columns = ("lowest rank", f"median of {len(arm.phases):,}", "highest rank", "share, median")
    cells = [
        [
            *_spread(arm.phases, lambda rank, phase=phase: rank.median_s[phase]),
            numbers.percent(float(np.median([rank.share[phase] for rank in arm.phases]))),
        ]
        for phase in PHASES
    ]
    total = [*_spread(arm.phases, lambda rank: rank.median_step_s), ""]
    return _phase_table(title, columns, cells, total)


def _spread(ranks: Sequence[RankPhases], value_of: Callable[[RankPhases], float]) -> list[str]:
    values = [value_of(rank) for rank in ranks]
    return [numbers.seconds(float(np.quantile(values, q))) for q in (0.0, 0.5, 1.0)]


def _phase_table(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], total: Sequence[str]
) -> Table:
    rows = [(_PHASES[phase], *row) for phase, row in zip(PHASES, cells, strict=True)]
    return Table(title=title, columns=("", *columns), rows=(*rows, ("Step", *total)))


def _cell(rank: RankPhases, phase: str) -> str:
    return f"{numbers.seconds(rank.median_s[phase])} ({numbers.percent(rank.share[phase])})"


def _numbered(noun: str, index: int, num: int) -> str:
    return f"{noun} {index + 1} of {num:,}" if num > 1 else noun


def _command(arm: ObservedArm) -> str:
    words = " ".join((arm.script, *arm.arguments)).strip()
    return numbers.shortened(words, _MOST_CHARACTERS) or numbers.MISSING


def _parallelism(arm: ObservedArm) -> str:
    word = _PARALLELISM[arm.parallelism]
    return f"{word} over {arm.backend}" if arm.backend else word


def _threads(arm: ObservedArm) -> str:
    return numbers.listed([numbers.count(number) for number in arm.num_threads], most=4)


def _steps(arm: ObservedArm) -> str:
    if arm.num_steps is None or arm.num_epochs is None:
        return numbers.MISSING
    words = f"{numbers.count(arm.num_steps)} in {numbers.counted(arm.num_epochs, 'epoch')}"
    skipped = arm.num_skipped_steps
    return f"{words}, {numbers.count(skipped)} skipped by the GradScaler" if skipped else words


def _samples(arm: ObservedArm) -> str:
    samples = arm.samples_per_update
    return numbers.MISSING if samples is None else numbers.count(samples)


_ROWS: tuple[tuple[str, Callable[[ObservedArm], str]], ...] = (
    ("Script", _command),
    (
        "Ranks",
        lambda arm: f"{numbers.count(arm.num_ranks)}, {_RANK_SOURCES[arm.rank_source]}",
    ),
    ("Parallelism", _parallelism),
    ("Threads per rank", _threads),
    ("Steps", _steps),
    ("Samples per update", _samples),
)


def _loader(loaders: Sequence[ObservedLoader], index: int) -> str:
    if index >= len(loaders):
        return numbers.MISSING
    loader = loaders[index]
    parts = [" and ".join(loader.uses) or "unused"]
    if loader.num_items >= 0:
        parts.append(f"{numbers.counted(loader.num_items, 'item')} of {loader.data_set_type}")
    else:
        parts.append(f"{loader.data_set_type} without a length")
    if loader.batch_size is not None:
        parts.append(f"batches of {numbers.count(loader.batch_size)}")
    parts.append(loader.sampler)
    parts.append(numbers.counted(loader.num_workers, "worker"))
    return f"{loader.where or 'somewhere'}: {', '.join(part for part in parts if part)}"


def _optimizer(optimizers: Sequence[ObservedOptimizer], index: int) -> str:
    if index >= len(optimizers):
        return numbers.MISSING
    optimizer = optimizers[index]
    return (
        f"{optimizer.where or 'somewhere'}: {optimizer.kind}, "
        f"{numbers.counted(optimizer.num_parameters, 'parameter')} in "
        f"{numbers.counted(optimizer.num_tensors, 'tensor')}"
    )
