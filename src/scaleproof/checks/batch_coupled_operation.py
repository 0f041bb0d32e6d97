"""The check ``batch-coupled-operation``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, CLOSE_UPS, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.relations import (
    Consistency,
    Relation,
    fits,
    relation_of,
    series_of,
    where_words,
)
from scaleproof.checks.replayed import ComparedStep, compared_steps
from scaleproof.checks.wording import counted, listed, percent
from scaleproof.evidence.close_ups import CouplingRecord
from scaleproof.evidence.study import Run, Study

_TOLERANCE = 0.01
"""Of weights and factors: as other checks have it; a coupling is far beyond."""

_COMPARED = frozenset(Relation) - {Relation.RANDOM, Relation.UNTOLD}


@final
class CoupledModules(msgspec.Struct, frozen=True, kw_only=True):
    """Modules of a run known to couple the items of a batch: ``(name, class)``.

    ``num_items``: of a backward on the rank with the fewest, in the median over steps; None where
    no loader was seen.
    """

    run: str
    modules: tuple[tuple[str, str], ...]
    num_items: float | None


@final
class BatchCoupledMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``steps`` are those that were replayed, of all runs."""

    modules: tuple[CoupledModules, ...]
    steps: tuple[ComparedStep, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCoupledOperation(AbstractCheck[BatchCoupledMeasurement]):
    """An operation couples the items of a batch, so that N devices can't compute what one does.

    What it looks for
        Losses and layers whose result for one item depends on the others of its batch: contrastive
        losses that take the other items as negatives, batch normalisation that does not
        synchronise, ranking losses. On N devices each rank sees only its own items.

    Why it matters
        It is no fault: the script does what it says. But one device with the whole batch computes
        another gradient, and the more ranks share it, the fewer items are coupled. Contrastive
        losses learn less from fewer negatives; batch normalisation gets noisy with fewer than
        about 16 items.

    How it decides
        `scaleproof check` replays the steps on one process with the items of all ranks. Where that
        gradient differs from the one that was used and is no weighted sum of the ranks' own, at
        `min_steps` steps and `min_share` of those compared, no re-weighting can explain it. In the
        replay, batch normalisation keeps to the items of each rank, so that it never brings that
        about; it is known by its type, and noted where a rank's batch has fewer than `min_items`
        items. The default profile has this check in its advisory list: it does not reject.

    What it can't see
        Which operation it is. Ranks that run different code (`if rank == 0` around a term of the
        loss) look the same. Steps in which the script draws random numbers of its own.

    How to fix it
        Gather what is compared from all ranks with gradients (`torch.distributed.nn.all_gather`),
        convert batch normalisation (`SyncBatchNorm.convert_sync_batchnorm`) or give each rank a
        larger batch. Where ranks are meant to couple only their own items, do nothing.

    References
        Wu and He, Group Normalization, 2018 (error over batch size); mlfoundations/open_clip
        (`--gather-with-grad`); pytorch/pytorch `SyncBatchNorm`.
    """

    name: ClassVar[str] = "batch-coupled-operation"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS, CLOSE_UPS)
    consequence_of: ClassVar[tuple[str, ...]] = (
        "unsynced-gradients",
        "replica-drift",
        "rank-dependent-gradients",
    )

    min_items: int = 16
    """Of a rank's batch, for batch normalisation."""
    min_steps: int = 2
    min_share: float = 0.25

    def measure(self, study: Study) -> BatchCoupledMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        return BatchCoupledMeasurement(
            modules=tuple(modules for run in runs for modules in _modules_of(run)),
            steps=tuple(step for run in runs for step in compared_steps(run)),
        )

    def judge(self, measurement: BatchCoupledMeasurement) -> Judgement:
        for steps in series_of(measurement.steps):
            consistency = self._coupled(steps)
            if consistency.is_fault:
                return _judge_coupled(consistency)
        small = [m for m in measurement.modules if (m.num_items or np.inf) < self.min_items]
        if small:
            return self._judge_small(min(small, key=lambda modules: modules.num_items or 0))
        compared = [s for s in measurement.steps if relation_of(s, _TOLERANCE) in _COMPARED]
        for modules in measurement.modules:
            num_items = "" if modules.num_items is None else f" of {modules.num_items:g} items"
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{_module_words(modules)} over each rank's own batch{num_items}; "
                "nothing else couples the items of a batch."
                if compared
                else f"{_module_words(modules)} over each rank's own batch{num_items}.",
            )
        if not compared:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No module is known to couple the items of a batch, and no step could be "
                "compared with one device.",
            )
        open_ = [self._coupled(steps) for steps in series_of(measurement.steps)]
        notes = ""
        if any(consistency.found for consistency in open_):
            worst = max(open_, key=lambda consistency: len(consistency.found))
            if worst.is_frequent:
                return Judgement(
                    outcome=Outcome.UNDECIDED,
                    sentence=_judge_coupled(worst).sentence,
                    remedy="Check more steps (--steps): one alone may be special.",
                )
            notes = f" Something else differs {worst.words}."
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"At {counted(len(compared), 'compared step')} one device's gradient is a "
            f"weighted sum of those of the ranks.{notes}",
        )

    def _coupled(self, steps: Sequence[ComparedStep]) -> Consistency:
        relations = [relation_of(step, _TOLERANCE) for step in steps]
        return Consistency(
            found=tuple(
                step
                for step, relation in zip(steps, relations, strict=True)
                if relation is Relation.COUPLED
            ),
            num_told=sum(relation in _COMPARED for relation in relations),
            min_steps=self.min_steps,
            min_share=self.min_share,
        )

    def _judge_small(self, modules: CoupledModules) -> Judgement:
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{modules.run}: {_module_words(modules)} over the {modules.num_items:g} "
            f"items of a rank's own batch, fewer than {self.min_items}: noisier than on one device "
            "with the items of all ranks.",
            remedy="Convert them with torch.nn.SyncBatchNorm.convert_sync_batchnorm, use another "
            "normalisation, or give each rank a larger batch.",
        )


def _judge_coupled(consistency: Consistency) -> Judgement:
    first = consistency.found[0]
    of = f"{percent(first.in_reference.residual)} of it is left over; cosine {first.cosine:.2f}"
    of += " with what was used"
    tensor = ""
    if first.off and first.in_reference.residual <= fits(first):
        worst = first.off[-1]
        tensor = f" of tensor {worst.name!r}"
        of = f"{percent(worst.reference.residual)} of it is left over"
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{where_words(first)}: one device's gradient{tensor} on the items of all ranks "
        f"is no weighted sum of the gradients of the ranks ({of}), {consistency.words}: an "
        "operation couples the items of a batch (a contrastive loss, for one), or the ranks run "
        "different code.",
        remedy="If one device's gradient is wanted, gather what is compared from all ranks, with "
        "gradients (torch.distributed.nn.functional.all_gather). Otherwise nothing is to be done.",
    )


def _modules_of(run: Run) -> list[CoupledModules]:
    modules = {
        module: None
        for rank in run.ranks
        for record in rank.of(CouplingRecord)
        for module in record.modules
    }
    if not modules:
        return []
    return [CoupledModules(run=run.name, modules=tuple(modules), num_items=_num_items(run))]


def _num_items(run: Run) -> float | None:
    medians: list[float] = []
    for rank in run.ranks:
        table = rank.observed_steps
        drawn = table[(table["num_samples"] > 0) & (table["num_batches"] > 0)]
        if len(drawn):
            medians.append(float(np.median(drawn["num_samples"] / drawn["num_batches"])))
    return min(medians, default=None)


def _module_words(modules: CoupledModules) -> str:
    names = listed([f"{name} ({kind})" for name, kind in modules.modules], most=2)
    return f"{names} normalise{'s' if len(modules.modules) == 1 else ''}"
