"""Which training items ranks share in a pass, by id, by content, or by what forward was given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from typing import Literal, final

import msgspec
import numpy as np
from pyroaring import BitMap

from scaleproof.checks.model_parallel import one_of_each_model
from scaleproof.checks.passes import (
    MAX_CHANCE_FACTOR,
    RankPass,
    Sameness,
    SharedLoader,
    SharedPass,
    has_stable_contents,
    sameness,
    shared_loaders,
)
from scaleproof.checks.same_inputs import most_alike
from scaleproof.checks.wording import counted
from scaleproof.evidence.observations import ProbeRecord
from scaleproof.evidence.study import Run

_MIN_ORDERED = 8
_MIN_BY_CHANCE = 5.0
"""Shared items expected of independent draws, from which on seeing none says that the draws are
not independent: none at all has then a probability below 0.7 % (Poisson)."""
_MIN_PROBES = 2
_ALMOST_ALL = 0.9


class Cause(StrEnum):
    """Why ranks were handed the same items, as far as it shows."""

    SAME_SHARD = "same-shard"
    NOT_DIVIDED = "not-divided"
    OWN_SUBSET = "own-subset"
    OWN_SEED = "own-seed"
    STREAM = "stream"
    SAME_INPUTS = "same-inputs"
    OTHER = "other"


@final
class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """Items that more than one rank was handed in one training pass; ``number`` is from 0.

    ``num_allowed``: repeats that a sampler or loader makes to even out the ranks. ``is_chance``:
    no more than drawing again at random brings about. ``is_same_order``: two ranks were handed
    the same items in the same order. By ``inputs``, the items are forwards at probed steps.
    """

    run: str
    where: str
    number: int
    ranks: tuple[int, ...]
    by: Literal["ids", "contents", "inputs"]
    num_shared: int
    num_different: int
    num_extra: int
    num_allowed: int
    is_chance: bool
    is_same_order: bool
    cause: Cause
    num_passes: int = 1
    """Passes of the loader that have it: this one has the largest share."""

    @property
    def share(self) -> float:
        return self.num_shared / max(1, self.num_different)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverlaps:
    """Of one run. ``num_passes``: training passes that two ranks or more made, 0 for a script
    without loaders; ``num_compared``: those, or the probed steps in their place. ``overlaps``: of
    each loader the pass that shares most. ``unclear``: why something could not be compared."""

    num_passes: int
    num_compared: int
    overlaps: tuple[Overlap, ...]
    unclear: tuple[str, ...]
    num_left_out: int = 0
    """Ranks that hold other parts of a compared rank's model, and are fed what it is."""


def overlaps_of(run: Run) -> RunOverlaps:
    """One rank of each copy of the model is compared."""
    of_each = one_of_each_model(run)
    num_left_out = len(run.ranks) - len(of_each.ranks)
    if num_left_out and len(of_each.ranks) == 1:
        nothing = RunOverlaps(num_passes=0, num_compared=0, overlaps=(), unclear=())
        return replace(nothing, num_left_out=num_left_out)
    return replace(_overlaps_of(of_each), num_left_out=num_left_out)


def _overlaps_of(run: Run) -> RunOverlaps:
    loaders = [
        loader
        for loader in shared_loaders(run)
        if any(len(shared.by_rank) > 1 for shared in loader.training)
    ]
    if not loaders:
        return _measure_inputs(run)
    num_passes = 0
    overlaps: list[Overlap] = []
    unclear: list[str] = []
    for loader in loaders:
        shared = [one for one in loader.training if len(one.by_rank) > 1]
        num_passes += len(shared)
        found, why = _measure_loader(loader, shared)
        overlaps += found
        if why:
            unclear.append(f"{run.name}: {why}")
    return RunOverlaps(
        num_passes=num_passes,
        num_compared=num_passes,
        overlaps=tuple(overlaps),
        unclear=tuple(unclear),
    )


def _measure_loader(
    loader: SharedLoader, passes: Sequence[SharedPass]
) -> tuple[list[Overlap], str]:
    """The overlap of the pass that shares most, if any; and why it could not be told, if so."""
    has_ids = all(shared.has_ids for shared in passes)
    found = [
        overlap
        for shared in passes
        if (overlap := _by_ids(loader, shared) if has_ids else _by_contents(loader, shared))
        is not None
    ]
    if not found:
        return [], _why_none(loader, passes) if has_ids else _why_no_contents(loader, passes)
    faulty = [overlap for overlap in found if overlap.num_extra > overlap.num_allowed]
    most = max(faulty or found, key=lambda overlap: (overlap.is_same_order, overlap.share))
    if has_ids:
        ours, theirs = (loader.of_rank(rank) for rank in most.ranks[:2])
        match sameness(ours, theirs):
            case Sameness.DIFFERENT:
                return [], ""
            case Sameness.DOUBTFUL:
                return [], (
                    f"ranks {most.ranks[0]} and {most.ranks[1]} were handed items of the same ids "
                    f"from {loader.words} whose contents differ: either each has data of its own, "
                    "or the contents change from one look to the next"
                )
            case _:
                pass
    return [msgspec.structs.replace(most, num_passes=len(faulty or found))], ""


def _by_ids(loader: SharedLoader, shared: SharedPass) -> Overlap | None:
    union, common = BitMap(), BitMap()
    seen_by: dict[int, BitMap] = {}
    for one in shared.by_rank:
        seen = seen_by[one.rank.rank] = one.seen()
        common |= union & seen
        union |= seen
    if not common:
        return None
    num_seen = sum(map(len, seen_by.values()))
    num_extra = num_seen - len(union)
    same_order = _same_order(shared)
    is_whole_set = all(len(seen) >= _ALMOST_ALL * len(union) for seen in seen_by.values())
    return Overlap(
        run=loader.run,
        where=loader.words,
        number=shared.number,
        ranks=same_order or tuple(r for r, seen in seen_by.items() if seen.intersect(common)),
        by="ids",
        num_shared=len(common),
        num_different=len(union),
        num_extra=num_extra,
        num_allowed=_num_allowed(loader, shared, is_whole_set=is_whole_set),
        is_chance=_is_chance(
            shared, num_extra / num_seen, (shared.num_fed - num_seen) / shared.num_fed
        ),
        is_same_order=bool(same_order),
        cause=_cause(loader, is_whole_set=is_whole_set),
    )


def _by_contents(loader: SharedLoader, shared: SharedPass) -> Overlap | None:
    limit = min(one.record.content_limit for one in shared.by_rank)
    kept = [one.contents(limit) for one in shared.by_rank]
    known = [values for values in kept if values is not None and len(values)]
    if len(known) < len(kept):
        return None
    different, counts = np.unique(np.concatenate(known), return_counts=True)
    common = different[counts > 1]
    if not len(common):
        return None
    ranks = tuple(
        rank
        for rank, values in zip(shared.ranks, known, strict=True)
        if len(np.intersect1d(values, common, assume_unique=True))
    )
    num_seen = sum(map(len, known))
    num_extra = num_seen - len(different)
    num_repeats = sum(one.record.num_content_repeats for one in shared.by_rank)
    num_looked_at = num_repeats + sum(_num_contents(one) for one in shared.by_rank)
    is_whole_set = all(len(values) >= _ALMOST_ALL * len(different) for values in known)
    return Overlap(
        run=loader.run,
        where=loader.words,
        number=shared.number,
        ranks=ranks,
        by="contents",
        num_shared=len(common),
        num_different=len(different),
        num_extra=num_extra,
        num_allowed=_num_allowed(loader, shared, is_whole_set=is_whole_set),
        is_chance=_is_chance(shared, num_extra / num_seen, num_repeats / num_looked_at),
        is_same_order=False,  # without ids, nobody recorded the order
        cause=Cause.STREAM,
    )


def _num_contents(one: RankPass) -> int:
    contents = one.contents()
    return 0 if contents is None else len(contents)


def _is_chance(shared: SharedPass, share_between: float, share_within: float) -> bool:
    """Items drawn at random, again and again, repeat between N ranks N - 1 times as often as
    within them."""
    if all(one.repeats_on_purpose for one in shared.by_rank):
        return True
    return share_between <= MAX_CHANCE_FACTOR * (len(shared.by_rank) - 1) * share_within


def _num_allowed(loader: SharedLoader, shared: SharedPass, *, is_whole_set: bool) -> int:
    if loader.has_own_shards:
        return len(shared.by_rank) - 1
    return 0 if is_whole_set else len(shared.by_rank) * shared.max_batch_size() - 1


def _same_order(shared: SharedPass) -> tuple[int, ...]:
    """Ranks that were handed the same items in the same order."""
    ranks_by_order: dict[str, list[int]] = {}
    for one in shared.by_rank:
        if one.record.num_fed >= _MIN_ORDERED:
            ranks_by_order.setdefault(one.record.order_digest, []).append(one.rank.rank)
    most = max(ranks_by_order.values(), key=len, default=list[int]())
    return tuple(most) if len(most) > 1 else ()


def _cause(loader: SharedLoader, *, is_whole_set: bool) -> Cause:
    shards = [one.shards for one in loader.loaders.values()]
    if _has_own_subsets(loader):
        return Cause.OWN_SUBSET
    if loader.has_own_shards:
        return Cause.OWN_SEED
    if len(set(shards)) < len(shards) and None not in shards:
        return Cause.SAME_SHARD
    if is_whole_set or all(
        one.sampler.endswith(".RandomSampler") for one in loader.loaders.values()
    ):
        return Cause.NOT_DIVIDED
    return Cause.OTHER


def _has_own_subsets(loader: SharedLoader) -> bool:
    """All ranks together were handed more items than the subset of any of them has."""
    if not 0 < loader.num_items < loader.family[2]:
        return False
    seen = (one.seen() for shared in loader.training for one in shared.by_rank)
    return len(BitMap.union(BitMap(), *seen)) > loader.num_items


def _why_none(loader: SharedLoader, passes: Sequence[SharedPass]) -> str:
    """Why sharing nothing says little: empty when it says enough."""
    if loader.has_own_shards or loader.num_items <= 0:
        return ""
    expected = sum(
        one.record.num_fed * other.record.num_fed / loader.num_items
        for shared in passes
        for one, other in combinations(shared.by_rank, 2)
    )
    if expected >= _MIN_BY_CHANCE:
        return ""
    num_fed = sum(shared.num_fed for shared in passes)
    return (
        f"no sampler says that it divides the {counted(loader.num_items, 'item')} of "
        f"{loader.words}, and of the {num_fed:,} handed out none was shared: so few that "
        "independent draws may not have met either"
    )


def _why_no_contents(loader: SharedLoader, passes: Sequence[SharedPass]) -> str:
    every = [one for shared in passes for one in shared.by_rank]
    if not all(_num_contents(one) for one in every):
        return f"items of {loader.words} have neither ids nor tensors to tell them by"
    is_drawn = any(one.record.drawn for one in every)
    if is_drawn and not has_stable_contents([one for one in every if one.rank is every[0].rank]):
        return (
            f"items of {loader.words} have no ids, and drawing random numbers while they are made "
            "may hide that ranks share them"
        )
    return ""


def _measure_inputs(run: Run) -> RunOverlaps:
    """By what the forwards of a script without loaders were given."""
    inputs_by_step: dict[int, dict[int, str]] = {}
    for rank in run.ranks:
        for probe in rank.of(ProbeRecord):
            if probe.inputs_digest:
                inputs_by_step.setdefault(probe.step, {})[rank.rank] = probe.inputs_digest
    steps = [inputs for inputs in inputs_by_step.values() if len(inputs) > 1]
    most = most_alike(steps)
    if len(steps) < _MIN_PROBES:
        return RunOverlaps(
            num_passes=0,
            num_compared=len(steps),
            overlaps=(),
            unclear=(
                f"{run.name}: no DataLoader hands items to two ranks, and what forward was given "
                f"is known on both at {counted(len(steps), 'step')}",
            ),
        )
    is_same = most[0] >= _ALMOST_ALL * len(steps)
    overlap = Overlap(
        run=run.name,
        where="",
        number=0,
        ranks=most[1],
        by="inputs",
        num_shared=most[0],
        num_different=len(steps),
        num_extra=most[0],
        num_allowed=0 if is_same else len(steps),
        is_chance=False,
        is_same_order=False,
        cause=Cause.SAME_INPUTS,
    )
    return RunOverlaps(
        num_passes=0,
        num_compared=len(steps),
        overlaps=(overlap,) if is_same else (),
        unclear=(),
    )
