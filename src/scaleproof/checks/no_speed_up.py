"""The check ``no-speed-up``."""

from dataclasses import dataclass
from typing import ClassVar, final

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.epoch_speed import (
    EpochSpeed,
    interval_words,
    judge_missing_speed,
    measure_epoch_speed,
    more_repetitions,
    speed_remedy,
    spread_words,
)
from scaleproof.checks.needs import ALL_EPOCHS, BASELINE, OWN_DEVICES, PAIRED_RUN, TWO_EPOCHS
from scaleproof.checks.wording import times
from scaleproof.errors import UsageError
from scaleproof.evidence.study import Study
from scaleproof.stats.speed import SpeedUp, p_value_at_least


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoSpeedUp(AbstractCheck[EpochSpeed]):
    """Training on N devices is not faster than on one, or not by as much as wanted.

    What it looks for
        A speed-up - the baseline's epoch time over the candidate's - below `min_speed_up`.

    Why it matters
        Faster training is what the devices are for. Synchronising, feeding and waiting for the
        slowest can cost more than they gain, and on a small model they often do.

    How it decides
        The arms take turns, so the epochs with the same number ran next to each other and met the
        same machine: each pair gives one ratio. The first epoch of every run is warm-up and is
        left out; evaluation is outside the clock; an epoch takes as long as its slowest rank. The
        ratios are averaged on the log scale with a t-interval at `confidence`: over seeds from
        three seeds on, over pairs of epochs below that, which leaves out most of the variation
        from run to run. It passes when the interval lies at or above `min_speed_up` and the
        speed-up is above 1, fails when the interval lies below, and is undecided otherwise.

    What it can't see
        Whether the faster training is as good (accuracy-drop and others). Time to a wanted
        accuracy, when N devices need more epochs. A slow baseline: an input pipeline that starves
        one device makes N look better than they are.

    How to fix it
        Feed both arms from memory to see whether input is the limit. Give each device more work
        per step. See that every rank has cores and memory bandwidth of its own and that none is
        waited for. If the step is too short to hide an all-reduce, fewer devices are faster.

    References
        Kalibera and Jones 2013, Rigorous benchmarking in reasonable time, ISMM. Fleming and
        Wallace 1986, CACM 29(3) (geometric means of ratios). Li et al. 2020, PyTorch Distributed,
        VLDB 13 (overlap of communication and backward).
    """

    name: ClassVar[str] = "no-speed-up"
    question: ClassVar[Question] = Question.FASTER
    family: ClassVar[Family] = Family.SPEED
    needs: ClassVar[tuple[Need, ...]] = (
        BASELINE,
        OWN_DEVICES,
        PAIRED_RUN,
        TWO_EPOCHS,
        ALL_EPOCHS,
    )

    min_speed_up: float = 1.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.min_speed_up >= 1:
            raise UsageError(
                f"min_speed_up is {self.min_speed_up}, expected 1 or more: below that, N devices "
                "are slower than one. Ask for the speed-up that makes the devices worth it."
            )

    def measure(self, study: Study) -> EpochSpeed:
        return measure_epoch_speed(study, confidence=self.confidence)

    def judge(self, measurement: EpochSpeed) -> Judgement:
        speed = measurement.speed
        if speed is None:
            return judge_missing_speed()
        sentence = self._sentence(measurement, speed)
        if speed.speed_up_low >= self.min_speed_up and speed.speed_up > 1:
            return Judgement(outcome=Outcome.PASS, sentence=sentence)
        if speed.speed_up_high < self.min_speed_up:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=sentence,
                remedy=speed_remedy(measurement),
                p_value=p_value_at_least(speed, self.min_speed_up),
            )
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=sentence,
            remedy=more_repetitions(speed, self.min_speed_up),
        )

    def _sentence(self, measurement: EpochSpeed, speed: SpeedUp) -> str:
        low, high = 100 * speed.time_reduction_low, 100 * speed.time_reduction_high
        if speed.speed_up >= 1:
            change = f"{100 * speed.time_reduction:.1f} % less time"
        else:
            change = f"{-100 * speed.time_reduction:.1f} % more time"
            low, high = -high, -low
        wanted = (
            "wanted more than 1×"
            if self.min_speed_up == 1
            else f"wanted at least {times(self.min_speed_up)}"
        )
        return (
            f"{measurement.devices} take {change} per epoch than {measurement.baseline_devices} "
            f"({100 * speed.confidence:.3g} % interval {interval_words(low, high)}, "
            f"{spread_words(speed)}; {times(speed.speed_up)}, {wanted})."
        )
