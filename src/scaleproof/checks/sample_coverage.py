"""The check ``sample-coverage``."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, final

import msgspec
import numpy as np
from pyroaring import BitMap

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, RECIPE, SAMPLES
from scaleproof.checks.wording import counted, listed, short_percent
from scaleproof.errors import EvidenceError
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import SamplesRecord
from scaleproof.evidence.study import Run, Study

_NUM_EXAMPLES = 3


class CoverageFault(StrEnum):
    """The ways to miss "every sample exactly once", in the order in which they are told."""

    OUTSIDE = "outside"
    SHARED = "shared"
    REPEATED = "repeated"
    NEVER = "never"
    SCORED_TWICE = "scored-twice"
    NEVER_SCORED = "never-scored"


_WORDS = {
    CoverageFault.OUTSIDE: "fed whose ids are outside the data set",
    CoverageFault.SHARED: "fed to more than one rank",
    CoverageFault.REPEATED: "fed twice or more",
    CoverageFault.NEVER: "never fed",
    CoverageFault.SCORED_TWICE: "scored twice or more in the last evaluation",
    CoverageFault.NEVER_SCORED: "not scored in the last evaluation",
}
_SAMPLER = (
    "Give every rank its own part of one permutation: the same sampler seed on all ranks, "
    "rank and number of ranks passed on, sharded once"
)
_REMEDIES = {
    CoverageFault.OUTSIDE: "Index the training split only, from 0.",
    CoverageFault.SHARED: f"{_SAMPLER}.",
    CoverageFault.REPEATED: "Let the sampler neither pad nor draw with replacement.",
    CoverageFault.NEVER: f"Do not drop the tail of the epoch. {_SAMPLER}.",
    CoverageFault.SCORED_TWICE: "Do not pad the evaluation: give the last ranks fewer samples.",
    CoverageFault.NEVER_SCORED: "Score the tail of the evaluation split too.",
}
_OF_EVALUATION = (CoverageFault.SCORED_TWICE, CoverageFault.NEVER_SCORED)


@final
class Miscovered(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault in one run, as it looks in the first epoch that has it.

    ``epoch`` counts from 0. ``ranks`` are those that were fed (or scored) the samples; empty when
    nobody was.
    """

    fault: CoverageFault
    run: str
    epoch: int
    num_epochs: int
    ranks: tuple[int, ...]
    num_samples: int
    share: float
    """Of the split; the largest of all epochs."""
    examples: tuple[int, ...]


@final
class SampleCoverageMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``missing`` names sample records that a rank lacks and another has, or that all lack."""

    num_runs: int
    num_epochs: int
    num_train_samples: int
    candidate: tuple[Miscovered, ...]
    baseline: tuple[Miscovered, ...]
    missing: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCoverage(AbstractCheck[SampleCoverageMeasurement]):
    """Samples are skipped, repeated or given to several ranks within one epoch.

    What it looks for
        In each epoch of each run, training samples that no rank was fed, that one rank was fed
        twice, or that two ranks were fed, and ids that the data set does not have. In the last
        evaluation, samples that were scored twice or not at all.

    Why it matters
        Without a sampler for ranks, every rank trains on the whole data set: N times the work for
        the same learning. With another sampler seed on each rank, about a third of the data is
        never seen and another third twice. Training runs on, a little worse, and nothing tells.
        A padded or cut evaluation changes the accuracy with the number of devices.

    How it decides
        Exactly, from the set of ids that each rank recorded: their union must be the data set, and
        the sets of two ranks must not overlap. Nothing is dropped or padded by scaleproof's own
        loop, so that any deviation fails; for other loops `max_share` allows a share of the
        training samples to be missing or repeated in an epoch. When only the baseline deviates, it
        is no measure for the candidate: undecided.

    What it can't see
        Whether the content behind an id is what it should be, or whether training and evaluation
        split overlap. Ranks of one tensor- or pipeline-parallel group rightly see the same
        samples; this check does not know such groups.

    How to fix it
        `DistributedSampler(dataset, num_replicas=N, rank=rank, seed=same_everywhere,
        drop_last=False)`, or the loader's own sharding, but not both. For evaluation, give rank r
        the samples r, r + N, r + 2 N ... without padding.

    References
        pytorch/pytorch#25162 (padded evaluation), huggingface/accelerate#3520 (sharded twice),
        mlcommons/training#625 (a seed per rank: 20 to 30 % overlap). Lemire et al. (2018), Roaring
        bitmaps, Software: Practice and Experience 48.
    """

    name: ClassVar[str] = "sample-coverage"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, RECIPE, SAMPLES)

    max_share: float = 0.0

    def measure(self, study: Study) -> SampleCoverageMeasurement:
        candidate = study.runs_of(study.candidate)
        baseline = study.runs_of(study.baseline) if study.baseline is not None else ()
        first = candidate[0].manifest
        assert first is not None  # the run is usable
        return SampleCoverageMeasurement(
            num_runs=len(candidate) + len(baseline),
            num_epochs=first.num_epochs,
            num_train_samples=first.num_train_samples,
            candidate=tuple(found for run in candidate for found in _miscovered(run)),
            baseline=tuple(found for run in baseline for found in _miscovered(run)),
            missing=tuple(gap for run in (*candidate, *baseline) for gap in _missing(run)),
        )

    def judge(self, measurement: SampleCoverageMeasurement) -> Judgement:
        faults = [found for found in measurement.candidate if self._is_fault(found)]
        if faults:
            worst = max(faults, key=lambda found: (found.share, found.num_samples))
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=self._sentence(worst, faults),
                remedy=_REMEDIES[worst.fault],
            )
        if measurement.missing:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"Sample records are missing: {listed(measurement.missing)}.",
                remedy="Run the study again to its end and copy the whole folder.",
            )
        faults = [found for found in measurement.baseline if self._is_fault(found)]
        if faults:
            worst = max(faults, key=lambda found: (found.share, found.num_samples))
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="The baseline is no measure: " + self._sentence(worst, faults),
                remedy=f"{_REMEDIES[worst.fault]} Then compare again.",
            )
        allowed = ""
        if measurement.candidate:
            most = max(found.share for found in measurement.candidate)
            allowed = f", but for {short_percent(most)} that max_share allows"
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"Each of the {counted(measurement.num_train_samples, 'training sample')} was "
            f"fed exactly once an epoch, to one rank{allowed} "
            f"({counted(measurement.num_runs, 'run')}).",
        )

    def _is_fault(self, found: Miscovered) -> bool:
        if found.fault is CoverageFault.OUTSIDE or found.fault in _OF_EVALUATION:
            return True
        return found.share > self.max_share

    def _sentence(self, worst: Miscovered, faults: list[Miscovered]) -> str:
        where = f"{worst.run}, epoch {worst.epoch + 1}"
        verb = "was" if worst.num_samples == 1 else "were"
        words = (
            f"{where}: {counted(worst.num_samples, 'sample')} ({short_percent(worst.share)}) "
            f"{verb} {_WORDS[worst.fault]}"
        )
        if worst.ranks:
            noun = "rank" if len(worst.ranks) == 1 else "ranks"
            words += f" (by {noun} {listed(worst.ranks, most=8)})"
        words += f", for example {listed(worst.examples)}"
        if worst.num_epochs > 1:
            words += f"; in {worst.num_epochs} epochs of this run"
        kinds = [_WORDS[k] for k in CoverageFault if k in {f.fault for f in faults} - {worst.fault}]
        if kinds:
            words += f"; there are also samples {listed(kinds, most=6)}"
        return words + "."


def _miscovered(run: Run) -> Iterator[Miscovered]:
    """One entry per kind of fault in the run, from its first epoch that has it."""
    assert run.manifest is not None  # the run is usable
    all_ids = BitMap(range(run.manifest.num_train_samples))
    found: dict[CoverageFault, list[Miscovered]] = {}
    for epoch in sorted({record.epoch for rank in run.ranks for record in rank.samples}):
        for fault, ids, ranks in _faults_of_epoch(run, epoch, all_ids):
            miscovered = _describe(fault, run, epoch, ids, ranks, len(all_ids))
            found.setdefault(fault, []).append(miscovered)
    for entries in found.values():
        yield msgspec.structs.replace(
            entries[0], num_epochs=len(entries), share=max(entry.share for entry in entries)
        )
    yield from _evaluation_faults(run)


def _faults_of_epoch(
    run: Run, epoch: int, all_ids: BitMap
) -> Iterator[tuple[CoverageFault, BitMap, list[int]]]:
    """Each kind of fault with its sample ids and the ranks that were fed them."""
    seen_by: dict[int, BitMap] = {}
    union, shared, repeated = BitMap(), BitMap(), BitMap()
    repeating: list[int] = []
    nobody: list[int] = []
    is_whole = all(any(r.epoch == epoch for r in rank.samples) for rank in run.ranks)
    for rank in run.ranks:
        seen, twice = _fed(rank, epoch)
        seen_by[rank.rank] = seen
        shared |= union & seen
        union |= seen
        if twice:
            repeated |= twice
            repeating.append(rank.rank)
    outside = union - all_ids
    faults = (
        (CoverageFault.OUTSIDE, outside, _ranks_fed(seen_by, outside)),
        (CoverageFault.SHARED, shared, _ranks_fed(seen_by, shared)),
        (CoverageFault.REPEATED, repeated, repeating),
        # Without the record of one rank, nobody knows what was never fed.
        (CoverageFault.NEVER, all_ids - union if is_whole else BitMap(), nobody),
    )
    yield from (fault for fault in faults if fault[1])


def _fed(rank: Rank, epoch: int) -> tuple[BitMap, BitMap]:
    """Ids that the rank was fed in the epoch, and those it was fed twice or more."""
    seen, twice = BitMap(), BitMap()
    for record in rank.samples:
        if record.epoch != epoch:
            continue
        ids, again = rank.seen(record), rank.repeated(record)
        _refuse_contradiction(rank, record, ids, again)
        twice |= again | (seen & ids)
        seen |= ids
    return seen, twice


def _refuse_contradiction(rank: Rank, record: SamplesRecord, seen: BitMap, twice: BitMap) -> None:
    num_extra = record.num_fed - len(seen)
    if twice <= seen and num_extra >= len(twice) and (num_extra == 0 or twice):
        return
    raise EvidenceError(
        f"{rank.folder} contradicts itself in epoch {record.epoch + 1}: {record.num_fed} samples "
        f"fed, {len(seen)} different ids, {len(twice)} of them fed again. Restore the folder from "
        "where the study was made."
    )


def _ranks_fed(seen_by: dict[int, BitMap], ids: BitMap) -> list[int]:
    return [rank for rank, seen in seen_by.items() if seen.intersect(ids)]


def _evaluation_faults(run: Run) -> Iterator[Miscovered]:
    assert run.manifest is not None  # the run is usable
    if run.final_epochs_done == 0:
        return
    ids, counts = np.unique(run.final_evaluation["sample_id"], return_counts=True)
    num_samples = run.manifest.num_evaluation_samples
    never = np.setdiff1d(np.arange(num_samples), ids)
    epoch = run.final_epochs_done - 1
    for fault, wrong in (
        (CoverageFault.SCORED_TWICE, ids[counts > 1]),
        (CoverageFault.NEVER_SCORED, never),
    ):
        if len(wrong):
            yield _describe(fault, run, epoch, wrong.tolist(), [], num_samples)


def _describe(
    fault: CoverageFault,
    run: Run,
    epoch: int,
    ids: BitMap | list[int],
    ranks: Iterable[int],
    num_all: int,
) -> Miscovered:
    return Miscovered(
        fault=fault,
        run=run.name,
        epoch=epoch,
        num_epochs=1,
        ranks=tuple(ranks),
        num_samples=len(ids),
        share=len(ids) / max(1, num_all),
        examples=tuple(ids[:_NUM_EXAMPLES]),
    )


def _missing(run: Run) -> Iterator[str]:
    """Sample records that should be there: of all epochs of a complete run, and of any epoch that
    another rank has."""
    assert run.manifest is not None  # the run is usable
    expected = {record.epoch for rank in run.ranks for record in rank.samples}
    if run.status == "complete":
        expected |= set(range(run.manifest.num_epochs))
    for rank in run.ranks:
        for epoch in sorted(expected - {record.epoch for record in rank.samples}):
            yield f"{run.name}, rank {rank.rank}, epoch {epoch + 1}"
