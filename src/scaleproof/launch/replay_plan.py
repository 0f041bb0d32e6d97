"""What a run's replays have to do, from what its ranks recorded; or why they can't be made."""

from collections import Counter
from collections.abc import Sequence
from typing import final

from scaleproof.evidence.observations import EndRecord, LoaderRecord, OptimizerRecord, PassRecord
from scaleproof.evidence.study import Run
from scaleproof.observe.replay.plan import BatchKey, PlannedStep, ReplayPlan
from scaleproof.observe.replay.stored import MaterialIndex


@final
class UnreplayableError(Exception):
    """Why a run can't be replayed, in words for the user."""


_SEARCHING = ("LBFGS",)
"""Optimizers that call the closure as often as they like."""


def plan_replay(run: Run, material: MaterialIndex, num_kept: int) -> ReplayPlan:
    """For the first ``num_kept`` steps at most. Raises ``UnreplayableError``."""
    _refuse_optimizers(run)
    training = _training_passes(run)
    tables = [rank.observed_steps for rank in run.ranks]
    num_steps = min(num_kept, *(len(table) for table in tables))
    if material.ends_after is not None:
        num_steps = min(num_steps, material.ends_after)
    if num_steps == 0:
        raise UnreplayableError("its batches and weights are too large to keep")
    table = tables[0][:num_steps]
    keys = [key for key in sorted(material.batches) if key[:2] in training]
    if not keys:
        raise UnreplayableError(
            "no DataLoader was seen to hand out batches while it trained: they are made, or "
            "collected, elsewhere"
        )
    lacking = [key for key in keys if len(material.batches[key]) < len(run.ranks)]
    if all(len(material.batches[key]) < len(run.ranks) for key in keys):
        have = {rank for key in lacking for rank, _ in material.batches[key]}
        raise UnreplayableError(
            f"only ranks {sorted(have)} of {len(run.ranks)} draw batches from a loader, and hand "
            "them on by themselves"
        )
    steps = tuple(
        PlannedStep(optimizer=int(row["optimizer"]), num_backwards=int(row["num_backwards"]))
        for row in table
    )
    return ReplayPlan(
        num_ranks=len(run.ranks),
        steps=steps,
        training=tuple(sorted(training)),
        microbatches=_microbatches(keys, steps),
        lengths=_lengths(run, material),
        continues=any(len(table) > num_steps for table in tables)
        or any(end.was_ended for rank in run.ranks for end in rank.of(EndRecord)),
        is_shared=_holds_shards(run),
    )


def _refuse_optimizers(run: Run) -> None:
    kinds = {r.kind for rank in run.ranks for r in rank.of(OptimizerRecord)}
    searching = sorted(kinds.intersection(_SEARCHING))
    if searching:
        raise UnreplayableError(
            f"{searching[0]} evaluates the loss as often in a step as it likes, on one process "
            "otherwise than on several"
        )


def _training_passes(run: Run) -> set[tuple[int, int]]:
    passes = {
        (record.loader, record.number)
        for rank in run.ranks
        for record in rank.of(PassRecord)
        if record.use == "training"
    }
    for loader in {loader for loader, _ in passes}:
        places = {
            record.where
            for rank in run.ranks
            for record in rank.of(LoaderRecord)
            if record.loader == loader
        }
        if len(places) > 1:
            raise UnreplayableError(
                f"ranks use their loaders in another order than each other: {sorted(places)}"
            )
    return passes


def _microbatches(
    keys: Sequence[BatchKey], steps: Sequence[PlannedStep]
) -> tuple[tuple[BatchKey, ...], ...]:
    """The batches of each step, where several are accumulated: one backward per batch, in order.

    Several loaders or several backwards on one batch (a GAN's) are no accumulation.
    """
    total = sum(step.num_backwards for step in steps)
    is_accumulating = any(step.num_backwards > 1 for step in steps)
    is_one_loader = len({loader for loader, _, _ in keys}) == 1
    # Loaders are asked for a batch or two ahead of those that backward has run on.
    if not is_accumulating or not is_one_loader or not total <= len(keys) <= total + 4:
        return ()
    groups: list[tuple[BatchKey, ...]] = []
    first = 0
    for step in steps:
        groups.append(tuple(keys[first : first + step.num_backwards]))
        first += step.num_backwards
    return tuple(groups)


def _lengths(run: Run, material: MaterialIndex) -> dict[str, int]:
    """Of loaders that are told apart by the line that makes them."""
    places = Counter(record.where for record in run.ranks[0].of(LoaderRecord))
    return {
        where: length
        for where, length in material.lengths.items()
        if where and length >= 0 and places[where] == 1
    }


def _holds_shards(run: Run) -> bool:
    return any(
        tensor.is_sharded
        for rank in run.ranks
        for record in rank.of(OptimizerRecord)
        for tensor in record.owned
    )
