"""Epoch times of a study: every raw value, and what the arms' times come to."""

from typing import final

import msgspec
import numpy as np

from scaleproof.checks.epoch_speed import measure_epoch_speed
from scaleproof.evidence.study import Run, Study
from scaleproof.report.compared import compared_runs
from scaleproof.stats.speed import NUM_WARM_UP_EPOCHS, SpeedUp


@final
class EpochTime(msgspec.Struct, frozen=True, kw_only=True):
    """One raw value; ``epoch`` counts from 0."""

    arm: str
    seed: int
    epoch: int
    time_s: float
    is_warm_up: bool


@final
class ArmTime(msgspec.Struct, frozen=True, kw_only=True):
    """Median over the epochs after warm-up of the arm's compared runs; None without any."""

    arm: str
    num_epochs: int
    median_epoch_time_s: float | None


@final
class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """``speed_up`` is None when the arms' times can't be compared; ``no_speed_up_because`` says
    why."""

    speed_up: SpeedUp | None
    no_speed_up_because: str
    arms: tuple[ArmTime, ...]
    epoch_times: tuple[EpochTime, ...]


def measure_timing(study: Study, confidence: float) -> Timing:
    because = _why_incomparable(study)
    speed = None if because else measure_epoch_speed(study, confidence=confidence).speed
    if not because and speed is None:
        because = "Both arms need two epochs or more: the first one is warm-up."
    return Timing(
        speed_up=speed,
        no_speed_up_because=because,
        arms=tuple(_arm_time(arm.name, compared_runs(study, arm)) for arm in study.request.arms),
        epoch_times=tuple(
            EpochTime(
                arm=run.arm.name,
                seed=run.seed,
                epoch=epoch,
                time_s=float(time_s),
                is_warm_up=epoch < NUM_WARM_UP_EPOCHS,
            )
            for run in study.runs.values()
            for epoch, time_s in enumerate(run.epoch_times_s)
        ),
    )


def _why_incomparable(study: Study) -> str:
    if study.baseline is None:
        return "There is no baseline arm to be faster than."
    if study.request.share_device:
        return "Ranks shared a device (--share-device), so their times say nothing about speed."
    if not study.pairs:
        return "There is no seed for which both arms finished."
    return ""


def _arm_time(arm: str, runs: tuple[Run, ...]) -> ArmTime:
    times_s = np.concatenate(
        [np.zeros(0), *(run.epoch_times_s[NUM_WARM_UP_EPOCHS:] for run in runs)]
    )
    return ArmTime(
        arm=arm,
        num_epochs=len(times_s),
        median_epoch_time_s=float(np.median(times_s)) if len(times_s) else None,
    )
