"""Whether parameters were the same on all ranks: before training, and again after the ranks had
used different gradients for them."""

from collections.abc import Iterable

from scaleproof.evidence.observations import Moment, SnapshotRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Run


def begin_unlike(run: Run, names: Iterable[str]) -> bool:
    """Every one of the parameters that has a digest before training has another one on another
    rank; False when nothing is known of any."""
    digests = [_digests(rank, Moment.START, 0) for rank in run.ranks]
    known = [name for name in names if all(name in of_rank for of_rank in digests)]
    return bool(known) and all(len({of_rank[name] for of_rank in digests}) > 1 for name in known)


def are_averaged_later(run: Run, names: Iterable[str], first_step: int) -> bool:
    """At some snapshot after ``first_step``, at which ranks used different gradients for them, all
    of the parameters are the same bytes on all ranks, and not what they were before training (a
    learning rate of 0, in a warm-up, leaves them so)."""
    keys = [
        (record.moment, record.steps_done)
        for record in run.ranks[0].of(SnapshotRecord)
        if record.steps_done >= first_step
    ]
    begin = _digests(run.ranks[0], Moment.START, 0)
    wanted = set(names)
    for moment, steps_done in keys:
        digests = [_digests(rank, moment, steps_done) for rank in run.ranks]
        known = wanted.intersection(*digests)
        are_alike = all(len({of_rank[name] for of_rank in digests}) == 1 for name in known)
        if known and are_alike and any(digests[0][name] != begin.get(name) for name in known):
            return True
    return False


def _digests(rank: Rank, moment: Moment, steps_done: int) -> dict[str, str]:
    """Of parameters, by name; empty when there is no such snapshot."""
    for record in rank.of(SnapshotRecord):
        if (record.moment, record.steps_done) == (moment, steps_done):
            return {t.name: t.digest for t in record.tensors if t.kind is TensorKind.PARAMETER}
    return {}
