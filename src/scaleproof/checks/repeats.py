"""Which repeats of a script are runs of their own.

A script that fixes its own seed trains the same model again, however often it is repeated. Such
repeats show no variation from run to run: taken for independent seeds, they would make any
difference look certain.
"""

from collections.abc import Sequence
from typing import final

import msgspec
import numpy as np

from scaleproof.checks.wording import counted
from scaleproof.evidence.observations import Moment, PassRecord, SnapshotRecord
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Pair, Run, Study

PASS_THE_SEED = (
    "Pass {seed} to the script in both commands (for example --seed {seed}) and seed with it, so "
    "that each repeat is a run of its own."
)

_COMPARED = ("sample_id", "target", "prediction")


@final
class Repeats(msgspec.Struct, frozen=True, kw_only=True):
    """``seeds``: those whose run, in some arm, is that of an earlier one again; they do not count.
    ``num_all``: seeds that both arms finished."""

    seeds: tuple[int, ...] = ()
    num_all: int = 0

    @property
    def sentence(self) -> str:
        """To follow another sentence; empty when every repeat is a run of its own."""
        if not self.seeds:
            return ""
        are, count = ("are", "they count") if len(self.seeds) > 1 else ("is", "it counts")
        return (
            f" {len(self.seeds)} of {counted(self.num_all, 'repeat')} {are} bit for bit the same "
            f"as an earlier one: {count} once; pass {{seed}} to the script."
        )


def independent_pairs(study: Study) -> tuple[Pair, ...]:
    """The study's pairs; of a script's, those neither of whose runs is an earlier one again."""
    if not study.is_script:
        return study.pairs
    kept: list[Pair] = []
    for pair in study.pairs:
        if not any(_is_repeat(pair, earlier) for earlier in kept):
            kept.append(pair)
    return tuple(kept)


def measure_repeats(study: Study) -> Repeats:
    kept = {pair.seed for pair in independent_pairs(study)}
    return Repeats(
        seeds=tuple(pair.seed for pair in study.pairs if pair.seed not in kept),
        num_all=len(study.pairs),
    )


def _is_repeat(pair: Pair, earlier: Pair) -> bool:
    return _is_same_training(pair.baseline, earlier.baseline) or _is_same_training(
        pair.candidate, earlier.candidate
    )


def _is_same_training(one: Run, other: Run) -> bool:
    """They ended with the same parameters, or began alike and ended with the same predictions.

    Predictions alone do not tell: all models that get every sample right predict the same.
    """
    end = _parameters(one, Moment.END)
    if end is not None and end == _parameters(other, Moment.END):
        return True
    return _have_same_predictions(one, other) and _began_alike(one, other)


def _have_same_predictions(one: Run, other: Run) -> bool:
    first, second = one.final_evaluation, other.final_evaluation
    return len(first) > 0 and all(
        np.array_equal(first[column], second[column]) for column in _COMPARED
    )


def _began_alike(one: Run, other: Run) -> bool:
    """As far as it was recorded: the same initial parameters, fed in the same order."""
    return _parameters(one, Moment.START) == _parameters(other, Moment.START) and _orders(
        one
    ) == _orders(other)


def _parameters(run: Run, moment: Moment) -> Sequence[tuple[str, str]] | None:
    """Names and digests on all ranks; None when they are not all known."""
    found: list[tuple[str, str]] = []
    for rank in run.ranks:
        snapshots = [record for record in rank.of(SnapshotRecord) if record.moment is moment]
        if not snapshots or snapshots[-1].num_sharded > 0:
            return None
        found += [
            (tensor.name, tensor.digest)
            for tensor in snapshots[-1].tensors
            if tensor.kind is TensorKind.PARAMETER
        ]
    return found or None


def _orders(run: Run) -> Sequence[str]:
    """Of everything that all ranks were fed in training."""
    return [
        record.order_digest
        for rank in run.ranks
        for record in rank.of(PassRecord)
        if record.use == "training"
    ]
