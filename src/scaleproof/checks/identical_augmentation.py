"""The check ``identical-augmentation``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, TRAINING_LOADER, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import LoaderRecord, PassRecord, RandomSource
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study


@final
class SharedRandomness(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks whose fetching began a pass with the same random state.

    ``is_drawn``: fetching was seen to draw from it; False: what it draws from was not seen.
    """

    run: str
    where: str
    epoch: int
    sources: tuple[RandomSource, ...]
    ranks: tuple[int, ...]
    is_in_workers: bool
    is_drawn: bool


@final
class IdenticalAugmentationMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_passes``: training passes that were compared between ranks, ``num_drawing`` those in
    which a rank drew random numbers."""

    num_passes: int
    num_drawing: int
    shared: tuple[SharedRandomness, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IdenticalAugmentation(AbstractCheck[IdenticalAugmentationMeasurement]):
    """All ranks augment their samples with the same random numbers.

    What it looks for
        Training passes in which fetching an item draws random numbers - crops, flips, noise,
        sampled negatives - from a generator that began the pass in the same state on several
        ranks.

    Why it matters
        One seed for all ranks gives the k-th sample of every rank the same crop, the same flip and
        the same noise. The batch then holds N times fewer different augmentations than it seems
        to, and the gradient is noisier than its size promises. No error tells.

    How it decides
        Where fetching was seen to draw from one of the global generators (torch, NumPy, Python),
        the digests of that generator's state at the pass's first fetch, in the process that
        fetches, are compared between ranks: equal ones fail. Where workers fetch unseen, their
        base seeds are compared instead, and equal ones are undecided, as they are when nothing
        is known of what fetching draws. Ranks that were fed the same samples in the same order are
        left out: that is another fault, or one model's parts.

    What it can't see
        Generators of the data set's own (`np.random.default_rng(seed)`); augmentation on the
        device after fetching; states that become equal later in a pass.

    How to fix it
        Seed with `seed + rank`, after the model was made or wrapped in DDP (which sends rank 0's
        weights). Or give the loader a `worker_init_fn` that adds the rank to each worker's seeds.

    References
        huggingface/transformers#37932, threestudio-project/threestudio#195, pytorch/pytorch#5059.
    """

    name: ClassVar[str] = "identical-augmentation"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, TRAINING_LOADER)
    consequence_of: ClassVar[tuple[str, ...]] = ("overlapping-samples",)

    def measure(self, study: Study) -> IdenticalAugmentationMeasurement:
        passes = [group for run in study.runs_of(study.candidate) for group in _same_passes(run)]
        return IdenticalAugmentationMeasurement(
            num_passes=len(passes),
            num_drawing=sum(any(this.drawn for _, this in group) for _, group in passes),
            shared=tuple(found for run, group in passes for found in _shared(run, group)),
        )

    def judge(self, measurement: IdenticalAugmentationMeasurement) -> Judgement:
        drawn = [found for found in measurement.shared if found.is_drawn]
        if drawn:
            return _judge_shared(drawn[0], num_more=len(drawn) - 1)
        if measurement.shared:
            found = measurement.shared[0]
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_words(found)}, and whether fetching draws from it was not seen.",
                remedy=_REMEDY,
            )
        if measurement.num_passes == 0:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No training pass was made by two ranks with samples of their own.",
            )
        if measurement.num_drawing == 0:
            return Judgement(
                outcome=Outcome.PASS,
                sentence="Fetching was not seen to draw from a global random generator whose state "
                "is the same on two ranks.",
            )
        return Judgement(
            outcome=Outcome.PASS,
            sentence="Fetching draws from random states that differ between ranks (in "
            f"{measurement.num_drawing:,} of {measurement.num_passes:,} training passes).",
        )


_REMEDY = (
    "Seed with seed + rank after the model was made (DDP sends rank 0's weights), or add the rank "
    "to the seeds in the loader's worker_init_fn."
)


def _judge_shared(found: SharedRandomness, *, num_more: int) -> Judgement:
    more = f", here and {counted(num_more, 'time')} more"
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{_words(found)}: each of these ranks augments with the same random numbers"
        f"{more if num_more else ''}.",
        remedy=_REMEDY,
    )


def _words(found: SharedRandomness) -> str:
    where = f" of {found.where}" if found.where else ""
    process = "its workers" if found.is_in_workers else "it"
    states = f"{listed(found.sources)} states" if found.sources else "base seeds"
    return (
        f"{found.run}, epoch {found.epoch + 1}: the loader{where} began with the same {states} in "
        f"{process} on ranks {listed(found.ranks, most=8)}"
    )


def _same_passes(run: Run) -> Iterator[tuple[Run, list[tuple[Rank, PassRecord]]]]:
    """Training passes of the same loader and number, of ranks that were fed samples of their own,
    in the order in which rank 0 made them."""
    groups: dict[tuple[int, int], list[tuple[Rank, PassRecord]]] = {}
    for rank in run.ranks:
        for this in rank.of(PassRecord):
            if this.use == "training":
                groups.setdefault((this.loader, this.number), []).append((rank, this))
    for group in groups.values():
        own: dict[str, tuple[Rank, PassRecord]] = {}
        for rank, this in group:
            own.setdefault(this.order_digest if this.has_ids else f"rank {rank.rank}", (rank, this))
        if len(own) > 1:
            yield run, list(own.values())


def _shared(run: Run, group: Sequence[tuple[Rank, PassRecord]]) -> Iterator[SharedRandomness]:
    """The largest set of ranks that began with the same states, if there is one."""
    alike: dict[tuple[RandomSource | None, str], list[tuple[Rank, PassRecord]]] = {}
    for rank, this in group:
        for source, state in _states(this):
            alike.setdefault((source, state), []).append((rank, this))
    if not alike:
        return
    most = max(alike.values(), key=len)
    if len(most) < 2:
        return
    first, this = most[0]
    sources = [source for (source, _), ranks in alike.items() if ranks == most]
    loader = next((r for r in first.of(LoaderRecord) if r.loader == this.loader), None)
    yield SharedRandomness(
        run=run.name,
        where="" if loader is None else loader.where,
        epoch=max(this.epoch, 0),
        sources=tuple(source for source in sources if source is not None),
        ranks=tuple(rank.rank for rank, _ in most),
        is_in_workers=loader is not None and loader.num_workers > 0,
        is_drawn=this.is_fetch_seen,
    )


def _states(this: PassRecord) -> Iterator[tuple[RandomSource | None, str]]:
    """What decides which random numbers fetching got. With workers whose own states are not
    known, that is the seed that theirs are made from."""
    if not this.is_fetch_seen and this.base_seed is not None:
        yield None, str(this.base_seed)  # one seed, whichever generator is drawn from
        return
    for source in this.drawn if this.is_fetch_seen else tuple(RandomSource):
        if this.base_seed is None:
            yield source, this.random_states.get(source, "")
        else:
            yield source, str(this.base_seed)
