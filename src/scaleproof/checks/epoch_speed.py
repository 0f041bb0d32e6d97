"""What the checks of speed share: both arms' epoch times, and what to do when they can't tell."""

from typing import final

import msgspec
import numpy as np

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.wording import counted
from scaleproof.evidence.study import Run, Study
from scaleproof.stats.speed import (
    NUM_WARM_UP_EPOCHS,
    SpeedUp,
    measure_speed_up,
    repetitions_to_decide_speed,
)


@final
class EpochSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """``speed`` is None when no seed has an epoch after the warm-up in both arms.

    ``candidate_step_time_s`` is the median over those epochs of its runs.
    """

    num_devices: int
    num_baseline_devices: int
    speed: SpeedUp | None
    candidate_step_time_s: float | None

    @property
    def devices(self) -> str:
        return counted(self.num_devices, "device")

    @property
    def baseline_devices(self) -> str:
        return "one" if self.num_baseline_devices == 1 else str(self.num_baseline_devices)


def measure_epoch_speed(study: Study, *, confidence: float) -> EpochSpeed:
    """Speed-up over the seeds in which both arms have an epoch after the warm-up."""
    assert study.baseline is not None  # a need of every check that calls this
    pairs = [
        pair
        for pair in study.pairs
        if min(len(pair.baseline.epoch_times_s), len(pair.candidate.epoch_times_s))
        > NUM_WARM_UP_EPOCHS
    ]
    num_devices, num_baseline_devices = study.candidate.num_devices, study.baseline.num_devices
    speed = None
    if pairs:
        speed = measure_speed_up(
            [pair.baseline.epoch_times_s for pair in pairs],
            [pair.candidate.epoch_times_s for pair in pairs],
            num_devices=num_devices / num_baseline_devices,
            confidence=confidence,
        )
    return EpochSpeed(
        num_devices=num_devices,
        num_baseline_devices=num_baseline_devices,
        speed=speed,
        candidate_step_time_s=_step_time_s([pair.candidate for pair in pairs]),
    )


def judge_missing_speed() -> Judgement:
    """The judgement when there is no pair of epochs to compare."""
    return Judgement(
        outcome=Outcome.UNDECIDED,
        sentence=(
            "No seed has two epochs in both arms, and the first one is warm-up: there is no speed "
            "to compare."
        ),
        remedy="Train both arms for at least two epochs; better five.",
    )


def interval_words(low: float, high: float) -> str:
    """Bounds in per cent: ``37.9 to 42.4 %``; one that is not finite is "unbounded"."""
    ends = [
        f"{end:.1f}".replace("-", "−") if np.isfinite(end) else "unbounded" for end in (low, high)
    ]
    return f"{ends[0]} to {ends[1]}{' %' if np.isfinite(high) else ''}"


def spread_words(speed: SpeedUp) -> str:
    """What the interval rests on, in words."""
    if speed.varies_over == "runs":
        return f"over {speed.num_runs} seeds"
    pairs = counted(speed.num_epoch_pairs, "pair")
    return (
        f"over {pairs} of epochs in {counted(speed.num_runs, 'seed')}, which leaves out most of "
        "the variation from run to run"
    )


def more_repetitions(speed: SpeedUp, wanted: float) -> str:
    """What to do about an interval that is too wide."""
    needed = repetitions_to_decide_speed(speed, wanted)
    if needed is None and speed.degrees_of_freedom > 0:
        return (
            "More of the same would not decide: the speed lies too close to the limit. Keep other "
            "work off the machine, or choose another limit."
        )
    if speed.varies_over == "runs":
        num_seeds = max(needed or 0, speed.num_runs + 1)
        return f"About {num_seeds} seeds per arm would decide (--seeds {num_seeds})."
    num_pairs = max(needed or 3, speed.num_epoch_pairs + 1)
    missing = num_pairs - speed.num_epoch_pairs
    return (
        f"About {counted(missing, 'more epoch')} in all would decide; three seeds or more would "
        "also show how much runs differ."
    )


def speed_remedy(measurement: EpochSpeed) -> str:
    """Where to look first when the devices are not worth it."""
    step_time_s = measurement.candidate_step_time_s
    hints = (
        "In this order: feed both arms from memory, to see whether input is the limit; give each "
        "device more work per step (a larger batch per device), so that synchronising is a smaller "
        "part of it; see that no device waits for a slower one or shares its cores or memory "
        "bandwidth; try fewer devices."
    )
    if step_time_s is None:
        return hints
    return f"A step takes {1000 * step_time_s:.3g} ms with {measurement.devices}. {hints}"


def _step_time_s(runs: list[Run]) -> float | None:
    first = NUM_WARM_UP_EPOCHS
    times = [
        time_s / epoch.num_steps
        for run in runs
        for time_s, epoch in zip(
            run.epoch_times_s[first:], run.ranks[0].epochs[first:], strict=False
        )
        if epoch.num_steps > 0
    ]
    return float(np.median(times)) if times else None
