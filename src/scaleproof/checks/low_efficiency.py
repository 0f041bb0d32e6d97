"""The check ``low-efficiency``."""

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
from scaleproof.checks.wording import percent, short_percent, times
from scaleproof.errors import UsageError
from scaleproof.evidence.study import Study
from scaleproof.stats.speed import p_value_at_least


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LowEfficiency(AbstractCheck[EpochSpeed]):
    """The devices are faster together, but a large part of each is wasted.

    What it looks for
        An efficiency - the speed-up over the number of devices - below `min_efficiency`.

    Why it matters
        Devices are paid for by the hour, not by their number: at 50 % efficiency a training costs
        twice as much as on one device. A low figure at 2 devices gets worse with more.

    How it decides
        From the same paired epochs and interval as no-speed-up, divided by the number of devices
        of the candidate for each one of the baseline. It passes when the interval lies at or
        above `min_efficiency`, fails when it lies below, and is undecided otherwise.

    What it can't see
        Where the rest goes: synchronising, waiting, input, or devices that slow one another down
        even without talking. Above 100 % is possible, and mostly says that the baseline is held
        up by something that N devices share out, such as input or caches.

    How to fix it
        As for no-speed-up: input first, then work per step, then slow or crowded devices.

    References
        Amdahl 1967, AFIPS 30. Kalibera and Jones 2013, ISMM. Goyal et al. 2017, arXiv 1706.02677
        (about 90 % from 8 to 256 GPUs).
    """

    name: ClassVar[str] = "low-efficiency"
    question: ClassVar[Question] = Question.FASTER
    family: ClassVar[Family] = Family.SPEED
    needs: ClassVar[tuple[Need, ...]] = (
        BASELINE,
        OWN_DEVICES,
        PAIRED_RUN,
        TWO_EPOCHS,
        ALL_EPOCHS,
    )

    min_efficiency: float = 0.7
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.min_efficiency < float("inf"):
            raise UsageError(
                f"min_efficiency is {self.min_efficiency}, expected a positive share such as 0.7."
            )

    def measure(self, study: Study) -> EpochSpeed:
        return measure_epoch_speed(study, confidence=self.confidence)

    def judge(self, measurement: EpochSpeed) -> Judgement:
        speed = measurement.speed
        if speed is None:
            return judge_missing_speed()
        sentence = (
            f"{measurement.devices} work at {percent(speed.efficiency)} efficiency "
            f"({100 * speed.confidence:.3g} % interval "
            f"{interval_words(100 * speed.efficiency_low, 100 * speed.efficiency_high)}, "
            f"{spread_words(speed)}; {times(speed.speed_up)}, "
            f"wanted at least {short_percent(self.min_efficiency)})."
        )
        if speed.efficiency_low >= self.min_efficiency:
            return Judgement(outcome=Outcome.PASS, sentence=sentence)
        wanted_speed_up = self.min_efficiency * speed.num_devices
        if speed.efficiency_high < self.min_efficiency:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=sentence,
                remedy=speed_remedy(measurement),
                p_value=p_value_at_least(speed, wanted_speed_up),
            )
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=sentence,
            remedy=more_repetitions(speed, wanted_speed_up),
        )
