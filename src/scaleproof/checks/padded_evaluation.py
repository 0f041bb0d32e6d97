"""The check ``padded-evaluation``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, final

import msgspec
from pyroaring import BitMap

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, EVALUATION_LOADER, SCRIPT, TWO_RANKS
from scaleproof.checks.passes import (
    RankPass,
    Sameness,
    SharedLoader,
    SharedPass,
    sameness,
    shared_loaders,
)
from scaleproof.checks.wholes import (
    has_own_subsets,
    is_rest_scored,
    num_items_of_all,
    num_rounded_off,
)
from scaleproof.checks.wording import counted, listed, short_percent
from scaleproof.evidence.observations import MetricRecord
from scaleproof.evidence.study import Run, Study


class Division(StrEnum):
    """How the ranks divided an evaluation among them."""

    SHARED_OUT = "shared-out"
    ONE_RANK = "one-rank"
    REDUNDANT = "redundant"
    """Every rank scored the whole set."""
    OWN_DATA = "own-data"
    """Every rank scored a data set of its own."""
    DRAWN = "drawn"
    """Every rank scored items drawn at random."""


@final
class ScoredPass(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation pass; ``number`` is from 0 and counts those over this loader.

    ``num_left_out`` is 0 where the pass was broken off, or another loader scored the rest.
    ``is_framework_loader``: a batch sampler such as Accelerate's pads, whose
    ``gather_for_metrics`` can drop what was padded. ``is_truncated``: the figures came from a
    library that does so.
    """

    run: str
    where: str
    number: int
    ranks: tuple[int, ...]
    division: Division
    num_scored: int
    num_different: int
    num_left_out: int
    is_framework_loader: bool
    is_truncated: bool

    @property
    def num_extra(self) -> int:
        return self.num_scored - self.num_different

    @property
    def share(self) -> float:
        """By how much a figure may be off: what counts too often or not at all, over what
        there is."""
        return (self.num_extra + self.num_left_out) / (self.num_different + self.num_left_out)


@final
class PaddedEvaluationMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``passes``: of each loader the evaluation that is off most. ``num_without_ids`` counts passes
    that could not be looked at."""

    num_passes: int
    num_without_ids: int
    passes: tuple[ScoredPass, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedEvaluation(AbstractCheck[PaddedEvaluationMeasurement]):
    """An evaluation that is shared out over ranks scores some items twice, or leaves some out.

    What it looks for
        Evaluation passes in which the ranks together scored an item more than once, or left some
        out: 11 items on 2 ranks are 12 scored with a `DistributedSampler`, which pads, and 10 with
        `drop_last`, or with `len(data) // 2` for each.

    Why it matters
        Accuracy, recall and loss are then of another set of items, and of another one for every
        number of devices: a difference between one device and N that has nothing to do with the
        model. It is small - at most the share of items concerned - but it is there in every
        comparison, and on a small set it is not small.

    How it decides
        By ids, over all ranks: every item once. It fails when the share of items that are scored
        again or left out, of all items, is above `max_share`: 0 by default, as a single item
        changes the figure. Of a subset for each rank, the items there are are those of all ranks
        together, and also the fewer than N that dividing the data set into N equal parts rounds
        off, unless training or a loader of another line draws from it: then it was split on
        purpose. What another loader hands out of the same data set between the same two steps of
        training is not left out, if that is the very rest: as many items, none scored before. Not
        faults: an evaluation on one rank; every rank scoring the whole
        set, or items drawn at random, or a set of its own. What a pass that was broken off leaves
        out does not count. Accelerate's loaders pad too, and its `gather_for_metrics` drops the
        padding again: where it was called on every rank, or the figures come from the Transformers
        Trainer, that is a pass, otherwise undecided.

    What it can't see
        Whether the script itself drops what was padded before it computes a figure, and whether
        a rest that every rank scores is counted once, after sums were added up over ranks. Data
        sets without indices. Passes over a loader that training draws from.

    How to fix it
        For evaluation, give rank r the items r, r + N, r + 2 N ... without padding, and add up
        sums and counts over ranks; or drop the surplus after gathering
        (`accelerator.gather_for_metrics`). Keep the tail: `drop_last=False`.

    References
        pytorch/pytorch#25162, huggingface/accelerate#226 (10,167 of 10,000 scored),
        mosaicml/composer#2218.
    """

    name: ClassVar[str] = "padded-evaluation"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, EVALUATION_LOADER)
    consequence_of: ClassVar[tuple[str, ...]] = ("train-validation-overlap",)

    max_share: float = 0.0

    def measure(self, study: Study) -> PaddedEvaluationMeasurement:
        worst: list[ScoredPass] = []
        num_passes = num_without_ids = 0
        for run in study.runs_of(study.candidate):
            loaders = shared_loaders(run)
            for loader in loaders:
                if loader.training:
                    continue  # how well it does on what it trains on is no result
                passes = loader.evaluation
                num_without_ids += sum(not one.has_ids for one in passes)
                scored = list(_scored(run, loader, loaders))
                num_passes += len(scored)
                if scored:
                    worst.append(max(scored, key=_severity))
        return PaddedEvaluationMeasurement(
            num_passes=num_passes, num_without_ids=num_without_ids, passes=tuple(worst)
        )

    def judge(self, measurement: PaddedEvaluationMeasurement) -> Judgement:
        off = [one for one in measurement.passes if self._is_off(one)]
        certain = [one for one in off if not one.is_framework_loader or one.num_left_out]
        if certain:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence(max(certain, key=_severity), len(certain)),
                remedy="Evaluate without padding: rank r scores the items r, r + N, r + 2 N ..., "
                "drop_last=False, and sums and counts are added up over ranks.",
            )
        if off:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_sentence(max(off, key=_severity), len(off))} Whether the script drops "
                "the padding again can't be seen.",
                remedy="Gather predictions with accelerator.gather_for_metrics, which drops it, "
                "and report them with sample ids (scaleproof.report_predictions).",
            )
        if not measurement.num_passes:
            if measurement.num_without_ids:
                why = "the data that was evaluated on has no indices to count by"
            else:
                why = "only loaders that training draws from were evaluated with"
            return Judgement(outcome=Outcome.NOT_APPLICABLE, sentence=f"Nothing to count: {why}.")
        return Judgement(outcome=Outcome.PASS, sentence=_passed(measurement))

    def _is_off(self, one: ScoredPass) -> bool:
        is_counted = one.division is Division.SHARED_OUT and not one.is_truncated
        return is_counted and one.share > self.max_share


def _severity(one: ScoredPass) -> float:
    return one.share if one.division is Division.SHARED_OUT else -1.0


def _sentence(worst: ScoredPass, num_faults: int) -> str:
    what = f"{counted(worst.num_scored, 'item')} scored, {worst.num_different:,} different"
    if worst.num_left_out:
        what += f", {worst.num_left_out:,} left out"
    more = f"; {num_faults - 1} more over all loaders and runs" if num_faults > 1 else ""
    return (
        f"{worst.run}, evaluation {worst.number + 1} with {worst.where}: {what} (ranks "
        f"{listed(worst.ranks, most=8)}), so that figures may be off by up to "
        f"{short_percent(worst.share)}{more}."
    )


def _passed(measurement: PaddedEvaluationMeasurement) -> str:
    num = counted(measurement.num_passes, "evaluation")
    kinds = {one.division for one in measurement.passes}
    if kinds == {Division.ONE_RANK}:
        return f"One rank evaluates on its own ({num})."
    if kinds == {Division.REDUNDANT}:
        return f"Every rank scores the whole set: N times the work, the same figures ({num})."
    padded = [one for one in measurement.passes if one.division is Division.SHARED_OUT]
    most = max((one.share for one in padded if not one.is_truncated), default=0.0)
    if most > 0:
        return f"Up to {short_percent(most)} of the items count wrongly: max_share allows it."
    if any(one.is_truncated and one.num_extra for one in padded):
        return f"Items added to even out the ranks are dropped before figures are made ({num})."
    if Division.REDUNDANT in kinds:
        return (
            f"Every item was scored once, by one rank, or by every rank in a loader that all of "
            f"them go through whole ({num})."
        )
    return f"Every item was scored once, by one rank ({num})."


def _scored(
    run: Run, loader: SharedLoader, loaders: Sequence[SharedLoader]
) -> Iterator[ScoredPass]:
    passes = [one for one in loader.evaluation if one.has_ids]
    if not passes:
        return
    ever = BitMap.union(*(one.seen() for shared in passes for one in shared.by_rank))
    num_items = num_items_of_all(loader, ever)
    num_rounded = 0
    if has_own_subsets(loader, ever):
        num_rounded = num_rounded_off(
            loader, num_items, has_other_use=_has_other_use(loader, loaders)
        )
    is_own_data = _is_own_data(loader)
    for shared in passes:
        seen = [one.seen() for one in shared.by_rank]
        union = BitMap.union(*seen)
        if is_own_data:
            division = Division.OWN_DATA
        elif len(seen) == 1 and next(iter(shared.by_rank)).loader.shards is None:
            division = Division.ONE_RANK
        elif len(seen) > 1 and all(ids == union for ids in seen):
            division = Division.REDUNDANT
        elif all(_draws(one) for one in shared.by_rank):
            division = Division.DRAWN
        else:
            division = Division.SHARED_OUT
        is_complete = shared.is_whole and len(seen) == loader.num_ranks
        num_rest = num_rounded + (num_items - len(union) if _is_sharding(shared) else 0)
        if not is_complete or (num_rest > 0 and is_rest_scored(shared, num_rest, loaders)):
            num_rest = 0
        yield ScoredPass(
            run=run.name,
            where=loader.words,
            number=shared.number,
            ranks=shared.ranks,
            division=division,
            num_scored=shared.num_fed,
            num_different=len(union),
            num_left_out=num_rest,
            is_framework_loader=any(one.is_batch_sampled for one in shared.by_rank),
            is_truncated=_is_truncated(run, shared),
        )


def _has_other_use(loader: SharedLoader, loaders: Sequence[SharedLoader]) -> bool:
    """Its data set is trained on, or used by a loader of another line: split on purpose."""
    return any(
        (other.training or other.family[0] != loader.family[0])
        and rank in other.loaders
        and other.loaders[rank].data_set == own.data_set
        for other in loaders
        for rank, own in loader.loaders.items()
    )


def _is_own_data(loader: SharedLoader) -> bool:
    first, *others = loader.loaders
    return any(
        sameness(loader.of_rank(first), loader.of_rank(other)) is Sameness.DIFFERENT
        for other in others
    )


def _is_sharding(shared: SharedPass) -> bool:
    """Some rank was handed less than its loader holds: it takes a part, or drops the tail."""
    return any(
        one.record.num_fed < one.loader.num_items and (one.loader.drop_last or not _draws(one))
        for one in shared.by_rank
    )


def _draws(one: RankPass) -> bool:
    """Its sampler is there to choose: WeightedRandomSampler, SubsetRandomSampler, num_samples."""
    return one.loader.sampler.endswith("RandomSampler") and not one.is_batch_sampled


def _is_truncated(run: Run, shared: SharedPass) -> bool:
    """The figures of this evaluation went through Accelerate's ``gather_for_metrics``, or came from
    the Transformers Trainer: both cut what their loader added."""
    if all(one.record.drops_padding for one in shared.by_rank):
        return True
    loaders = {(one.rank.rank, one.record.loader) for one in shared.by_rank}
    if not any(one.is_batch_sampled for one in shared.by_rank):
        return False
    return any(
        record.source == "transformers" and (rank.rank, record.evaluation_loader) in loaders
        for rank in run.ranks
        for record in rank.of(MetricRecord)
    )
