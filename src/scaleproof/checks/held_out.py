"""What was trained on and what was evaluated on, by optimizer: an evaluation belongs to the
optimizer that stepped last before it, so that the folds of a cross-validation, each with a model
and an optimizer of its own, are kept apart."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.checks.passes import (
    ALL_CONTENTS,
    RankPass,
    SharedLoader,
    coverage,
    has_stable_contents,
    shared_loaders,
)
from scaleproof.evidence.observations import LoaderRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run

Root = tuple[str, int, int]
"""A data set on every rank: its type, its size, and which of those it is on its rank."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What was trained on from one data set, with one optimizer. ``ids`` and ``passes``: by
    rank; those of passes without ids are empty."""

    ids: Mapping[int, BitMap]
    passes: Mapping[int, Sequence[RankPass]]
    words: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What one loader was evaluated with after steps of ``optimizer``. ``ids``: by rank."""

    optimizer: int
    root: Root
    words: str
    is_training_loader: bool
    """The loader is trained with too."""
    has_ids: bool
    ids: Mapping[int, BitMap]
    passes: tuple[RankPass, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A pass of one rank: the items whose contents were looked at and kept, each once, and how
    many of them equal an earlier one."""

    rank: int
    num_items: int
    num_equal: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Digests of contents, sorted, each once: those up to ``limit``. ``num_items``: different
    items that all passes of all ranks together handed out. ``is_complete``: every item of every
    pass was looked at, and its digest kept. ``is_stable``: nothing shows that random augmentation
    hides what is equal."""

    digests: NDArray[np.uint64]
    limit: int
    num_items: int
    looks: tuple[Look, ...]
    is_complete: bool
    is_stable: bool
    ranks: tuple[int, ...]
    words: str


def trained_sets(run: Run) -> dict[int, dict[Root, Trained]]:
    """By optimizer and data set."""
    passes: dict[tuple[int, Root], dict[int, list[RankPass]]] = {}
    words: dict[tuple[int, Root], str] = {}
    roots = {rank.rank: _roots(rank) for rank in run.ranks}
    for loader in shared_loaders(run):
        for one in (one for shared in loader.training for one in shared.by_rank):
            root = roots[one.rank.rank][one.loader.data_set]
            for optimizer in _optimizers_during(one):
                by_rank = passes.setdefault((optimizer, root), {})
                by_rank.setdefault(one.rank.rank, []).append(one)
                words.setdefault((optimizer, root), loader.words)
    trained: dict[int, dict[Root, Trained]] = defaultdict(dict)
    for (optimizer, root), by_rank in passes.items():
        trained[optimizer][root] = Trained(
            ids={rank: _union(ones) for rank, ones in by_rank.items()},
            passes=by_rank,
            words=words[optimizer, root],
        )
    return trained


def evaluated_sets(run: Run) -> list[Evaluated]:
    """Of every loader, what it was evaluated with once a step was made. One batch of a training
    loader, taken to look at its shape before training goes on with that loader, is no evaluation.
    """
    roots = {rank.rank: _roots(rank) for rank in run.ranks}
    evaluated: list[Evaluated] = []
    for loader in shared_loaders(run):
        by_optimizer: dict[int, list[RankPass]] = defaultdict(list)
        for one in (one for shared in loader.evaluation for one in shared.by_rank):
            if one.record.first_step > 0 and not _is_glance(loader, one):
                by_optimizer[_optimizer_before(one)].append(one)
        for optimizer, passes in sorted(by_optimizer.items()):
            root = roots[passes[0].rank.rank][passes[0].loader.data_set]
            evaluated.append(_evaluated(loader, optimizer, root, passes))
    return evaluated


def contents_of(passes: Sequence[RankPass], words: str) -> Contents | None:
    """The contents of some passes together; None when none of them has any."""
    known = [one for one in passes if one.record.contents is not None]
    if not known:
        return None
    limit = min([ALL_CONTENTS, *(one.record.content_limit for one in known)])
    kept = [values for one in known if (values := one.contents(limit)) is not None]
    looks = [
        Look(rank=one.rank.rank, num_items=len(values) + equal, num_equal=equal)
        for one, values in zip(known, kept, strict=True)
        for equal in [_num_equal(one)]
    ]
    by_rank: dict[int, list[RankPass]] = defaultdict(list)
    for one in known:
        by_rank[one.rank.rank].append(one)
    is_drawn = any(one.record.drawn for one in known)
    return Contents(
        digests=np.unique(np.concatenate(kept)),
        limit=limit,
        num_items=_num_items(known, looks),
        looks=tuple(looks),
        is_complete=limit >= ALL_CONTENTS and all(coverage(one) == 1.0 for one in passes),
        is_stable=not is_drawn or all(map(has_stable_contents, by_rank.values())),
        ranks=tuple(by_rank),
        words=words,
    )


def _evaluated(
    loader: SharedLoader, optimizer: int, root: Root, passes: Sequence[RankPass]
) -> Evaluated:
    by_rank: dict[int, list[RankPass]] = defaultdict(list)
    for one in passes:
        by_rank[one.rank.rank].append(one)
    return Evaluated(
        optimizer=optimizer,
        root=root,
        words=loader.words,
        is_training_loader=bool(loader.training),
        has_ids=all(one.record.has_ids for one in passes),
        ids={rank: _union(ones) for rank, ones in by_rank.items()},
        passes=tuple(passes),
    )


def _is_glance(loader: SharedLoader, one: RankPass) -> bool:
    """``next(iter(loader))``, by a rank that trains with the same loader later."""
    record = one.record
    is_one_batch = record.num_batches == 1 and not record.is_whole
    return (
        is_one_batch
        and record.first_step == record.last_step
        and any(
            own.record.number > record.number
            for shared in reversed(loader.training)
            for own in shared.by_rank
            if own.rank.rank == one.rank.rank
        )
    )


def _num_equal(one: RankPass) -> int:
    """Items that equal an earlier one of their pass, without being that item again."""
    num_again = one.record.num_fed - len(one.seen()) if one.record.has_ids else 0
    return max(0, one.record.num_content_repeats - num_again)


def _num_items(passes: Sequence[RankPass], looks: Sequence[Look]) -> int:
    """Of data without ids, no pass is believed to bring others than the one before."""
    by_ids: dict[tuple[str, int], BitMap] = defaultdict(BitMap)
    without: Counter[int] = Counter()
    for one, look in zip(passes, looks, strict=True):
        if one.record.has_ids:
            by_ids[one.loader.data_set_type, one.loader.num_root] |= one.seen()
        else:
            without[one.record.number] += look.num_items
    return sum(map(len, by_ids.values())) + max(without.values(), default=0)


def _union(passes: Sequence[RankPass]) -> BitMap:
    return BitMap.union(BitMap(), *(one.seen() for one in passes if one.record.has_ids))


def _roots(rank: Rank) -> dict[int, Root]:
    """By the number of the data set. A number says which object it is on its own rank only."""
    counts: Counter[tuple[str, int]] = Counter()
    roots: dict[int, Root] = {}
    for loader in rank.of(LoaderRecord):
        if loader.data_set not in roots:
            kind = (loader.data_set_type, loader.num_root)
            roots[loader.data_set] = (*kind, counts[kind])
            counts[kind] += 1
    return roots


def _optimizers_during(one: RankPass) -> set[int]:
    """That made steps during the pass. The last step of a pass that was broken off is after it."""
    table = one.rank.observed_steps["optimizer"]
    last = max(one.record.last_step, one.record.first_step + 1)
    return {int(number) for number in np.unique(table[one.record.first_step : last])} or {0}


def _optimizer_before(one: RankPass) -> int:
    table = one.rank.observed_steps["optimizer"]
    step = min(one.record.first_step, len(table))
    return int(table[step - 1]) if step else 0
