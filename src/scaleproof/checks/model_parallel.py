"""Which ranks hold parts of the same copy of a model, as they say themselves."""

from dataclasses import replace

from scaleproof.checks.probes import process_of
from scaleproof.evidence.study import Run


def model_groups(run: Run) -> tuple[tuple[int, ...], ...]:
    """Groups of two ranks or more, ascending; empty when none is known."""
    present = {rank.rank for rank in run.ranks}
    groups: set[tuple[int, ...]] = set()
    for rank in run.ranks:
        process = process_of(rank)
        peers = () if process is None else process.model_peers
        group = tuple(sorted(present.intersection(peers)))
        if len(group) > 1:
            groups.add(group)
    return tuple(sorted(groups))


def one_of_each_model(run: Run) -> Run:
    """The run with one rank of each group only, the lowest: the others are fed what it is."""
    others = {rank for group in model_groups(run) for rank in group[1:]}
    if not others:
        return run
    return replace(run, ranks=tuple(rank for rank in run.ranks if rank.rank not in others))


def is_one_model(run: Run) -> bool:
    """All ranks together hold one copy."""
    return any(len(group) == len(run.ranks) for group in model_groups(run))
