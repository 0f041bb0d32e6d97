"""The check ``accuracy-below-floor``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.final_scores import CLASSES, final_scores
from scaleproof.checks.needs import CANDIDATE_RUN, EVALUATIONS, PREDICTIONS
from scaleproof.checks.wording import counted, percent
from scaleproof.evidence.study import Study
from scaleproof.stats.shares import (
    chance_mean_reaches,
    chance_of_at_most,
    mean_interval,
    wilson_interval,
)


@final
class ArmAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Right answers at the last evaluation, one entry per seed."""

    arm: str
    num_samples: tuple[int, ...]
    num_right: tuple[int, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        pairs = zip(self.num_right, self.num_samples, strict=True)
        return tuple(right / samples for right, samples in pairs)

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


@final
class AccuracyBelowFloorMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """An arm is None when none of its runs was evaluated after training."""

    candidate: ArmAccuracy | None
    baseline: ArmAccuracy | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyBelowFloor(AbstractCheck[AccuracyBelowFloorMeasurement]):
    """The N-device model is less accurate than its use demands.

    What it looks for
        A final accuracy of the N-device model that lies below `min_accuracy`.

    Why it matters
        Two arms can be equally good and both be too bad to use: one epoch too few, a learning rate
        too high, a data set cut short. Only a floor from outside the comparison sees that.

    How it decides
        With two or more seeds it takes the t-interval of their mean accuracy at `confidence`,
        with one seed the Wilson interval of its share of right answers. It passes when the
        interval lies at or above the floor, fails when it lies wholly below, and is undecided
        when the floor is inside. Without `min_accuracy` it does not apply.

    What it can't see
        With two or more seeds, the interval says how much trainings differ, not how much another
        evaluation set would; with one seed, the other way round. It sees no single class: see
        accuracy-paradox.

    How to fix it
        Train for more epochs, or lower the number of devices or the learning rate when only the
        N-device arm is below. When the interval straddles the floor, add seeds (with one seed:
        seeds or evaluation samples).

    References
        Wilson (1927), Probable inference, JASA 22. Student (1908), The probable error of a mean,
        Biometrika 6.
    """

    name: ClassVar[str] = "accuracy-below-floor"
    question: ClassVar[Question] = Question.FIT
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, PREDICTIONS, CLASSES, EVALUATIONS)

    min_accuracy: float | None = None
    confidence: float = 0.95

    def measure(self, study: Study) -> AccuracyBelowFloorMeasurement:
        arms = [study.candidate, *([study.baseline] if study.baseline is not None else [])]
        by_arm = {arm.name: final_scores(study.runs_of(arm)) for arm in arms}
        candidate, *baseline = [
            ArmAccuracy(
                arm=arm,
                num_samples=tuple(s.num_samples for s in scores),
                num_right=tuple(s.num_right for s in scores),
            )
            if scores
            else None
            for arm, scores in by_arm.items()
        ]
        return AccuracyBelowFloorMeasurement(
            candidate=candidate, baseline=baseline[0] if baseline else None
        )

    def judge(self, measurement: AccuracyBelowFloorMeasurement) -> Judgement:
        floor, arm, baseline = self.min_accuracy, measurement.candidate, measurement.baseline
        if floor is None:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No floor for the accuracy was asked for (min_accuracy).",
            )
        if arm is None:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No run of the candidate arm was evaluated after training.",
                remedy="Run the study again to its end.",
            )
        lower, upper = self._interval(arm)
        num_seeds = len(arm.num_right)
        facts = (
            f"{percent(arm.mean)} accuracy ({counted(num_seeds, 'seed')}, {percent(lower)} to "
            f"{percent(upper)})"
        )
        against = "" if baseline is None else f"; {baseline.arm} has {percent(baseline.mean)}"
        if lower >= floor:
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{facts} meets the floor of {percent(floor)}{against}.",
            )
        if upper < floor:
            is_shared = baseline is not None and baseline.mean < floor
            cause = f", so {arm.arm} is not what caused it" if is_shared else ""
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{facts} is below the floor of {percent(floor)}{against}{cause}.",
                remedy="Train for more epochs"
                + ("." if is_shared else ", or use fewer devices or another learning rate."),
                p_value=self._p_value(arm, floor),
            )
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=f"{facts}: the floor of {percent(floor)} lies inside the interval{against}.",
            remedy="Add seeds (--seeds), or evaluation samples."
            if num_seeds == 1
            else f"Add seeds: {num_seeds} are too few to tell.",
        )

    def _interval(self, arm: ArmAccuracy) -> tuple[float, float]:
        error = 1 - self.confidence
        if len(arm.num_right) == 1:
            return wilson_interval(arm.num_right[0], arm.num_samples[0], error=error)
        return mean_interval(arm.accuracies, error=error)

    def _p_value(self, arm: ArmAccuracy, floor: float) -> float:
        if len(arm.num_right) == 1:
            return chance_of_at_most(arm.num_right[0], arm.num_samples[0], floor)
        return chance_mean_reaches(floor, arm.accuracies)
