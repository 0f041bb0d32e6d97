"""Whether contents that training and evaluation share may be equal by chance: rows of a few
discrete values are, now and then, and then they are within each set too."""

from collections import defaultdict
from math import expm1, log, sqrt
from statistics import mean
from typing import final

import msgspec

from scaleproof.checks.held_out import Contents, Look

_NUM_DEVIATIONS = 3.0
"""Of a Poisson count, from which on it is no longer what was expected."""

_MOST = 0.5
"""Share of an evaluation's contents from which on its kinds are few, and common ones natural."""

_NEARLY_ALL = 0.9


@final
class Repeats(msgspec.Struct, frozen=True, kw_only=True):
    """Of one set: the items of a pass over it that equal an earlier one of theirs, and how many
    would, were all kinds of items equally likely, and as few as what the two sets share says:
    ``num_expected`` if all that was trained on was drawn by chance, ``most_expected`` if only one
    of each kind was, and the others are its copies."""

    num_equal: float
    num_expected: float
    most_expected: float

    @property
    def is_fewer(self) -> bool:
        return self.num_equal < self.num_expected - _NUM_DEVIATIONS * sqrt(self.num_expected)

    @property
    def is_more(self) -> bool:
        return self.num_equal > self.most_expected + _NUM_DEVIATIONS * sqrt(self.most_expected)


@final
class Coincidences(msgspec.Struct, frozen=True, kw_only=True):
    """What chance makes of a ``share`` of an evaluation's contents being in training too.

    ``is_complete``: all contents of both were looked at and kept.
    """

    share: float
    trained: Repeats
    evaluated: Repeats
    is_complete: bool

    @property
    def is_ruled_out(self) -> bool:
        """Where items are equal by chance, they are so within a set as often as between two.
        Unequally likely kinds repeat more; so does a training set in which some were repeated on
        purpose."""
        if not (self.trained.num_equal or self.evaluated.num_equal):
            return True
        return self.trained.is_fewer or self.evaluated.is_fewer

    @property
    def is_of_few_kinds(self) -> bool:
        """Nearly every content is in both sets, and again and again in each."""
        return self.share >= _NEARLY_ALL and not self.is_ruled_out

    @property
    def is_of_copies(self) -> bool:
        """Most contents are met once, and some, over and over: these were repeated before the
        split."""
        return self.is_complete and self.share < _MOST and self.evaluated.is_more


def coincidences(trained: Contents, evaluated: Contents, share: float) -> Coincidences:
    """``share``: of the different contents of ``evaluated``, those that are in ``trained``."""
    # All of some: half a content may have been missed.
    share_below_1 = min(share, 1 - 0.5 / max(1, len(evaluated.digests)))
    num_met = -log(1 - share_below_1)  # items trained on, of each kind
    rates = num_met / max(1, trained.num_items), num_met / max(1, len(trained.digests))
    return Coincidences(
        share=share,
        trained=_repeats(trained, *rates),
        evaluated=_repeats(evaluated, *rates),
        is_complete=trained.is_complete and evaluated.is_complete,
    )


def _repeats(contents: Contents, rate: float, most: float) -> Repeats:
    """``rate`` and ``most``: how often a kind is expected for each item drawn."""
    by_rank: dict[int, list[Look]] = defaultdict(list)
    for look in contents.looks:
        by_rank[look.rank].append(look)
    ranks = by_rank.values()
    return Repeats(
        num_equal=sum(mean(look.num_equal for look in looks) for looks in ranks),
        num_expected=sum(mean(_num_expected(look, rate) for look in looks) for looks in ranks),
        most_expected=sum(mean(_num_expected(look, most) for look in looks) for looks in ranks),
    )


def _num_expected(look: Look, rate: float) -> float:
    """Of its items, those of a kind that came before: draws from equally likely kinds."""
    per_kind = look.num_items * rate
    return look.num_items * (1 + expm1(-per_kind) / per_kind) if per_kind else 0.0
