"""The check ``batch-size-unscaled``."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import BASELINE, PAIRED_RUN, SCRIPT, STEPS, TRAINING_LOADER
from scaleproof.checks.wording import times
from scaleproof.evidence.observations import OptimizerRecord
from scaleproof.evidence.study import Pair, Run, Study


@final
class UpdateSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Samples per update, over all ranks, and the peak learning rate of one optimizer."""

    run: str
    kind: str
    """``SGD``, ``AdamW`` ...; empty when unknown."""
    where: str
    candidate_samples: float
    baseline_samples: float
    candidate_rate: float
    baseline_rate: float

    @property
    def batch_growth(self) -> float:
        return self.candidate_samples / self.baseline_samples

    @property
    def rate_growth(self) -> float:
        return self.candidate_rate / self.baseline_rate


@final
class BatchSizeUnscaledMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per seed and optimizer that both arms have."""

    updates: tuple[UpdateSizes, ...]
    unknown: tuple[str, ...]
    """Pairs of runs whose samples per update were not seen."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizeUnscaled(AbstractCheck[BatchSizeUnscaledMeasurement]):
    """N devices make N times larger batches, and the learning rate stayed as it was.

    What it looks for
        More samples per update than with the baseline, by `min_growth` or more, at the same peak
        learning rate.

    Why it matters
        With the batch of each device kept, N devices make N times fewer updates in an epoch. At
        the same learning rate the weights then move about N times less far, and the model ends
        less trained: the most frequent reason for a lower accuracy on more devices.

    How it decides
        Samples per update are all that all ranks took from training loaders, over the number of
        the optimizer's steps, so that accumulation counts. The peak rate is that of the first
        parameter group. It fails when the samples grew by `min_growth` or more and the rate
        changed by `max_rate_change` of itself or less. A rate that was scaled, by whatever rule,
        passes.

    What it can't see
        Whether the model suffers: the checks of quality say that, and where they find it as good,
        this is only a hint. Rates that the optimizer finds by itself (D-adaptation, Prodigy), and
        of groups after the first. More epochs instead of a larger rate.

    How to fix it
        Scale the peak learning rate with the global batch - linearly for SGD, by the square root
        for Adam and its kin - and warm it up over the first epochs; or divide the batch of each
        device by N. Then compare again.

    References
        Goyal et al. (2017), Accurate, large minibatch SGD, arXiv 1706.02677. Malladi et al. (2022),
        On the SDEs and scaling rules for adaptive gradient algorithms, arXiv 2205.10287.
        NVIDIA-NeMo/Speech#1227, Lightning-AI/pytorch-lightning#3706.
    """

    name: ClassVar[str] = "batch-size-unscaled"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.SCHEDULE
    needs: ClassVar[tuple[Need, ...]] = (BASELINE, SCRIPT, PAIRED_RUN, STEPS, TRAINING_LOADER)

    min_growth: float = 1.5
    max_rate_change: float = 0.05

    def measure(self, study: Study) -> BatchSizeUnscaledMeasurement:
        found = [(pair, tuple(_update_sizes(pair))) for pair in study.pairs]
        return BatchSizeUnscaledMeasurement(
            updates=tuple(sizes for _, updates in found for sizes in updates),
            unknown=tuple(
                f"{pair.baseline.name} and {pair.candidate.name}"
                for pair, updates in found
                if not updates
            ),
        )

    def judge(self, measurement: BatchSizeUnscaledMeasurement) -> Judgement:
        unscaled = [sizes for sizes in measurement.updates if self._is_unscaled(sizes)]
        if unscaled:
            return _judge_unscaled(unscaled[0])
        if not measurement.updates:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"How many samples {measurement.unknown[0]} took for each update is not "
                "known.",
                remedy="Feed the training of both arms from a DataLoader.",
            )
        most = max(measurement.updates, key=lambda sizes: sizes.batch_growth)
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"{_batches(most)}, and the peak learning rate {times(most.rate_growth)} "
            f"({most.baseline_rate:.4g} to {most.candidate_rate:.4g}).",
        )

    def _is_unscaled(self, sizes: UpdateSizes) -> bool:
        has_grown = sizes.batch_growth >= self.min_growth
        return has_grown and abs(sizes.rate_growth - 1) <= self.max_rate_change


def _batches(sizes: UpdateSizes) -> str:
    return (
        f"{sizes.run}: an update is made from {sizes.candidate_samples:.4g} samples, with the "
        f"baseline from {sizes.baseline_samples:.4g} ({times(sizes.batch_growth)})"
    )


def _judge_unscaled(sizes: UpdateSizes) -> Judgement:
    where = f" of the {sizes.kind or 'optimizer'}" + (f" at {sizes.where}" if sizes.where else "")
    linear = sizes.baseline_rate * sizes.batch_growth
    by_root = sizes.baseline_rate * sqrt(sizes.batch_growth)
    advice = (
        f"{linear:.4g} by linear scaling (usual for SGD) or {by_root:.4g} by the square root "
        "(usual for Adam)"
    )
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{_batches(sizes)}, at the same peak learning rate of "
        f"{sizes.candidate_rate:.4g}{where}.",
        remedy=f"Try a peak learning rate of {advice}, with warm-up; or divide the batch of each "
        f"device by {sizes.batch_growth:.3g}.",
    )


def _update_sizes(pair: Pair) -> Iterator[UpdateSizes]:
    baselines, candidates = _samples_per_update(pair.baseline), _samples_per_update(pair.candidate)
    records = pair.candidate.ranks[0].of(OptimizerRecord)
    for optimizer in sorted(baselines.keys() & candidates.keys()):
        (theirs, their_rate), (ours, our_rate) = baselines[optimizer], candidates[optimizer]
        record = next((r for r in records if r.optimizer == optimizer), None)
        yield UpdateSizes(
            run=pair.candidate.name,
            kind="" if record is None else record.kind,
            where="" if record is None else record.where,
            candidate_samples=ours,
            baseline_samples=theirs,
            candidate_rate=our_rate,
            baseline_rate=their_rate,
        )


def _samples_per_update(run: Run) -> dict[int, tuple[float, float]]:
    """By optimizer: samples per update over all ranks, and the peak rate. Empty when the samples
    of some steps are not known."""
    tables: list[NDArray[Any]] = [rank.observed_steps for rank in run.ranks]
    if any(len(table) == 0 or (table["num_samples"] < 0).any() for table in tables):
        return {}
    num_samples = sum(int(table["num_samples"].sum(dtype=np.int64)) for table in tables)
    found: dict[int, tuple[float, float]] = {}
    for optimizer in sorted(set(tables[0]["optimizer"].tolist())):
        steps = tables[0][tables[0]["optimizer"] == optimizer]
        peak = float(steps["learning_rate"].max())
        if num_samples > 0 and peak > 0:
            found[optimizer] = num_samples / len(steps), peak
    return found
