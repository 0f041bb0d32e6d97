"""The check ``same-order-every-epoch``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SAMPLES, TRAINING_LOADER
from scaleproof.checks.passes import RankPass, shared_loaders
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study

MIN_SAMPLES = 8
"""Fewer samples may come in the same order twice by chance: 1 in 8! is one in 40,320."""

_MIN_STEPS_AFTER = 2
_MIN_SHARE_AFTER = 0.1
"""Of a pass's batches: fewer steps after its end are no second pass."""

SAMPLES_OF_RECIPE = Need(
    text=SAMPLES.text,
    kind="evidence",
    is_met=lambda study: study.is_script or SAMPLES.is_met(study),
)
LOADER_OF_SCRIPT = Need(
    text=TRAINING_LOADER.text,
    kind="structure",
    is_met=lambda study: not study.is_script or TRAINING_LOADER.is_met(study),
)


@final
class RepeatedOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Epochs (from 0) in which a rank was fed the same samples in the same order; of a script,
    passes over a loader. ``where``: that loader; empty for a recipe."""

    run: str
    rank: int
    epochs: tuple[int, ...]
    num_epochs: int
    """Epochs of this rank that were compared."""
    num_fed: int
    where: str = ""
    is_by_choice: bool = False
    """The sampler does not shuffle: the order is that of the data."""


@final
class StepsAfter(msgspec.Struct, frozen=True, kw_only=True):
    """A rank of a script made ``num_after`` of its ``num_steps`` steps after the last of its
    ``num_passes`` training passes, one over the loader ``where``, had ended."""

    run: str
    rank: int
    where: str
    num_passes: int
    num_after: int
    num_steps: int


@final
class SameOrderMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_compared``: how many ranks, over all runs, have two epochs to compare; of a script,
    ranks of loaders, out of ``num_ranks``, that a second pass began over."""

    num_compared: int
    num_ranks: int
    candidate: tuple[RepeatedOrder, ...]
    baseline: tuple[RepeatedOrder, ...]
    steps_after: tuple[StepsAfter, ...] = ()
    """Of the candidate's ranks."""


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
        In a script, an epoch is a training pass over the same loader, or over one made anew in the
        same line; passes broken off are compared too, those of a single batch are not. There,
        only a sampler that shuffles can forget to shuffle anew. A fixed order is somebody's
        decision - series in time, sorted lengths, curricula - when the ids come in ascending
        order, when a `SequentialSampler` draws, or when the order stays although the sampler's
        epoch changes: that passes, and the sentence says that nothing is shuffled. A script that
        goes on training after its last pass has ended - by a tenth of that pass's batches, and two
        steps - is undecided: where those batches came from, nobody saw.

    What it can't see
        An order that changes while the split over ranks stays the same. Orders that repeat between
        seeds or between ranks. The order of streams. Of a `Subset`, whether a
        `DistributedSampler` was told not to shuffle: it counts as one that was forgotten.

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
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, LOADER_OF_SCRIPT, SAMPLES_OF_RECIPE)

    def measure(self, study: Study) -> SameOrderMeasurement:
        candidate = study.runs_of(study.candidate)
        baseline = study.runs_of(study.baseline) if study.baseline is not None else ()
        if study.is_script:
            return _measure_script(candidate, baseline)
        orders = [_orders(rank) for run in candidate for rank in run.ranks]
        return SameOrderMeasurement(
            num_compared=sum(len(order) > 1 for order in orders),
            num_ranks=len(orders),
            candidate=tuple(found for run in candidate for found in _repeated(run)),
            baseline=tuple(found for run in baseline for found in _repeated(run)),
        )

    def judge(self, measurement: SameOrderMeasurement) -> Judgement:
        remedy = "Call sampler.set_epoch(epoch) before each epoch, or shuffle by (seed, epoch)."
        faults, by_choice = _parted(measurement.candidate)
        if faults:
            return Judgement(outcome=Outcome.FAIL, sentence=_sentence(faults), remedy=remedy)
        if measurement.steps_after:
            most = max(measurement.steps_after, key=lambda one: one.num_after)
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=_sentence_after(most),
                remedy="Iterate over the loader anew each time: `while True: yield from loader`.",
            )
        if not measurement.num_ranks:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No second training pass over data with indices, in more than one batch: "
                "nothing can repeat.",
            )
        if measurement.num_compared < measurement.num_ranks:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"Only {measurement.num_compared} of {measurement.num_ranks} ranks have "
                f"two epochs of at least {MIN_SAMPLES} samples to compare.",
                remedy="Train for two or more epochs.",
            )
        faults_of_baseline, _ = _parted(measurement.baseline)
        if faults_of_baseline:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="The baseline is no measure: " + _sentence(faults_of_baseline),
                remedy=f"{remedy} Then compare again.",
            )
        if by_choice:
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{_sentence(by_choice)} Its sampler does not shuffle, which is taken for "
                "a decision: training mostly does better with shuffled data.",
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


def _parted(
    found: Sequence[RepeatedOrder],
) -> tuple[tuple[RepeatedOrder, ...], tuple[RepeatedOrder, ...]]:
    """Faults, and what is by choice."""
    return (
        tuple(one for one in found if not one.is_by_choice),
        tuple(one for one in found if one.is_by_choice),
    )


def _measure_script(candidate: Sequence[Run], baseline: Sequence[Run]) -> SameOrderMeasurement:
    series = [one for run in candidate for one in _series(run)]
    several = [(where, passes) for where, passes in series if len(passes) > 1]
    return SameOrderMeasurement(
        num_compared=sum(len(_comparable(passes)) > 1 for _, passes in several),
        num_ranks=len(several),
        candidate=tuple(one for run in candidate for one in _repeated_passes(run)),
        baseline=tuple(one for run in baseline for one in _repeated_passes(run)),
        steps_after=tuple(one for run in candidate for one in _steps_after(run)),
    )


def _steps_after(run: Run) -> Iterator[StepsAfter]:
    """Ranks that went on training for long when no pass was under way. Optimizers that take turns
    do so within a pass."""
    passes: dict[int, list[tuple[str, RankPass]]] = {}
    for loader in shared_loaders(run):
        for one in (one for shared in loader.training for one in shared.by_rank):
            passes.setdefault(one.rank.rank, []).append((loader.words, one))
    for of_rank in passes.values():
        where, last = max(of_rank, key=lambda one: one[1].record.last_step)
        num_steps = len(last.rank.observed_steps)
        num_after = num_steps - last.record.last_step
        least = max(_MIN_STEPS_AFTER, _MIN_SHARE_AFTER * last.record.num_batches)
        is_whole = last.record.is_whole and last.record.num_batches > 1
        if is_whole and num_after >= least:
            yield StepsAfter(
                run=run.name,
                rank=last.rank.rank,
                where=where,
                num_passes=len(of_rank),
                num_after=num_after,
                num_steps=num_steps,
            )


def _series(run: Run) -> list[tuple[str, list[RankPass]]]:
    """Training passes of one rank over one loader, or those made anew in its place, in order."""
    series: dict[tuple[object, int], tuple[str, list[RankPass]]] = {}
    for loader in shared_loaders(run):
        for one in (one for shared in loader.training for one in shared.by_rank):
            key = (loader.family, one.rank.rank)
            # Of streams nobody recorded the order; in a single batch, it changes nothing.
            if one.record.has_ids and len(one.batch_sizes()) > 1:
                series.setdefault(key, (loader.words, []))[1].append(one)
    return list(series.values())


def _comparable(passes: Sequence[RankPass]) -> list[RankPass]:
    return [one for one in passes if one.record.num_fed >= MIN_SAMPLES]


def _repeated_passes(run: Run) -> Iterator[RepeatedOrder]:
    for where, passes in _series(run):
        comparable = _comparable(passes)
        numbers_by_order: dict[str, list[int]] = {}
        for number, one in enumerate(comparable):
            numbers_by_order.setdefault(one.record.order_digest, []).append(number)
        most = max(numbers_by_order.values(), key=len, default=list[int]())
        if len(most) > 1:
            yield RepeatedOrder(
                run=run.name,
                rank=comparable[0].rank.rank,
                epochs=tuple(most),
                num_epochs=len(comparable),
                num_fed=comparable[most[0]].record.num_fed,
                where=where,
                is_by_choice=_is_by_choice([comparable[number] for number in most]),
            )


def _is_by_choice(passes: Sequence[RankPass]) -> bool:
    """Of passes in the same order."""
    first = passes[0]
    if first.is_ascending():
        return True
    if len({one.record.sampler_epoch for one in passes}) > 1:
        return True
    # Over the whole data set, a SequentialSampler's order would have been ascending.
    return first.has_sequential_sampler and first.loader.num_items != first.loader.num_root


def _sentence_after(found: StepsAfter) -> str:
    which = f"the only pass over {found.where}"
    if found.num_passes > 1:
        which = f"the last of {found.num_passes:,} training passes, over {found.where},"
    return (
        f"{found.run}, rank {found.rank}: {found.num_after:,} of "
        f"{counted(found.num_steps, 'step')} were made after {which} had ended: "
        "itertools.cycle, for one, hands out the same batches in the same order again."
    )


def _sentence(found: tuple[RepeatedOrder, ...]) -> str:
    worst = max(found, key=lambda repeated: len(repeated.epochs))
    noun = f"training passes over {worst.where}" if worst.where else "epochs"
    if len(worst.epochs) == worst.num_epochs:
        epochs = f"all {worst.num_epochs} {noun}"
    else:
        epochs = f"{noun} {listed([epoch + 1 for epoch in worst.epochs], most=6)}"
    others = ""
    if len(found) > 1:
        others = f"; the same on {counted(len(found) - 1, 'other rank')} over all runs"
    return (
        f"{worst.run}, rank {worst.rank}: {counted(worst.num_fed, 'sample')} came in the same "
        f"order in {epochs}{others}."
    )
