"""The check ``repeated-samples``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, TRAINING_LOADER
from scaleproof.checks.passes import (
    ALL_CONTENTS,
    RankPass,
    coverage,
    has_stable_contents,
    passes_words,
    shared_loaders,
)
from scaleproof.checks.wording import counted, short_percent
from scaleproof.evidence.study import Run, Study

_MIN_BATCHES = 4  # of each worker
_MIN_REPEATS = 10.0  # expected of workers that read the same
_MOST_ALIKE = 0.2
"""Share of a stream's items that may be alike by nature before repeats tell nothing."""


@final
class StreamPass(msgspec.Struct, frozen=True, kw_only=True):
    """One training pass of one rank over a stream that workers read; ``number`` is from 0.

    ``num_repeats``: items whose contents an earlier one of the pass had, of those looked at, whose
    share is ``coverage``. ``is_complete``: that is all of them, and nothing was forgotten.
    ``is_drawn``: random numbers are drawn while items are made, and no two passes show the same
    contents.
    """

    run: str
    rank: int
    where: str
    number: int
    num_workers: int
    num_fed: int
    num_batches: int
    num_repeats: int
    is_whole: bool
    coverage: float
    is_complete: bool
    is_drawn: bool

    @property
    def share(self) -> float:
        """Of repeats, among what was looked at."""
        return self.num_repeats / (self.coverage * self.num_fed)

    @property
    def expected(self) -> float:
        """The share, were all items different and handed out once by each of W workers: of c W
        copies looked at, 1 - (1 - c)^W have contents of their own."""
        num_workers, looked_at = self.num_workers, self.coverage
        return 1 - (1 - (1 - looked_at) ** num_workers) / (num_workers * looked_at)

    @property
    def is_visible(self) -> bool:
        """Workers that read the same would show."""
        num_expected = self.expected * self.coverage * self.num_fed
        return not self.is_drawn and num_expected >= _MIN_REPEATS

    @property
    def excess(self) -> float:
        return self.share - self.expected

    @property
    def share_alike(self) -> float:
        """Of the stream's own items that are like an earlier one, if all workers read all of it."""
        return self.excess * self.num_workers


@final
class RepeatedSamplesMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    passes: tuple[StreamPass, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedSamples(AbstractCheck[RepeatedSamplesMeasurement]):
    """Every loader worker of a rank reads the same part of a stream: items come again.

    What it looks for
        Iterable data sets, read by two workers or more, of which each worker hands out all that
        the rank was to have, so that every item comes once per worker.

    Why it matters
        torch gives each worker a copy of an iterable data set, which must itself take its part of
        what the rank reads. One that is split by rank alone trains on each item as many times in a
        row as there are workers: an epoch is that many epochs, and the batches of a step, or of
        neighbouring steps, are the same. No error tells, and the loss falls quickly.

    How it decides
        By digests of the contents, within one training pass of one rank: with W workers that all
        read all of it, 1 - 1/W of the items equal an earlier one. It fails when the share of such
        items in a pass that ran to its end lies within `max_deviation` of that; for a pass that was
        broken off, after four batches of each worker, it is undecided, as a stream that begins
        anew looks the same. Undecided too where more items are alike, by up to 0.2 of what one
        worker reads, or where not all contents were looked at and half as many repeats show as then
        should. Fewer repeats, or many more, are what the data holds: items may be alike by nature.

    What it can't see
        Data sets with indices: drawing an item again, oversampling and repeated augmentation are
        ways to train. Random augmentation hides what is equal. Some of the workers alone reading
        the same. A stream that gives each item, on purpose, as many times as there are workers
        looks the same: name the check in the profile's `advisory` list.

    How to fix it
        In the data set's `__iter__`, take the worker's part of the rank's part:
        `islice(stream, rank * num_workers + worker.id, None, world_size * num_workers)`, with
        `torch.utils.data.get_worker_info()`. Or read with `num_workers=1`.

    References
        pytorch.org/docs/stable/data.html, "Multi-process data loading" (an iterable data set is
        copied to each worker), huggingface/datasets#5360 (streams not split).
    """

    name: ClassVar[str] = "repeated-samples"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TRAINING_LOADER)
    consequence_of: ClassVar[tuple[str, ...]] = ("overlapping-samples",)

    max_deviation: float = 0.02

    def measure(self, study: Study) -> RepeatedSamplesMeasurement:
        runs = study.runs_of(study.candidate)
        return RepeatedSamplesMeasurement(passes=tuple(one for run in runs for one in _passes(run)))

    def judge(self, measurement: RepeatedSamplesMeasurement) -> Judgement:
        visible = [one for one in measurement.passes if one.is_visible]
        alike = [one for one in visible if one.is_complete and self._is_read_by_all(one)]
        faults = [one for one in alike if one.is_whole]
        if faults:
            more = f"; {len(faults) - 1} more over all ranks and runs" if len(faults) > 1 else ""
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{_words(faults[0])}: each worker reads all of it{more}.",
                remedy=_REMEDY,
            )
        unclear = [one for one in alike if one.num_batches >= _MIN_BATCHES * one.num_workers]
        unclear += [one for one in visible if self._is_unclear(one)]
        if unclear:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_words(unclear[0])}. Whether each worker reads all of it, or the "
                "stream itself repeats items, can't be seen.",
                remedy=f"{_REMEDY} If it does already, name the check in the profile's advisory "
                "list.",
            )
        if not visible:
            why = "training reads no stream with two workers or more"
            if any(one.is_drawn for one in measurement.passes):
                why = "random numbers drawn while items are made hide which are the same"
            elif measurement.passes:
                why = "too few items of the stream were looked at"
            return Judgement(outcome=Outcome.NOT_APPLICABLE, sentence=f"Nothing to count: {why}.")
        return Judgement(outcome=Outcome.PASS, sentence=_passed(visible))

    def _is_read_by_all(self, one: StreamPass) -> bool:
        return abs(one.excess) <= self.max_deviation

    def _is_unclear(self, one: StreamPass) -> bool:
        if not one.is_complete:
            return one.share >= one.expected / 2
        return self.max_deviation < one.excess and one.share_alike <= _MOST_ALIKE


_REMEDY = (
    "Let each worker take its own part in the data set's __iter__: get_worker_info() says which "
    "it is."
)


def _passed(passes: Sequence[StreamPass]) -> str:
    most = max(passes, key=lambda one: one.share)
    where = f"{passes_words(len(passes))}, each of one rank"
    if most.excess > 0:
        return (
            f"{short_percent(most.share)} of the items of a pass over {most.where} are like an "
            f"earlier one, more than workers that read the same bring about ({where})."
        )
    return (
        "No worker reads what another of its rank does: at most "
        f"{short_percent(most.share)} of the items of a pass are like an earlier one ({where})."
    )


def _words(one: StreamPass) -> str:
    num_items = round(one.coverage * one.num_fed)
    return (
        f"{one.run}, rank {one.rank}, training pass {one.number + 1} over {one.where}: "
        f"{one.num_repeats:,} ({short_percent(one.share)}) of {counted(num_items, 'item')} equal "
        f"an earlier one, with {one.num_workers} workers reading the stream"
    )


def _passes(run: Run) -> Iterator[StreamPass]:
    for loader in shared_loaders(run):
        for rank in loader.loaders:
            mine = [one for one in loader.of_rank(rank) if one.record.use == "training"]
            is_drawn = any(one.record.drawn for one in mine) and not has_stable_contents(mine)
            for number, one in enumerate(mine):
                if _is_of_stream(one):
                    yield StreamPass(
                        run=run.name,
                        rank=rank,
                        where=loader.words,
                        number=number,
                        num_workers=one.loader.num_workers,
                        num_fed=one.record.num_fed,
                        num_batches=one.record.num_batches,
                        num_repeats=one.record.num_content_repeats,
                        is_whole=one.record.is_whole,
                        coverage=coverage(one),
                        is_complete=one.record.content_limit >= ALL_CONTENTS
                        and coverage(one) == 1.0,
                        is_drawn=is_drawn,
                    )


def _is_of_stream(one: RankPass) -> bool:
    is_known = one.record.contents is not None and coverage(one) > 0
    return is_known and not one.record.has_ids and one.loader.num_workers > 1
