"""Which ranks' forwards were given the same, at the steps that were probed."""

from collections.abc import Mapping, Sequence
from itertools import combinations

TELLING_SHARE = 0.5
"""Of steps whose digests of a tensor differ from each other, at least: one that is always the same,
as positions or a graph's edges, is no data."""

_KNOWN_SHARE = 0.9


def most_alike(steps: Sequence[Mapping[int, str]]) -> tuple[int, tuple[int, int]]:
    """The two ranks that were given the same inputs at most steps, and at how many. ``steps``: of
    each, by rank, the ``inputs_digest`` of its ``ProbeRecord``."""
    ranks = sorted({rank for step in steps for rank in step})
    return max(
        ((_num_same(steps, a, b), (a, b)) for a, b in combinations(ranks, 2)),
        key=lambda found: (found[0], found[1]),
        default=(0, (0, 0)),
    )


def _num_same(steps: Sequence[Mapping[int, str]], a: int, b: int) -> int:
    """What a script carries along with its data, as a hidden state, may differ where that does
    not: the first tensor that changes from step to step tells too."""
    both = [(step[a], step[b]) for step in steps if a in step and b in step]
    ours, theirs = ([pair[i].split("/") for pair in both] for i in (0, 1))
    num_all = sum(one == other for one, other in both)
    for i in range(max(map(len, ours), default=0)):
        pairs = [
            (one[i], other[i])
            for one, other in zip(ours, theirs, strict=True)
            if i < len(one) and i < len(other) and not one[i].startswith("~")
        ]
        num_different = len({one for one, _ in pairs})
        is_known = len(pairs) >= _KNOWN_SHARE * len(both)
        if is_known and num_different >= max(2, TELLING_SHARE * len(pairs)):
            return max(num_all, sum(one == other for one, other in pairs))
    return num_all
