"""The check ``same-order-every-epoch``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SAMPLES
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study

MIN_SAMPLES = 8
"""Fewer samples may come in the same order twice by chance: 1 in 8! is one in 40,320."""


@final
class RepeatedOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Epochs (from 0) in which a rank was fed the same samples in the same order."""

    run: str
    rank: int
    epochs: tuple[int, ...]
    num_epochs: int
    """Epochs of this rank that were compared."""
    num_fed: int


@final
class SameOrderMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_compared``: how many ranks, over all runs, have two epochs to compare."""

    num_compared: int
    num_ranks: int
    candidate: tuple[RepeatedOrder, ...]
    baseline: tuple[RepeatedOrder, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SameOrderEveryEpoch(AbstractCheck[SameOrderMeasurement]):
    """The data is not shuffled anew: two epochs feed a rank the same samples in the same order.

    What it looks for
        Two epochs in which a rank was fed exactly the same samples in exactly the same order.

    Why it matters
        A `DistributedSampler` whose `set_epoch` is not called gives each rank the same part of the
        data, in the same order and the same batches, for ever. Each rank then knows only its own
        part, the batches are never mixed, and the model generalises a little worse. No error
        tells, and the loss falls as usual.

    How it decides
        Exactly: each rank records a digest of the ids in feeding order for every epoch; two
        equal digests fail. Epochs with fewer than 8 samples are left out, as these may coincide by
        chance; without two epochs left to compare it is undecided. When only the baseline has the
        fault, it is no measure for the candidate: undecided.

    What it can't see
        An order that changes while the split over ranks stays the same. Orders that repeat between
        seeds or between ranks.

    How to fix it
        Call `sampler.set_epoch(epoch)` before each epoch, or let the loader derive its order from
        (seed, epoch). A fixed order that is meant (a curriculum) is a reason to name the check
        in the profile's `advisory` list.

    References
        pytorch/pytorch#31771, huggingface/transformers#4398.
    """

    name: ClassVar[str] = "same-order-every-epoch"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SAMPLES)

    def measure(self, study: Study) -> SameOrderMeasurement:
        candidate = study.runs_of(study.candidate)
        baseline = study.runs_of(study.baseline) if study.baseline is not None else ()
        orders = [_orders(rank) for run in candidate for rank in run.ranks]
        return SameOrderMeasurement(
            num_compared=sum(len(order) > 1 for order in orders),
            num_ranks=len(orders),
            candidate=tuple(found for run in candidate for found in _repeated(run)),
            baseline=tuple(found for run in baseline for found in _repeated(run)),
        )

    def judge(self, measurement: SameOrderMeasurement) -> Judgement:
        remedy = "Call sampler.set_epoch(epoch) before each epoch, or shuffle by (seed, epoch)."
        if measurement.candidate:
            return Judgement(
                outcome=Outcome.FAIL, sentence=_sentence(measurement.candidate), remedy=remedy
            )
        if measurement.num_compared < measurement.num_ranks:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"Only {measurement.num_compared} of {measurement.num_ranks} ranks have "
                f"two epochs of at least {MIN_SAMPLES} samples to compare.",
                remedy="Train for two or more epochs.",
            )
        if measurement.baseline:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="The baseline is no measure: " + _sentence(measurement.baseline),
                remedy=f"{remedy} Then compare again.",
            )
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"Every epoch came in an order of its own, on each of "
            f"{counted(measurement.num_ranks, 'rank')} over all runs.",
        )


def _orders(rank: Rank) -> dict[int, str]:
    """Order digest of each epoch that has enough samples."""
    return {
        record.epoch: record.order_digest
        for record in rank.samples
        if record.num_fed >= MIN_SAMPLES
    }


def _repeated(run: Run) -> Iterator[RepeatedOrder]:
    for rank in run.ranks:
        orders = _orders(rank)
        epochs_by_digest: dict[str, list[int]] = {}
        for epoch, digest in sorted(orders.items()):
            epochs_by_digest.setdefault(digest, []).append(epoch)
        repeated = [epochs for epochs in epochs_by_digest.values() if len(epochs) > 1]
        if repeated:
            most = max(repeated, key=len)
            yield RepeatedOrder(
                run=run.name,
                rank=rank.rank,
                epochs=tuple(most),
                num_epochs=len(orders),
                num_fed=next(r.num_fed for r in rank.samples if r.epoch == most[0]),
            )


def _sentence(found: tuple[RepeatedOrder, ...]) -> str:
    worst = max(found, key=lambda repeated: len(repeated.epochs))
    if len(worst.epochs) == worst.num_epochs:
        epochs = f"all {worst.num_epochs} epochs"
    else:
        epochs = f"epochs {listed([epoch + 1 for epoch in worst.epochs], most=6)}"
    others = ""
    if len(found) > 1:
        others = f"; the same on {counted(len(found) - 1, 'other rank')} over all runs"
    return (
        f"{worst.run}, rank {worst.rank}: {counted(worst.num_fed, 'sample')} came in the same "
        f"order in {epochs}{others}."
    )
