"""The check ``recall-drop``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.final_scores import CLASSES, class_names_of
from scaleproof.checks.needs import BASELINE, PAIRED_RUN, PREDICTIONS
from scaleproof.checks.paired_quality import (
    PairedEvidence,
    judge_comparability,
    judge_single_seed,
    more_seeds,
    paired_evidence,
)
from scaleproof.checks.repeats import independent_pairs
from scaleproof.checks.wording import listed, percent, signed
from scaleproof.evidence.study import Study
from scaleproof.stats.noninferiority import (
    NonInferiority,
    flip_standard_deviation,
    measure_noninferiority,
    paired_item_standard_error,
    pool_run_spread,
)
from scaleproof.stats.paired import pair_final_evaluations
from scaleproof.stats.shares import holm


@final
class ClassRecall(msgspec.Struct, frozen=True, kw_only=True):
    """Final recall (0 to 1) of one class in both arms, one entry per compared seed.

    ``item_standard_error`` is the error of the mean difference that more seeds can't shrink,
    ``flip_standard_deviation`` the spread over seeds if each sample flipped on its own.
    """

    name: str
    num_samples: int
    baseline_recall: tuple[float, ...]
    candidate_recall: tuple[float, ...]
    item_standard_error: float
    flip_standard_deviation: float

    @property
    def differences(self) -> NDArray[np.float64]:
        """Candidate minus baseline, shape ``(num_seeds,)``."""
        return np.array(self.candidate_recall) - np.array(self.baseline_recall)


@final
class RecallDifference(msgspec.Struct, frozen=True, kw_only=True):
    """``absent`` names the classes that no evaluation sample belongs to."""

    evidence: PairedEvidence
    classes: tuple[ClassRecall, ...]
    absent: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecallDrop(AbstractCheck[RecallDifference]):
    """The model trained on N devices finds less of some class than the one trained on one.

    What it looks for
        A class whose recall - the share of its evaluation samples that are recognised - is lower
        than the baseline's by more than `max_drop` (0.05 is five percentage points).

    Why it matters
        Accuracy is a mean over classes: a class can be lost while the mean hardly moves, and it is
        often the rare class that matters most.

    How it decides
        As accuracy-drop does, class by class: runs are paired by seed, and the mean difference
        gets an interval over seeds and samples whose bounds hold `confidence` each. It passes when
        the intervals of all classes lie above `-max_drop`. That needs no correction for many
        classes, since all must be shown. It fails when a class is shown to be worse after Holm's
        correction for the number of classes, and is undecided otherwise. A few seeds tell little
        about the spread of one class, so each gets the larger of its own spread over seeds and a
        pooled one: the flips of its own samples, times the factor by which all classes together
        vary more than their flips. And a difference in shares can't be surer than its own size
        allows (a score interval): equal recalls in all runs prove no more than their number of
        samples can. Classes without evaluation samples are listed, not judged.

    What it can't see
        Groups of samples within a class. In a class of few samples (below about 100), a drop that
        always hits the same few kinds of samples: simulated with 36 samples, 4 seeds and a true
        drop of exactly `max_drop`, it is passed in 4 of 100 studies if samples flip at random, and
        in 7 of 100 if the drop sits in a few hard samples. Precision: see the report.

    How to fix it
        Look at the confusion matrices to see which class takes its samples. If the class is rare,
        see that each rank gets its share (sample-coverage) and that a weighted loss is weighted
        over the global batch. Then as for accuracy-drop.

    References
        Tango 1998, Stat. Med. 17 (score interval of paired shares). Zou and Donner 2008, Stat.
        Med. 27. Holm 1979, Scand. J. Stat. 6. Berger 1982, Technometrics 24 (all must pass: no
        correction needed). Jordan 2023, arXiv 2304.01910 (flips of single samples).
    """

    name: ClassVar[str] = "recall-drop"
    question: ClassVar[Question] = Question.AS_GOOD
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (BASELINE, PAIRED_RUN, PREDICTIONS, CLASSES)

    max_drop: float = 0.05
    confidence: float = 0.95
    allow_single_seed: bool = False

    def measure(self, study: Study) -> RecallDifference:
        samples = pair_final_evaluations(independent_pairs(study))
        evidence = paired_evidence(study, samples)
        if not evidence.seeds or not evidence.num_samples:
            return RecallDifference(evidence=evidence, classes=(), absent=())
        class_names = class_names_of(
            [run for pair in study.pairs for run in (pair.baseline, pair.candidate)]
        )
        targets = samples.baseline["target"][0]
        baseline = samples.baseline["prediction"] == targets
        candidate = samples.candidate["prediction"] == targets
        return RecallDifference(
            evidence=evidence,
            classes=tuple(
                _measure_class(name, baseline[:, targets == label], candidate[:, targets == label])
                for label, name in enumerate(class_names)
                if label in targets
            ),
            absent=tuple(name for label, name in enumerate(class_names) if label not in targets),
        )

    def judge(self, measurement: RecallDifference) -> Judgement:
        evidence, classes = measurement.evidence, measurement.classes
        refusal = judge_comparability(evidence, what="recall")
        if refusal is not None:
            return refusal
        results = self._results(measurement)
        worst = min(range(len(classes)), key=lambda index: results[index].low)
        if not self.allow_single_seed:
            measured = _recalls(classes[worst], evidence)
            refusal = judge_single_seed(evidence, measured=measured, what="recall is")
            if refusal is not None:
                return refusal
        absent = (
            f" Not in the evaluation set, so not judged: {listed(measurement.absent)}."
            if measurement.absent
            else ""
        )
        p_values = holm([result.p_value_worse for result in results])
        lost = [index for index, p in enumerate(p_values) if p <= 1 - self.confidence]
        if lost:
            guilty = min(lost, key=lambda index: results[index].mean_difference)
            others = [classes[index].name for index in lost if index != guilty]
            also = f" Also shown to be worse: {listed(others)}." if others else ""
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=self._sentence(classes[guilty], results[guilty], evidence) + also + absent,
                remedy=(
                    f"See in the confusion matrix which class takes the samples of "
                    f"{classes[guilty].name}; check that its training samples reach every rank "
                    "and that a weighted loss is weighted over the global batch."
                ),
                p_value=min(p_values),
            )
        unshown = [index for index, result in enumerate(results) if result.low < -self.max_drop]
        sentence = self._sentence(classes[worst], results[worst], evidence) + absent
        if not unshown:
            return Judgement(outcome=Outcome.PASS, sentence=sentence)
        names = listed([classes[index].name for index in unshown], most=5)
        num_seeds = [results[index].seeds_to_decide for index in unshown]
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=f"{len(unshown)} of {len(classes)} classes undecided: {names}. {sentence}",
            remedy=more_seeds(
                None if None in num_seeds else max(num for num in num_seeds if num is not None),
                evidence,
            ),
        )

    def _results(self, measurement: RecallDifference) -> list[NonInferiority]:
        """One per class, their spread over seeds pooled where there are two seeds or more."""
        classes, num_seeds = measurement.classes, len(measurement.evidence.seeds)
        spreads = [None] * len(classes)
        if num_seeds > 1:
            spreads = pool_run_spread(
                np.array([float(np.std(one.differences, ddof=1)) for one in classes]),
                np.array([one.flip_standard_deviation for one in classes]),
                num_seeds=num_seeds,
            )
        return [
            measure_noninferiority(
                one.differences,
                margin=self.max_drop,
                confidence=self.confidence,
                item_standard_error=one.item_standard_error,
                num_samples=one.num_samples,
                pooled=spread,
            )
            for one, spread in zip(classes, spreads, strict=True)
        ]

    def _sentence(
        self, worst: ClassRecall, result: NonInferiority, evidence: PairedEvidence
    ) -> str:
        return (
            f"{_recalls(worst, evidence)}: {signed(100 * result.mean_difference, 1)} points "
            f"({100 * (2 * self.confidence - 1):.3g} % interval {signed(100 * result.low, 1)} to "
            f"{signed(100 * result.high, 1)}, {evidence.basis}; "
            f"allowed {signed(-100 * self.max_drop, 1)}).{evidence.repeats.sentence}"
        )


def _recalls(one: ClassRecall, evidence: PairedEvidence) -> str:
    return (
        f"Recall of {one.name} ({one.num_samples:,} samples) with {evidence.devices} is "
        f"{percent(float(np.mean(one.candidate_recall)))}, with {evidence.baseline_devices} "
        f"{percent(float(np.mean(one.baseline_recall)))}"
    )


def _measure_class(
    name: str, baseline: NDArray[np.bool_], candidate: NDArray[np.bool_]
) -> ClassRecall:
    """``baseline`` and ``candidate``: recognised or not, shape ``(num_seeds, num_samples)``."""
    differences = candidate.astype(np.float64) - baseline
    return ClassRecall(
        name=name,
        num_samples=baseline.shape[1],
        baseline_recall=tuple(baseline.mean(axis=1).tolist()),
        candidate_recall=tuple(candidate.mean(axis=1).tolist()),
        item_standard_error=paired_item_standard_error(differences),
        flip_standard_deviation=flip_standard_deviation(differences),
    )
