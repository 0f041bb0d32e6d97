from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Outcome
from scaleproof.checks.epoch_speed import EpochSpeed
from scaleproof.checks.low_efficiency import LowEfficiency
from scaleproof.errors import UsageError
from scaleproof.stats.speed import measure_speed_up
from studies import FakeArm, build_study


def test_efficient_devices_pass(tmp_path: Path) -> None:
    study = build_study(tmp_path)
    judgement = LowEfficiency().judge(LowEfficiency().measure(study))
    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence.startswith("2 devices work at 90.8 % efficiency (95 % interval")
    assert judgement.sentence.endswith("1.82×, wanted at least 70 %).")


def test_wasted_devices_fail(tmp_path: Path) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=4, epoch_time_s=0.5))
    judgement = LowEfficiency().judge(LowEfficiency().measure(study))
    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith("4 devices work at 50.1 %")
    assert "feed both arms from memory" in judgement.remedy
    assert judgement.p_value is not None and judgement.p_value < 0.001


def test_it_is_relative_to_the_devices_of_the_baseline(tmp_path: Path) -> None:
    study = build_study(
        tmp_path, baseline=FakeArm(num_ranks=2), candidate=FakeArm(num_ranks=4, epoch_time_s=0.5)
    )
    measurement = LowEfficiency().measure(study)
    assert measurement.speed is not None
    assert measurement.speed.efficiency == pytest.approx(1, abs=0.02)


def test_too_few_seeds_are_undecided(tmp_path: Path) -> None:
    noisy = FakeArm(epoch_time_noise=0.2, num_epochs=3)
    study = build_study(
        tmp_path,
        baseline=noisy,
        candidate=noisy.with_(num_ranks=2, epoch_time_s=0.6),
    )
    judgement = LowEfficiency().judge(LowEfficiency().measure(study))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "seeds per arm would decide" in judgement.remedy


def test_exactly_at_the_threshold() -> None:
    times_s = [np.array([1.0, time_s]) for time_s in (1.9, 2.0, 2.1)]
    speed = measure_speed_up(times_s, [np.ones(2)] * 3, num_devices=2)
    measurement = EpochSpeed(
        num_devices=2, num_baseline_devices=1, speed=speed, candidate_step_time_s=None
    )
    low, high = speed.efficiency_low, speed.efficiency_high
    outcomes = [
        LowEfficiency(min_efficiency=limit).judge(measurement).outcome
        for limit in (low, np.nextafter(low, 9), high, np.nextafter(high, 9))
    ]
    assert outcomes == [Outcome.PASS, Outcome.UNDECIDED, Outcome.UNDECIDED, Outcome.FAIL]


def test_nothing_to_compare_is_undecided() -> None:
    measurement = EpochSpeed(
        num_devices=2, num_baseline_devices=1, speed=None, candidate_step_time_s=None
    )
    assert LowEfficiency().judge(measurement).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("wanted", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_an_impossible_efficiency(wanted: float) -> None:
    with pytest.raises(UsageError, match="positive share"):
        LowEfficiency(min_efficiency=wanted)
