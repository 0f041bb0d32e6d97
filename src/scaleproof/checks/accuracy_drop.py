"""The check ``accuracy-drop``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.final_scores import CLASSES
from scaleproof.checks.needs import BASELINE, PAIRED_RUN, PREDICTIONS
from scaleproof.checks.paired_quality import (
    PairedEvidence,
    judge_comparability,
    judge_single_seed,
    more_seeds,
    paired_evidence,
)
from scaleproof.checks.repeats import independent_pairs
from scaleproof.checks.wording import percent, signed
from scaleproof.evidence.study import Study
from scaleproof.stats.noninferiority import measure_noninferiority, paired_item_standard_error
from scaleproof.stats.paired import pair_final_evaluations


@final
class AccuracyDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Final accuracy (0 to 1) of both arms, one entry per compared seed.

    ``item_standard_error`` is the error of the mean difference that more seeds can't shrink.
    """

    evidence: PairedEvidence
    baseline_accuracy: tuple[float, ...]
    candidate_accuracy: tuple[float, ...]
    item_standard_error: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyDrop(AbstractCheck[AccuracyDifference]):
    """The model trained on N devices is less accurate than the one trained on one.

    What it looks for
        A final evaluation accuracy that is lower than the baseline's by more than `max_drop`
        (0.01 is one percentage point).

    Why it matters
        N devices see a larger batch, take fewer steps and split the data; each can cost accuracy
        without any error, and a faster training of a worse model is no gain. Two runs of the very
        same training differ too, so one run of each can't tell.

    How it decides
        Runs are paired by seed; each evaluation sample counts once, by its id. The mean difference
        gets an interval whose bounds hold `confidence` each: a t-interval over seeds, widened by
        the part of the sampling error that all seeds share, and never narrower than a difference
        of that size between shares allows. It passes when the whole interval lies above
        `-max_drop`, fails when the whole interval lies below it, and is undecided otherwise: "no
        significant difference" is never taken for "as good". With one seed it is undecided, unless
        `allow_single_seed`; then only the sampling error of the evaluation set counts, and the
        sentence says so. A candidate that diverged before an evaluation the baseline lived to see
        fails; one that diverged after it is judged as measured.

    What it can't see
        Why the accuracy differs (a larger batch, or a fault of the distribution); a loss of one
        class that another makes up for (recall-drop does); groups of samples that the evaluation
        set lacks; run-to-run variation when a single seed is allowed.

    How to fix it
        Check the learning rate: with Adam it grows with the square root of the global batch, with
        SGD linearly, and needs warm-up. Train for the same number of samples. Then train one
        device at the global batch: if that is as low, the batch is the reason, otherwise the
        distribution is.

    References
        Schuirmann 1987, two one-sided tests, J. Pharmacokin. Biopharm. 15. Bouthillier et al.
        2021, Accounting for variance in machine learning benchmarks, arXiv 2103.03098. Jordan
        2023, On the variance of neural network training, arXiv 2304.01910. Goyal et al. 2017,
        arXiv 1706.02677. Malladi et al. 2022, arXiv 2205.10287.
    """

    name: ClassVar[str] = "accuracy-drop"
    question: ClassVar[Question] = Question.AS_GOOD
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (BASELINE, PAIRED_RUN, PREDICTIONS, CLASSES)

    max_drop: float = 0.01
    confidence: float = 0.95
    allow_single_seed: bool = False

    def measure(self, study: Study) -> AccuracyDifference:
        samples = pair_final_evaluations(independent_pairs(study))
        baseline = samples.baseline["prediction"] == samples.baseline["target"]
        candidate = samples.candidate["prediction"] == samples.candidate["target"]
        is_comparable = baseline.size > 0
        item_standard_error = 0.0
        if is_comparable:
            differences = candidate.astype(np.float64) - baseline
            item_standard_error = paired_item_standard_error(differences)
        return AccuracyDifference(
            evidence=paired_evidence(study, samples),
            baseline_accuracy=tuple(baseline.mean(axis=1).tolist()) if is_comparable else (),
            candidate_accuracy=tuple(candidate.mean(axis=1).tolist()) if is_comparable else (),
            item_standard_error=item_standard_error,
        )

    def judge(self, measurement: AccuracyDifference) -> Judgement:
        evidence = measurement.evidence
        refusal = judge_comparability(evidence, what="accuracy")
        if refusal is not None:
            return refusal
        baseline = np.array(measurement.baseline_accuracy)
        candidate = np.array(measurement.candidate_accuracy)
        result = measure_noninferiority(
            candidate - baseline,
            margin=self.max_drop,
            confidence=self.confidence,
            item_standard_error=measurement.item_standard_error,
            num_samples=evidence.num_samples,
        )
        measured = (
            f"Accuracy with {evidence.devices} is {percent(candidate.mean(), 2)}, with "
            f"{evidence.baseline_devices} {percent(baseline.mean(), 2)}"
        )
        if not self.allow_single_seed:
            refusal = judge_single_seed(evidence, measured=measured, what="accuracy is")
            if refusal is not None:
                return refusal
        sentence = (
            f"{measured}: {signed(100 * result.mean_difference, 2)} points "
            f"({100 * (2 * self.confidence - 1):.3g} % interval {signed(100 * result.low, 2)} to "
            f"{signed(100 * result.high, 2)}, {evidence.basis}; "
            f"allowed {signed(-100 * self.max_drop, 2)}).{evidence.repeats.sentence}"
        )
        if result.low >= -self.max_drop:
            return Judgement(outcome=Outcome.PASS, sentence=sentence)
        if result.high < -self.max_drop:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=sentence,
                remedy=(
                    "Check how the learning rate was scaled to the global batch and its warm-up, "
                    "then train one device at the global batch: if it is as low, the batch size "
                    "is the reason, otherwise look at data and gradients."
                ),
                p_value=result.p_value_worse,
            )
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=sentence,
            remedy=more_seeds(result.seeds_to_decide, evidence),
        )
