"""The check ``overlapping-samples``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, TWO_RANKS
from scaleproof.checks.overlaps import Cause, Overlap, overlaps_of
from scaleproof.checks.passes import passes_words
from scaleproof.checks.wording import counted, listed, short_percent
from scaleproof.evidence.study import Study

_WORDS = {
    Cause.SAME_SHARD: "their samplers take the same shard",
    Cause.NOT_DIVIDED: "each rank draws from the whole data set, which no sampler divides",
    Cause.OWN_SUBSET: "each rank draws from a subset of its own",
    Cause.OWN_SEED: "their samplers divide the data set, each in an order of its own (seed, epoch)",
    Cause.STREAM: "the iterable data set is not divided",
    Cause.SAME_INPUTS: "nothing divides them",
    Cause.OTHER: "their parts are drawn independently of each other",
}
_REMEDIES = {
    Cause.SAME_SHARD: "Pass rank and num_replicas to the DistributedSampler, or make it after "
    "init_process_group.",
    Cause.NOT_DIVIDED: "Give the training loader sampler=DistributedSampler(data_set) and no "
    "shuffle=True.",
    Cause.OWN_SUBSET: "Split the data once, the same on every rank: random_split with "
    "generator=torch.Generator().manual_seed(0).",
    Cause.OWN_SEED: "Give every rank's DistributedSampler the same seed, and set_epoch the same "
    "epoch; let the seeds of other generators differ.",
    Cause.STREAM: "Let each rank take its own part of the stream: itertools.islice(stream, rank, "
    "None, world_size), or split_dataset_by_node.",
    Cause.SAME_INPUTS: "Let each rank take its own part of every batch: batch[rank::world_size].",
    Cause.OTHER: "Cut one permutation, the same on all ranks, into one part for each.",
}


@final
class OverlappingSamplesMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``overlaps``: of each loader the pass that shares most, whatever the reason. ``unclear``:
    why something could not be compared. ``num_left_out``: ranks that hold other parts of a compared
    rank's model."""

    num_passes: int
    num_compared: int
    overlaps: tuple[Overlap, ...]
    unclear: tuple[str, ...]
    num_left_out: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OverlappingSamples(AbstractCheck[OverlappingSamplesMeasurement]):
    """Several ranks train on the same items in the same pass.

    What it looks for
        Training items that more than one rank was handed in one pass over a loader: no
        `DistributedSampler`, one that was told the wrong rank, another sampler seed on each rank,
        or an iterable data set that every rank reads whole.

    Why it matters
        N ranks that train on the same items do the work N times and learn as much as one. With
        another seed on each rank, about a third of the data is seen twice and another third never.
        No error tells, and the loss falls as usual.

    How it decides
        Ids are followed through `Subset` chains to the data set at the root; the sets of ids of
        two ranks in the same pass must not meet. Data sets without indices are compared by
        digests of their contents, up to the smallest limit of the ranks. A script without loaders
        is compared by digests of what its forwards were given at probed steps: all of it, or the
        first tensor of 8 numbers or more that changes from step to step, as a hidden state beside
        it may differ. It fails when the
        shared share of a pass is above `max_share`, or when two ranks were handed the same items
        in the same order. Not faults: the items a `DistributedSampler` repeats so that all ranks
        have as many (fewer than there are ranks), or the less than one global batch that other
        loaders repeat for it; draws with replacement and repeated augmentation, which share items
        by chance or on purpose; ranks with data of their own that is numbered alike, as contents
        under the same ids show. Where no sampler says that it divides the data, and so little of
        it was drawn that independent draws would not have met either, it is undecided.

    What it can't see
        Of ranks that hold parts of one copy of the model, as their DTensor parameters tell, one is
        compared (for the others see unlike-model-parallel-inputs). Where tensor or pipeline
        parallelism is written by hand, such ranks can't be told apart and look like a fault: name
        the check in the profile's `advisory` list. Without ids, the same items behind random
        augmentation. Ranks that each have data of their own, of the same size, all
        of it augmented beyond recognition, look like ranks that share it. Loaders made in another
        line, or for data of another size, on each rank are not compared.

    How to fix it
        `DataLoader(data, sampler=DistributedSampler(data))`, made after `init_process_group`, with
        the same `seed` on all ranks. For a stream, `split_dataset_by_node` or
        `islice(stream, rank, None, world_size)`.

    References
        mlcommons/training#625 (a seed per rank: 20 to 30 % overlap), PatrickHua/SimSiam#16 (no
        sampler), huggingface/datasets#5360 (streams not split).
    """

    name: ClassVar[str] = "overlapping-samples"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS)
    consequence_of: ClassVar[tuple[str, ...]] = ("train-validation-overlap",)

    max_share: float = 0.01

    def measure(self, study: Study) -> OverlappingSamplesMeasurement:
        found = [overlaps_of(run) for run in study.runs_of(study.candidate)]
        return OverlappingSamplesMeasurement(
            num_passes=sum(one.num_passes for one in found),
            num_compared=sum(one.num_compared for one in found),
            overlaps=tuple(overlap for one in found for overlap in one.overlaps),
            unclear=tuple(why for one in found for why in one.unclear),
            num_left_out=sum(one.num_left_out for one in found),
        )

    def judge(self, measurement: OverlappingSamplesMeasurement) -> Judgement:
        faults = [overlap for overlap in measurement.overlaps if self._is_fault(overlap)]
        if faults:
            worst = max(faults, key=lambda overlap: (overlap.share, overlap.num_passes))
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence(worst, len(faults)),
                remedy=_REMEDIES[worst.cause],
            )
        if measurement.unclear:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{measurement.unclear[0]}.",
                remedy="Observe more steps, best a whole pass over the data or two; divide the "
                "data with a DistributedSampler.",
            )
        if measurement.num_left_out and not measurement.num_compared:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="All ranks hold parts of one copy of the model, and are rightly fed the "
                "same items.",
            )
        note = ""
        if measurement.overlaps:
            most = max(measurement.overlaps, key=lambda overlap: overlap.share)
            is_padding = most.num_extra <= most.num_allowed
            why = "to even out the ranks" if is_padding else "as drawing again does"
            note = f", but for {counted(most.num_shared, 'item')} in one pass ({why})"
        if measurement.num_passes:
            where = passes_words(measurement.num_passes)
            sentence = f"No two ranks were handed the same items in {where}{note}."
        else:
            where = counted(measurement.num_compared, "probed step")
            sentence = f"No two ranks were given the same inputs at {where}."
        if measurement.num_left_out:
            ranks = counted(measurement.num_left_out, "rank")
            sentence += f" (Without {ranks} that only hold other parts of these ranks' models.)"
        return Judgement(outcome=Outcome.PASS, sentence=sentence)

    def _is_fault(self, overlap: Overlap) -> bool:
        if overlap.is_same_order:
            return True
        is_excused = overlap.is_chance or overlap.num_extra <= overlap.num_allowed
        return not is_excused and overlap.share > self.max_share


def _sentence(worst: Overlap, num_faults: int) -> str:
    ranks = listed(worst.ranks, most=8)
    if worst.by == "inputs":
        return (
            f"{worst.run}: ranks {ranks} trained on the same inputs at {worst.num_shared} of "
            f"{counted(worst.num_different, 'probed step')}; {_WORDS[worst.cause]}."
        )
    items = counted(worst.num_shared, "item")
    order = ", in the same order" if worst.is_same_order else ""
    by = ", by their contents" if worst.by == "contents" else ""
    words = (
        f"{worst.run}, training pass {worst.number + 1} over {worst.where}: ranks {ranks} were "
        f"handed the same {items} of {worst.num_different:,} ({short_percent(worst.share)}{by})"
        f"{order}: {_WORDS[worst.cause]}"
    )
    if worst.num_passes > 1:
        words += f"; in {worst.num_passes} passes"
    if num_faults > 1:
        words += f"; {num_faults - 1} more over all loaders and runs"
    return words + "."
