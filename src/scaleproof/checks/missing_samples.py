"""The check ``missing-samples``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, final

import msgspec
from pyroaring import BitMap

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, TRAINING_LOADER
from scaleproof.checks.passes import (
    RankPass,
    Sameness,
    SharedLoader,
    SharedPass,
    passes_words,
    sameness,
    shared_loaders,
)
from scaleproof.checks.wholes import num_items_of_all
from scaleproof.checks.wording import counted, listed, short_percent
from scaleproof.evidence.study import Run, Study

_CHOOSES = ("SubsetRandomSampler", "WeightedRandomSampler", "RASampler", "RepeatAugSampler")
"""Samplers that leave items out on purpose, for ever or in a pass."""

_SAME_TAIL = 0.9
_PART_TOLERANCE = 0.2
_NUM_EXAMPLES = 3


class Intent(StrEnum):
    """What the samplers are known to be for."""

    ALL = "all"
    """Every item in every pass."""
    SOME = "some"
    """A choice of the items."""
    UNKNOWN = "unknown"
    """Somebody's own sampler."""


@final
class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """Items of one loader that no rank was handed.

    ``num_missing``: the most in one of its whole passes, the one of ``number`` (from 0);
    ``num_never``: in none of them. ``num_tail``: what a pass may drop so that all ranks have whole
    batches. ``parts``: N, when a pass holds one Nth of the items and there are N ranks; else 0.
    """

    run: str
    where: str
    sampler: str
    num_items: int
    num_passes: int
    number: int
    num_missing: int
    num_never: int
    num_tail: int
    is_same_tail: bool
    """The passes, two or more, all miss the same items."""
    parts: int
    intent: Intent
    examples: tuple[int, ...]
    """Of those never handed out, or else of those missing in that pass."""
    is_of_own_subsets: bool = False
    """Each rank has a subset of its own, and they overlap: ``num_items`` are those that any pass
    handed out, as nobody knows how many there are."""
    is_redrawn: bool = False
    """Ranks were handed items again within a pass, more than fill up a batch."""

    @property
    def is_certain(self) -> bool:
        """That it is no choice: what is drawn again makes a pass short in its own way."""
        return self.intent is Intent.ALL or (self.parts > 0 and not self.is_redrawn)


@final
class MissingSamplesMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_loaders`` and ``num_passes`` count what was whole on every rank; ``left_out`` says of
    each other loader why it can't be counted."""

    num_loaders: int
    num_passes: int
    holes: tuple[Hole, ...]
    left_out: tuple[str, ...]
    unmatched: tuple[str, ...] = ()
    """Loaders (in words) of which nobody can tell which are the same on other ranks."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MissingSamples(AbstractCheck[MissingSamplesMeasurement]):
    """Training items that no rank is ever handed.

    What it looks for
        Items of the training data that no rank was handed in a whole pass over the loader, or in
        none of its passes.

    Why it matters
        Data that is sharded twice (an own `DistributedSampler` and then Accelerate's, or a subset
        per rank and then a sampler) leaves each pass with one Nth of the items; a tail dropped
        twice, or rounded down, leaves the same items out for ever. The epochs are short, the
        speed-up looks splendid, and the model learns from less.

    How it decides
        By ids, from the union of what all ranks were handed in passes that ran to their end on
        every rank. The items a loader should hand out are those of the data set it was given: of a
        `Subset`, its own indices; of a `Subset` for each rank, those of all ranks together, or,
        where they overlap, what was ever handed out. Less than one global batch may be missing from
        a pass (`drop_last`), as long as it is not always the same items; it fails above that, or
        when the same items are missing from all of two or more passes, if their share is above
        `max_share`. Samplers that choose on purpose (`SubsetRandomSampler`, a `num_samples` below
        the number of items, draws with replacement, by a sampler for ranks too: they repeat more
        than a global batch of items per pass, and leave out others each time) are believed; of
        other people's samplers that leave items out it is undecided, unless a pass holds just one
        Nth of the items on N ranks and repeats none.

    What it can't see
        Passes that the script breaks off: a training that stops by steps has no whole pass, and
        the check is not applicable. Data sets without indices. Items that the data set itself
        leaves out. A tail in a script's only pass: no other shows whether it changes.

    How to fix it
        Shard once: give `accelerator.prepare` a loader without a `DistributedSampler`, and a
        sampler for ranks the whole data set. Shuffle anew every epoch (`set_epoch`), so that the
        dropped tail changes, or keep it (`drop_last=False`).

    References
        huggingface/accelerate#3520, #4199 (sharded twice), modelscope/ms-swift#9907 (tail never
        seen). Lemire et al. (2018), Roaring bitmaps, Software: Practice and Experience 48.
    """

    name: ClassVar[str] = "missing-samples"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TRAINING_LOADER)
    consequence_of: ClassVar[tuple[str, ...]] = ("overlapping-samples",)

    max_share: float = 0.01

    def measure(self, study: Study) -> MissingSamplesMeasurement:
        found = [_measure(run) for run in study.runs_of(study.candidate)]
        return MissingSamplesMeasurement(
            num_loaders=sum(one.num_loaders for one in found),
            num_passes=sum(one.num_passes for one in found),
            holes=tuple(hole for one in found for hole in one.holes),
            left_out=tuple(why for one in found for why in one.left_out),
            unmatched=tuple(words for one in found for words in one.unmatched),
        )

    def judge(self, measurement: MissingSamplesMeasurement) -> Judgement:
        faults = [hole for hole in measurement.holes if self._is_fault(hole)]
        certain = [hole for hole in faults if hole.is_certain]
        if certain:
            worst = max(certain, key=_severity)
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence(worst, len(certain)),
                remedy="Shard the data once: either a DistributedSampler of your own or the "
                "framework's, over the whole data set."
                if worst.parts or worst.num_missing > worst.num_tail
                else "Shuffle anew every epoch, so that the dropped tail changes, or set "
                "drop_last=False.",
            )
        if faults:
            worst = max(faults, key=_severity)
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_sentence(worst, len(faults))} Whether {worst.sampler} means to leave "
                "them out can't be seen.",
                remedy="If it does, name the check in the profile's advisory list; otherwise let "
                "the sampler hand out every item.",
            )
        if measurement.unmatched:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"The ranks made different numbers of loaders in one line, and which of "
                f"them share the data can't be told: {measurement.unmatched[0]}.",
                remedy="Make the loaders of training on all ranks, in a line of their own.",
            )
        if not measurement.num_passes:
            why = measurement.left_out[0] if measurement.left_out else "no pass over data"
            return Judgement(outcome=Outcome.NOT_APPLICABLE, sentence=f"Nothing to count: {why}.")
        return Judgement(outcome=Outcome.PASS, sentence=_passed(measurement))

    def _is_fault(self, hole: Hole) -> bool:
        if hole.intent is Intent.SOME:
            return False
        if hole.num_missing > hole.num_tail:
            return hole.num_missing > self.max_share * hole.num_items
        return hole.is_same_tail and hole.num_never > self.max_share * hole.num_items


def _severity(hole: Hole) -> tuple[float, float]:
    return hole.num_never / hole.num_items, hole.num_missing / hole.num_items


def _sentence(worst: Hole, num_faults: int) -> str:
    of = f"of the {counted(worst.num_items, 'item')} of {worst.where}"
    if worst.is_of_own_subsets:
        of = (
            f"of the {counted(worst.num_items, 'item')} that any pass over {worst.where} handed out"
        )
    share = short_percent(worst.num_missing / worst.num_items)
    if worst.is_same_tail:
        share = short_percent(worst.num_never / worst.num_items)
        what = (
            f"{worst.num_never:,} ({share}) {of}: handed to no rank in any of "
            f"{passes_words(worst.num_passes)}, the same ones each time"
        )
    else:
        never = ""
        if worst.num_never and worst.num_passes > 1:
            never = f", {worst.num_never:,} of them in no pass at all"
        what = (
            f"{worst.num_missing:,} ({share}) {of}: handed to no rank in training pass "
            f"{worst.number + 1} of {worst.num_passes}{never}"
        )
    parts = ""
    if worst.parts:
        parts = f"; each pass held one {_ordinal(worst.parts)} of them: sharded twice"
    more = f"; {num_faults - 1} more over all loaders and runs" if num_faults > 1 else ""
    examples = f", for example {listed(worst.examples)}" if worst.examples else ""
    return f"{worst.run}: {what}{examples}{parts}{more}."


def _ordinal(number: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(number, f"{number}th")


def _passed(measurement: MissingSamplesMeasurement) -> str:
    where = passes_words(measurement.num_passes)
    if not measurement.holes:
        return f"Every training item was handed to some rank in each of {where}."
    most = max(measurement.holes, key=_severity)
    if most.intent is Intent.SOME:
        return (
            f"The sampler of {most.where} chooses items on purpose: "
            f"{most.num_missing:,} of {most.num_items:,} were not in a pass ({where} looked at)."
        )
    if most.num_passes == 1:
        return (
            f"{counted(most.num_missing, 'item')} of {most.num_items:,} left over at the end "
            f"of the only whole pass over {most.where}; another would show whether they change."
        )
    return (
        f"Up to {counted(most.num_missing, 'item')} of {most.num_items:,} left over at the "
        f"end of a pass over {most.where}, {most.num_never:,} of them in all of {where}."
    )


def _measure(run: Run) -> MissingSamplesMeasurement:
    holes: list[Hole] = []
    left_out: list[str] = []
    num_loaders = num_passes = 0
    loaders = [loader for loader in shared_loaders(run) if loader.training]
    feeding = {rank for loader in loaders for one in loader.training for rank in one.ranks}
    for loader in loaders:
        if not loader.is_matched and len(feeding) > 1:
            continue
        why = _why_not(loader, feeding)
        if why:
            left_out.append(f"{run.name}: {why}")
            continue
        whole = [one for one in loader.training if one.is_whole and set(one.ranks) == feeding]
        num_loaders += 1
        num_passes += len(whole)
        holes += _holes(loader, whole)
    return MissingSamplesMeasurement(
        num_loaders=num_loaders,
        num_passes=num_passes,
        holes=tuple(holes),
        left_out=tuple(left_out),
        unmatched=tuple(
            f"{run.name}, {one.words}" for one in loaders if not one.is_matched and len(feeding) > 1
        ),
    )


def _why_not(loader: SharedLoader, feeding: set[int]) -> str:
    """Why nobody can say what a loader left out; empty when one can."""
    if loader.num_items < 0 or not all(shared.has_ids for shared in loader.training):
        return f"the data of {loader.words} has no indices, and so no list of what could be missing"
    if not any(set(shared.ranks) == feeding for shared in loader.training):
        return f"only some of the ranks that train draw from {loader.words}"
    if not any(shared.is_whole and set(shared.ranks) == feeding for shared in loader.training):
        return f"every training pass over {loader.words} was broken off before its end"
    first, *others = loader.loaders
    if any(
        sameness(loader.of_rank(first), loader.of_rank(other)) is Sameness.DIFFERENT
        for other in others
    ):
        return f"each rank has data of its own behind {loader.words}, numbered alike"
    return ""


def _holes(loader: SharedLoader, passes: Sequence[SharedPass]) -> Iterator[Hole]:
    ever = BitMap.union(*(_handed_out(shared) for shared in loader.training))
    num_items = num_items_of_all(loader, ever)
    missing = [num_items - len(_handed_out(shared)) for shared in passes]
    if not any(missing):
        return
    worst = max(range(len(passes)), key=missing.__getitem__)
    num_never = num_items - len(ever)
    num_tail = max(len(s.by_rank) * s.max_batch_size() for s in passes) - 1
    num_parts = len(passes[worst].by_rank)
    tolerance = min(num_tail, _PART_TOLERANCE * num_items / num_parts)
    is_part = abs(num_items / num_parts - (num_items - missing[worst])) <= tolerance
    is_same = len(missing) > 1 and num_never > 0 and num_never >= _SAME_TAIL * min(missing)
    is_redrawn = _num_again(passes) > len(passes) * num_tail  # to fill up a batch takes fewer
    yield Hole(
        run=loader.run,
        where=loader.words,
        sampler=_sampler_words(passes[worst].by_rank[0]),
        num_items=num_items,
        num_passes=len(passes),
        number=passes[worst].number,
        num_missing=missing[worst],
        num_never=num_never,
        num_tail=num_tail,
        is_same_tail=is_same and missing[worst] <= num_tail,
        parts=num_parts if num_parts > 1 and is_part and missing[worst] > num_tail else 0,
        intent=_intent(passes, is_same=is_same, is_redrawn=is_redrawn),
        is_redrawn=is_redrawn,
        examples=_examples(loader, num_items, ever if num_never else _handed_out(passes[worst])),
        is_of_own_subsets=num_items == len(ever) > loader.num_items,
    )


def _sampler_words(one: RankPass) -> str:
    if one.is_batch_sampled:
        return "its batch sampler"
    return one.loader.sampler.rpartition(".")[2] or "its sampler"


def _handed_out(shared: SharedPass) -> BitMap:
    return BitMap.union(*(one.seen() for one in shared.by_rank))


def _examples(loader: SharedLoader, num_items: int, handed_out: BitMap) -> tuple[int, ...]:
    """The first ids of the root data set that are not in ``handed_out``; of a ``Subset``, nobody
    knows which of them were to be."""
    num_root = loader.family[2]
    if num_items != num_root:
        return ()
    examples = (number for number in range(num_root) if number not in handed_out)
    return tuple(number for number, _ in zip(examples, range(_NUM_EXAMPLES), strict=False))


def _num_again(passes: Sequence[SharedPass]) -> int:
    """Items that the same rank had been handed before, each in its own pass."""
    every = (one for shared in passes for one in shared.by_rank)
    return sum(one.record.num_fed - len(one.seen()) for one in every)


def _intent(passes: Sequence[SharedPass], *, is_same: bool, is_redrawn: bool) -> Intent:
    every = [one for shared in passes for one in shared.by_rank]
    if all(one.loader.shards is not None for one in every):
        # It may hand on what another sampler draws; chance leaves out other items in every pass.
        if is_redrawn:
            return Intent.UNKNOWN if is_same else Intent.SOME
        return Intent.ALL
    if is_redrawn or all(one.loader.sampler.endswith(_CHOOSES) for one in every):
        return Intent.SOME
    if any(one.is_batch_sampled for one in every):
        return Intent.UNKNOWN
    if all(one.has_sequential_sampler for one in every):
        return Intent.ALL
    # A RandomSampler that hands out less than it has was told how much: num_samples.
    return Intent.SOME if all(_is_random(one.loader.sampler) for one in every) else Intent.UNKNOWN


def _is_random(sampler: str) -> bool:
    return sampler.endswith(".RandomSampler")
