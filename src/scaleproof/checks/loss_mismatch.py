"""The check ``loss-mismatch``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import BASELINE, PAIRED_RUN, PREDICTIONS
from scaleproof.checks.paired_quality import (
    DIVERGED_REMEDY,
    PairedEvidence,
    judge_comparability,
    judge_single_seed,
    more_seeds,
    name_seeds,
    paired_evidence,
)
from scaleproof.checks.wording import signed
from scaleproof.evidence.study import Study
from scaleproof.stats.noninferiority import measure_noninferiority, paired_item_standard_error
from scaleproof.stats.paired import PairedEvaluations, align_with, pair_final_evaluations

SAMPLE_LOSSES = Need(
    text="the loss of each evaluation sample, which scripts don't report",
    kind="structure",
    is_met=lambda study: not study.is_script,
)


@final
class LossDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Mean evaluation loss, one entry per compared seed; None where it is not finite.

    ``initial_loss`` is the baseline's before training; empty when it was not evaluated then.
    ``item_standard_error`` is the error of the mean excess that more seeds can't shrink.
    """

    evidence: PairedEvidence
    initial_loss: tuple[float | None, ...]
    baseline_loss: tuple[float | None, ...]
    candidate_loss: tuple[float | None, ...]
    item_standard_error: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LossMismatch(AbstractCheck[LossDifference]):
    """The loss of the model trained on N devices does not come down as far as on one.

    What it looks for
        A final evaluation loss above the baseline's by more than `max_excess` of what training
        brought the baseline's loss down.

    Why it matters
        The loss sees what accuracy does not: a model can name the same classes and be far less
        sure of them, and a fault often shows in the loss epochs before it costs a class.

    How it decides
        Per seed, `excess = (L_candidate - L_baseline) / (L_initial - L_baseline)` with the mean
        losses of the final evaluation, each sample once, and the baseline's evaluation before
        training. Relative to the fall, it means the same for every loss and task. The mean over
        seeds gets a t-interval, widened by the part of the sampling error that all seeds share;
        each bound holds `confidence`. It passes when the whole interval lies below
        `max_excess`, fails when it lies above, and is undecided otherwise. With one seed it is
        undecided, unless `allow_single_seed`; then only the sampling error counts. A candidate's
        loss that is not finite, where the baseline's is, fails. If the baseline's loss did not
        fall, nothing was learned that could be lost: undecided.

    What it can't see
        Why the losses differ; differences of the training loss, whose dropout and augmentation
        differ between arms by design; a lower loss bought by over-confidence in one class.

    How to fix it
        As for accuracy-drop: the learning rate for the global batch, its warm-up, and the number
        of samples trained on. A loss that is off by a constant factor points to a mean of per-rank
        means over unequal shares.

    References
        Schuirmann 1987, two one-sided tests, J. Pharmacokin. Biopharm. 15. Cochran 1977, Sampling
        Techniques, chapter 6 (ratio estimates). Goyal et al. 2017, arXiv 1706.02677.
    """

    name: ClassVar[str] = "loss-mismatch"
    question: ClassVar[Question] = Question.AS_GOOD
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (BASELINE, PAIRED_RUN, PREDICTIONS, SAMPLE_LOSSES)

    max_excess: float = 0.05
    confidence: float = 0.95
    allow_single_seed: bool = False

    def measure(self, study: Study) -> LossDifference:
        samples = pair_final_evaluations(study.pairs)
        evidence = paired_evidence(study, samples)
        initial = _initial_losses(study, samples)
        baseline = samples.baseline["loss"].astype(np.float64)
        candidate = samples.candidate["loss"].astype(np.float64)
        return LossDifference(
            evidence=evidence,
            initial_loss=() if initial is None else _means(initial),
            baseline_loss=_means(baseline),
            candidate_loss=_means(candidate),
            item_standard_error=_item_standard_error(initial, baseline, candidate),
        )

    def judge(self, measurement: LossDifference) -> Judgement:
        evidence = measurement.evidence
        refusal = judge_comparability(evidence, what="loss")
        refusal = refusal or _judge_finite(measurement) or _judge_fall(measurement)
        if refusal is not None:
            return refusal
        initial = np.array(measurement.initial_loss, dtype=np.float64)
        baseline = np.array(measurement.baseline_loss, dtype=np.float64)
        candidate = np.array(measurement.candidate_loss, dtype=np.float64)
        excess = (candidate - baseline) / (initial - baseline)
        measured = (
            f"The final loss with {evidence.devices} is {candidate.mean():.4g}, with "
            f"{evidence.baseline_devices} {baseline.mean():.4g}"
        )
        if not self.allow_single_seed:
            refusal = judge_single_seed(evidence, measured=measured, what="the loss is")
            if refusal is not None:
                return refusal
        result = measure_noninferiority(
            -excess,
            margin=self.max_excess,
            confidence=self.confidence,
            item_standard_error=measurement.item_standard_error,
        )
        sentence = (
            f"{measured}: {signed(-100 * result.mean_difference, 2)} % of its fall in training "
            f"({100 * (2 * self.confidence - 1):.3g} % interval {signed(-100 * result.high, 2)} to "
            f"{signed(-100 * result.low, 2)} %, {evidence.basis}; allowed "
            f"{signed(100 * self.max_excess, 2)} %)."
        )
        if result.low >= -self.max_excess:
            return Judgement(outcome=Outcome.PASS, sentence=sentence)
        if result.high < -self.max_excess:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=sentence,
                remedy=(
                    "Check how the learning rate was scaled to the global batch and its warm-up, "
                    "and that both arms trained on the same number of samples."
                ),
                p_value=result.p_value_worse,
            )
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=sentence,
            remedy=more_seeds(result.seeds_to_decide, evidence),
        )


def _initial_losses(study: Study, samples: PairedEvaluations) -> NDArray[np.float64] | None:
    """The baseline's losses before training, shape ``(num_seeds, num_samples)``."""
    runs = [pair.baseline for pair in study.pairs if pair.seed in samples.seeds]
    if any(0 not in run.evaluated_epochs for run in runs):
        return None
    rows = align_with(samples, [run.evaluation(0) for run in runs]) if runs else None
    return None if rows is None else rows["loss"].astype(np.float64)


def _means(losses: NDArray[np.float64]) -> tuple[float | None, ...]:
    """Mean per seed; None where a loss is not finite. ``losses``: ``(num_seeds, num_samples)``."""
    return tuple(
        float(row.mean()) if row.size and np.isfinite(row).all() else None for row in losses
    )


def _item_standard_error(
    initial: NDArray[np.float64] | None,
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64],
) -> float:
    """Of the mean excess: a ratio of means, so each sample counts by its linear influence on it."""
    if initial is None or not baseline.size:
        return 0.0
    rise, fall = candidate - baseline, initial - baseline
    if not (np.isfinite(rise).all() and np.isfinite(fall).all()):
        return 0.0
    mean_fall = fall.mean(axis=1, keepdims=True)
    if (mean_fall <= 0).any():
        return 0.0
    excess = rise.mean(axis=1, keepdims=True) / mean_fall
    return paired_item_standard_error((rise - excess * fall) / mean_fall)


def _judge_finite(measurement: LossDifference) -> Judgement | None:
    evidence = measurement.evidence
    if None in measurement.baseline_loss:
        broken = [
            seed
            for seed, loss in zip(evidence.seeds, measurement.baseline_loss, strict=True)
            if loss is None
        ]
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=(
                f"The final loss of the baseline is not finite in {name_seeds(broken)}: "
                "there is nothing to compare with."
            ),
            remedy="Make training on one device stable first: lower its learning rate.",
        )
    broken = [
        seed
        for seed, loss in zip(evidence.seeds, measurement.candidate_loss, strict=True)
        if loss is None
    ]
    if not broken:
        return None
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=(
            f"The final loss with {evidence.devices} is not finite in {name_seeds(broken)}; "
            f"with {evidence.baseline_devices} it is."
        ),
        remedy=DIVERGED_REMEDY,
    )


def _judge_fall(measurement: LossDifference) -> Judgement | None:
    evidence = measurement.evidence
    if not measurement.initial_loss or None in measurement.initial_loss:
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=(
                "The baseline has no finite loss before training on all samples, so what training "
                "brought it down is unknown."
            ),
            remedy="Evaluate once before the first step, on the whole evaluation set.",
        )
    for seed, initial, final_loss in zip(
        evidence.seeds, measurement.initial_loss, measurement.baseline_loss, strict=True
    ):
        assert initial is not None and final_loss is not None  # refused above
        if final_loss >= initial:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=(
                    f"Training did not bring the baseline's loss down in seed {seed}: "
                    f"{initial:.4g} before, {final_loss:.4g} after."
                ),
                remedy="Make training on one device learn first; then compare.",
            )
    return None
