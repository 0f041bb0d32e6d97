"""What the ranks of an observed script drew from their loaders, side by side: the same loader on
every rank, and on it the same pass."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.errors import EvidenceError
from scaleproof.evidence.observations import LoaderRecord, PassRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run
from scaleproof.evidence.writer import digest_of

ALL_CONTENTS = 2**64 - 1
"""The ``content_limit`` of a pass that kept every digest."""

REPEATS_ON_PURPOSE = ("WeightedRandomSampler", "RASampler", "RepeatAugSampler")
"""Samplers that give an item to several ranks by design: draws with replacement, repeated
augmentation."""

MAX_CHANCE_FACTOR = 3.0
"""Items drawn again at random repeat between ranks as often as chance has it, given how often they
repeat within each; beyond so many times that, it is no chance."""

_Family = tuple[str, str, int]
_MIN_SAMPLED = 10.0
_MAX_COMPARED = 3
_SAME_FROM = 0.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankPass:
    """One pass of one rank. What is on disk is read anew at every call: passes are many."""

    rank: Rank
    loader: LoaderRecord
    record: PassRecord

    def seen(self) -> BitMap:
        """Root data set ids it was handed."""
        ids = self.rank.bitmap(self.record.seen)
        if len(ids) > self.record.num_fed:
            raise EvidenceError(
                f"{self.rank.folder} contradicts itself in pass {self.record.number} over loader "
                f"{self.record.loader}: {self.record.num_fed} items fed, {len(ids)} different ids. "
                "Restore the folder from where the study was made."
            )
        return ids

    def repeated(self) -> BitMap:
        return self.rank.bitmap(self.record.repeated)

    def contents(self, limit: int = ALL_CONTENTS) -> NDArray[np.uint64] | None:
        """Digests up to and including ``limit``, sorted; None when there are none."""
        if self.record.contents is None:
            return None
        values = self.rank.array(self.record.contents, np.dtype("<u8"))
        return values if limit >= ALL_CONTENTS else values[values <= np.uint64(limit)]

    def batch_sizes(self) -> NDArray[np.int32]:
        """Shape ``(num_batches,)``."""
        return self.rank.array(self.record.batch_sizes, np.dtype("<i4"))

    @property
    def is_batch_sampled(self) -> bool:
        """A batch sampler of the script's (or Accelerate's) draws: ``loader.sampler`` is only what
        torch put there."""
        return self.loader.batch_size is None

    @property
    def has_sequential_sampler(self) -> bool:
        return self.loader.sampler.endswith("SequentialSampler") and not self.is_batch_sampled

    @property
    def repeats_on_purpose(self) -> bool:
        return self.loader.sampler.endswith(REPEATS_ON_PURPOSE)

    def is_ascending(self) -> bool:
        """Ids came in ascending order; a sampler may have added the first one at the end."""
        ids = np.frombuffer(self.seen().to_array(), np.uint32).astype(np.int64)
        if not self.record.has_ids or len(ids) != self.record.num_fed:
            return False
        orders = (ids, np.roll(ids, -1))
        return self.record.order_digest in {digest_of(order.tobytes()) for order in orders}


_Own = tuple[LoaderRecord, list[RankPass]]
"""A loader of one rank, with its passes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPass:
    """One pass over a loader, by the ranks that made it; ``number`` counts those of its use."""

    number: int
    by_rank: tuple[RankPass, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(one.rank.rank for one in self.by_rank)

    @property
    def is_whole(self) -> bool:
        return all(one.record.is_whole for one in self.by_rank)

    @property
    def has_ids(self) -> bool:
        return all(one.record.has_ids for one in self.by_rank)

    @property
    def num_fed(self) -> int:
        return sum(one.record.num_fed for one in self.by_rank)

    def max_batch_size(self) -> int:
        return max((int(one.batch_sizes().max(initial=0)) for one in self.by_rank), default=0)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLoader:
    """One loader as each rank has it, with the passes that were not empty.

    ``family``: what loaders made anew in the same line, for the same data, have in common.
    """

    run: str
    num_ranks: int
    family: _Family
    loaders: Mapping[int, LoaderRecord]
    training: tuple[SharedPass, ...]
    evaluation: tuple[SharedPass, ...]
    is_matched: bool = True
    """False: which of the line's loaders on other ranks is this one can't be told."""

    @property
    def num_items(self) -> int:
        """Of the data set that the loader was given, on the rank that has most; -1: unknown."""
        return max(loader.num_items for loader in self.loaders.values())

    @property
    def words(self) -> str:
        """``the loader of train.py:37``."""
        return loader_words(self.family[0])

    @property
    def has_own_shards(self) -> bool:
        """Its samplers say of themselves that each takes a part of its own."""
        shards = [loader.shards for loader in self.loaders.values()]
        parts = {shard[0] for shard in shards if shard is not None}
        sizes = {shard[1] for shard in shards if shard is not None}
        return len(parts) == len(shards) and len(sizes) == 1

    def of_rank(self, rank: int) -> list[RankPass]:
        """All passes of one rank, those of training first."""
        every = (*self.training, *self.evaluation)
        return [one for shared in every for one in shared.by_rank if one.rank.rank == rank]


def loader_words(where: str) -> str:
    return f"the loader of {where}" if where else "a loader"


def passes_words(number: int) -> str:
    """``1 training pass``, ``12 training passes``."""
    return f"{number:,} training {'pass' if number == 1 else 'passes'}"


def shared_loaders(run: Run) -> tuple[SharedLoader, ...]:
    """The loaders of all ranks, matched among those that the same line made for the same data and
    the same use: some ranks may make more of them than others."""
    groups: dict[tuple[_Family, bool], dict[int, list[_Own]]] = {}
    for rank in run.ranks:
        for own in _loaders_of(rank):
            family = (own[0].where, own[0].data_set_type, own[0].num_root)
            groups.setdefault((family, _trains(own)), {}).setdefault(rank.rank, []).append(own)
    last_steps = {rank.rank: _last_step(rank) for rank in run.ranks}
    shared: list[SharedLoader] = []
    for (family, _), of_rank in groups.items():
        matches, is_matched = _matched(of_rank, last_steps)
        shared += [
            SharedLoader(
                run=run.name,
                num_ranks=len(run.ranks),
                family=family,
                loaders={rank: loader for rank, (loader, _) in by_rank.items()},
                training=_shared([passes for _, passes in by_rank.values()], "training"),
                evaluation=_shared([passes for _, passes in by_rank.values()], "evaluation"),
                is_matched=is_matched or len(of_rank) == 1,
            )
            for by_rank in matches
        ]
    # In the order in which a rank first used them.
    return tuple(sorted(shared, key=lambda one: min(own.loader for own in one.loaders.values())))


def _trains(own: _Own) -> bool:
    return any(one.record.use == "training" for one in own[1])


def _last_step(rank: Rank) -> int:
    return max((record.last_step for record in rank.of(PassRecord)), default=0)


def _matched(
    of_rank: Mapping[int, Sequence[_Own]], last_steps: Mapping[int, int]
) -> tuple[list[dict[int, _Own]], bool]:
    """Which loaders of one line, data and use are one, and whether that could be told; where it
    could not, each of the loaders in doubt stands alone."""
    alike: dict[object, dict[int, list[_Own]]] = {}
    for rank, owns in of_rank.items():
        for own in owns:
            alike.setdefault(_kind(own[0]), {}).setdefault(rank, []).append(own)
    matches: list[dict[int, _Own]] = []
    rest: dict[int, list[_Own]] = {}
    for group in alike.values():
        if len(group) == len(of_rank) and _is_even(group):
            matches += _by_ordinal(group)
            continue
        for rank, owns in group.items():
            rest.setdefault(rank, []).extend(owns)
    rest = {rank: sorted(owns, key=lambda own: own[0].loader) for rank, owns in rest.items()}
    # Ranks with subsets of their own have loaders that are not alike, but as many of them.
    if _is_even(rest):
        return matches + _by_ordinal(rest), True
    by_start: dict[int, dict[int, list[_Own]]] = {}
    for rank, owns in rest.items():
        for own in owns:
            by_start.setdefault(_start(own), {}).setdefault(rank, []).append(own)
    starts = {rank: {_start(own) for own in owns} for rank, owns in rest.items()}
    most = max(starts.values(), key=len)
    # Ranks that made other numbers of steps don't count them alike.
    is_one_clock = len({last_steps[rank] for rank in rest}) == 1
    is_within = all(own <= most for own in starts.values())
    if is_one_clock and is_within and all(map(_is_even, by_start.values())):
        matches += [one for group in by_start.values() for one in _by_ordinal(group)]
        return matches, True
    alone = [{rank: own} for rank, owns in rest.items() for own in owns]
    return matches + alone, False


def _kind(loader: LoaderRecord) -> object:
    """What a loader has in common with itself on other ranks, unless each has data of its own."""
    return loader.num_items, loader.sampler, loader.shards and loader.shards[1]


def _is_even(group: Mapping[int, Sequence[_Own]]) -> bool:
    """Each rank has as many loaders."""
    return len({len(owns) for owns in group.values()}) <= 1


def _by_ordinal(group: Mapping[int, Sequence[_Own]]) -> list[dict[int, _Own]]:
    num_loaders = max(map(len, group.values()), default=0)
    return [{rank: owns[i] for rank, owns in group.items()} for i in range(num_loaders)]


def _start(own: _Own) -> int:
    """Steps done when its first pass began, of those that trained if any did; -1: no passes."""
    use = "training" if _trains(own) else "evaluation"
    return min((one.record.first_step for one in own[1] if one.record.use == use), default=-1)


def _loaders_of(rank: Rank) -> list[_Own]:
    loaders = {loader.loader: loader for loader in rank.of(LoaderRecord)}
    passes: dict[int, list[RankPass]] = {number: [] for number in loaders}
    for record in rank.of(PassRecord):
        if record.loader not in loaders:
            raise EvidenceError(
                f"{rank.folder} has a pass over loader {record.loader}, and no record of that "
                "loader. Restore the folder from where the study was made."
            )
        if record.num_fed > 0:
            one = RankPass(rank=rank, loader=loaders[record.loader], record=record)
            passes[record.loader].append(one)
    # A pass is written when it ends: one that ended late may have begun early.
    return [
        (loader, sorted(passes[number], key=lambda one: one.record.number))
        for number, loader in loaders.items()
    ]


def _shared(
    by_rank: Sequence[list[RankPass]], use: Literal["training", "evaluation"]
) -> tuple[SharedPass, ...]:
    """The passes of one use, put side by side in order; evaluations that not all ranks made, by
    the step at which they began."""
    of_use = [[one for one in passes if one.record.use == use] for passes in by_rank]
    of_use = [passes for passes in of_use if passes]
    is_regular = use == "training" or len({len(passes) for passes in of_use}) == 1
    groups: dict[tuple[int, int], list[RankPass]] = {}
    for passes in of_use:
        counts: Counter[int] = Counter()
        for one in passes:
            step = 0 if is_regular else one.record.first_step
            groups.setdefault((step, counts[step]), []).append(one)
            counts[step] += 1
    return tuple(
        SharedPass(number=number, by_rank=tuple(groups[key]))
        for number, key in enumerate(sorted(groups))
    )


class Sameness(Enum):
    """Whether an id means the same item on two ranks."""

    SAME = "same"
    DIFFERENT = "different"
    """Each has data of its own, numbered alike."""
    UNTESTED = "untested"
    """Contents can't tell (augmented, or not seen): the ids are all there is."""
    DOUBTFUL = "doubtful"
    """Contents differ, and nothing shows that they are the same from one pass to the next."""


def sameness(ours: Sequence[RankPass], theirs: Sequence[RankPass]) -> Sameness:
    """Compare the contents that two ranks were handed under the same ids, in up to three passes
    of each."""
    ours, theirs = ours[:_MAX_COMPARED], theirs[:_MAX_COMPARED]
    shares = [share for p in ours for q in theirs if (share := _shared_contents(p, q)) is not None]
    if not shares:
        return Sameness.UNTESTED
    if max(shares) >= _SAME_FROM:
        return Sameness.SAME
    stable = {_is_stable(ours), _is_stable(theirs)}
    if stable == {True}:
        return Sameness.DIFFERENT
    return Sameness.UNTESTED if False in stable else Sameness.DOUBTFUL


def _is_stable(passes: Sequence[RankPass]) -> bool | None:
    """Whether a rank was handed the same contents whenever it was handed the same ids; None where
    it never was, and nothing says that items are augmented at random."""
    again = [_shared_contents(one, other) for one, other in pairwise(passes)]
    known = [share for share in again if share is not None]
    if known:
        return min(known) >= _SAME_FROM
    return False if any(one.record.drawn for one in passes) else None


def _shared_contents(one: RankPass, other: RankPass) -> float | None:
    """How many contents two passes share, over how many they would, were the items with the same
    ids the same; None where too few are expected to tell."""
    limit = min(one.record.content_limit, other.record.content_limit)
    ours, theirs = one.contents(limit), other.contents(limit)
    if ours is None or theirs is None or not (one.record.has_ids and other.record.has_ids):
        return None
    my_ids, their_ids = one.seen(), other.seen()
    num_common = my_ids.intersection_cardinality(their_ids)
    if not num_common:
        return None
    expected = min(
        len(ours) * num_common / len(my_ids) * coverage(other),
        len(theirs) * num_common / len(their_ids) * coverage(one),
    )
    is_complete = limit >= ALL_CONTENTS and coverage(one) == coverage(other) == 1.0
    if expected < (1.0 if is_complete else _MIN_SAMPLED):
        return None
    return len(np.intersect1d(ours, theirs, assume_unique=True)) / expected


def has_stable_contents(passes: Sequence[RankPass]) -> bool:
    """Passes of one rank over the same data show the same contents again: nothing augments them
    at random. False where too little shows."""
    shares: list[float] = []
    for one, other in pairwise(passes[:_MAX_COMPARED]):
        limit = min(one.record.content_limit, other.record.content_limit)
        ours, theirs = one.contents(limit), other.contents(limit)
        if ours is not None and theirs is not None and min(len(ours), len(theirs)):
            num_again = len(np.intersect1d(ours, theirs, assume_unique=True))
            shares.append(num_again / min(len(ours), len(theirs)))
    return bool(shares) and min(shares) >= _SAME_FROM


def coverage(one: RankPass) -> float:
    """Share of a pass's items whose contents were looked at: the observer leaves batches out when
    looking takes too long. Above the limit they were, and are estimated."""
    contents = one.contents()
    if contents is None:
        return 0.0
    kept_share = max(one.record.content_limit / ALL_CONTENTS, 1e-12)
    num_looked_at = len(contents) / kept_share + one.record.num_content_repeats
    return 1.0 if num_looked_at >= 0.98 * one.record.num_fed else num_looked_at / one.record.num_fed
