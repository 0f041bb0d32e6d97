"""How many items the ranks' data sets hold together, where each may have a subset of its own."""

from collections.abc import Iterable

from pyroaring import BitMap

from scaleproof.checks.passes import RankPass, SharedLoader, SharedPass


def num_items_of_all(loader: SharedLoader, ever: BitMap) -> int:
    """``ever``: what any pass handed out. Where ranks have a subset each, and these have nothing
    in common, their sizes add up; where they do, what was handed out is all that is known."""
    if not has_own_subsets(loader, ever):
        return loader.num_items
    by_rank = {rank: _handed_to(loader, rank) for rank in loader.loaders}
    if sum(map(len, by_rank.values())) > len(ever):
        return len(ever)
    sizes = sum(loader.loaders[rank].num_items for rank, seen in by_rank.items() if seen)
    return max(len(ever), min(sizes, loader.family[2]))


def has_own_subsets(loader: SharedLoader, ever: BitMap) -> bool:
    """The ranks handed out more than any of them holds; or each reads its data from the first item
    on, and they still have nothing in common."""
    if len(ever) > loader.num_items:
        return True
    every = [one for rank in loader.loaders for one in loader.of_rank(rank)]
    if len({one.rank.rank for one in every}) < 2 or not all(map(_reads_from_the_first, every)):
        return False
    by_rank = [_handed_to(loader, rank) for rank in loader.loaders]
    return sum(map(len, by_rank)) == len(ever)


def num_rounded_off(loader: SharedLoader, num_items: int, *, has_other_use: bool) -> int:
    """Items of the data set at the root that are in no rank's subset, ``num_items`` being in one,
    because it was divided into equal parts: fewer than there are ranks. A data set with another
    use besides was divided on purpose."""
    num_root = loader.family[2]
    sizes = {own.num_items for own in loader.loaders.values()}
    is_in_parts = len(sizes) == 1 and num_items == len(loader.loaders) * next(iter(sizes))
    is_rounded = 0 < num_root - num_items < len(loader.loaders)
    return num_root - num_items if is_in_parts and is_rounded and not has_other_use else 0


def is_rest_scored(shared: SharedPass, num_rest: int, loaders: Iterable[SharedLoader]) -> bool:
    """Between the same two steps of training, another loader handed out ``num_rest`` items of the
    same data set, and none that ``shared`` did: the tail that a division leaves over, which ranks
    score by itself. Another number of items is another set, such as a test set."""
    here = {one.rank.rank: one for one in shared.by_rank}
    for other in loaders:
        if other.training or other.num_items != num_rest:
            continue
        for tail in other.evaluation:
            if not (tail.is_whole and tail.has_ids) or not all(
                _is_of_one_moment(one, here.get(one.rank.rank)) for one in tail.by_rank
            ):
                continue
            rest = BitMap.union(*(one.seen() for one in tail.by_rank))
            scored = BitMap.union(*(one.seen() for one in shared.by_rank))
            if len(rest) == num_rest and not rest.intersect(scored):
                return True
    return False


def _is_of_one_moment(one: RankPass, other: RankPass | None) -> bool:
    return (
        other is not None
        and one.loader.data_set == other.loader.data_set
        and one.record.first_step == other.record.first_step
    )


def _handed_to(loader: SharedLoader, rank: int) -> BitMap:
    return BitMap.union(BitMap(), *(one.seen() for one in loader.of_rank(rank)))


def _reads_from_the_first(one: RankPass) -> bool:
    return one.has_sequential_sampler and one.loader.shards is None
