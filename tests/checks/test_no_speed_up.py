from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Outcome
from scaleproof.checks.epoch_speed import EpochSpeed
from scaleproof.checks.no_speed_up import NoSpeedUp
from scaleproof.errors import UsageError
from scaleproof.evidence.records import RankOutcome
from scaleproof.stats.speed import measure_speed_up
from studies import FakeArm, build_study


def measured(baseline: np.ndarray, candidate: np.ndarray) -> EpochSpeed:
    """``baseline`` and ``candidate``: seconds after the warm-up, ``(num_seeds, num_epochs)``."""
    warm_up = np.ones((len(baseline), 1))
    speed = measure_speed_up(
        list(np.hstack([warm_up, baseline])), list(np.hstack([warm_up, candidate])), num_devices=2
    )
    return EpochSpeed(
        num_devices=2, num_baseline_devices=1, speed=speed, candidate_step_time_s=0.002
    )


def test_two_devices_that_are_faster_pass(tmp_path: Path) -> None:
    study = build_study(tmp_path)
    check = NoSpeedUp(min_speed_up=1.67)
    judgement = check.judge(check.measure(study))
    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence.startswith("2 devices take 45.0 % less time per epoch than one (95 %")
    assert judgement.sentence.endswith("over 3 seeds; 1.82×, wanted at least 1.67×).")


def test_two_devices_that_are_slower_fail(tmp_path: Path) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, epoch_time_s=1.25))
    judgement = NoSpeedUp().judge(NoSpeedUp().measure(study))
    assert judgement.outcome is Outcome.FAIL
    assert "2 devices take 25.1 % more time per epoch than one" in judgement.sentence
    assert "wanted more than 1×" in judgement.sentence
    assert judgement.remedy.startswith("A step takes 20")
    assert judgement.p_value is not None and judgement.p_value < 0.001


def test_too_few_epochs_are_undecided_and_say_how_many_would_do(tmp_path: Path) -> None:
    slow = FakeArm(num_epochs=4, epoch_time_noise=0.3)
    study = build_study(
        tmp_path,
        baseline=slow,
        candidate=slow.with_(num_ranks=2, epoch_time_s=0.9),
        seeds=(0,),
    )
    judgement = NoSpeedUp().judge(NoSpeedUp().measure(study))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "over 3 pairs of epochs in 1 seed" in judgement.sentence
    assert "more epoch" in judgement.remedy


def test_too_few_seeds_are_undecided_and_say_how_many_would_do() -> None:
    check = NoSpeedUp(min_speed_up=1.8)
    judgement = check.judge(measured(np.array([[1.6], [2.0], [2.4]]), np.ones((3, 1))))
    assert judgement.outcome is Outcome.UNDECIDED
    assert judgement.remedy == "About 22 seeds per arm would decide (--seeds 22)."


def test_a_single_pair_of_epochs_is_undecided() -> None:
    judgement = NoSpeedUp().judge(measured(np.array([[2.0]]), np.ones((1, 1))))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "unbounded to 100.0 %" in judgement.sentence
    assert judgement.remedy.startswith("About 2 more epochs")


def test_a_baseline_that_broke_off_is_undecided(tmp_path: Path) -> None:
    diverged = RankOutcome(status="diverged", epoch=1, step=0, phase="training")
    broken = FakeArm(num_epochs=1, outcome=lambda seed, rank: diverged, manifest={"num_epochs": 5})
    study = build_study(tmp_path, baseline=broken)
    judgement = NoSpeedUp().judge(NoSpeedUp().measure(study))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "No seed has two epochs in both arms" in judgement.sentence


def test_exactly_at_the_threshold() -> None:
    measurement = measured(np.array([[1.9], [2.0], [2.1]]), np.ones((3, 1)))
    assert measurement.speed is not None
    low, high = measurement.speed.speed_up_low, measurement.speed.speed_up_high
    outcome = {
        limit: NoSpeedUp(min_speed_up=limit).judge(measurement).outcome
        for limit in (low, np.nextafter(low, 9), high, np.nextafter(high, 9))
    }
    assert list(outcome.values()) == [
        Outcome.PASS,
        Outcome.UNDECIDED,
        Outcome.UNDECIDED,
        Outcome.FAIL,
    ]


def test_the_very_same_time_is_no_speed_up() -> None:
    judgement = NoSpeedUp().judge(measured(np.ones((3, 2)), np.ones((3, 2))))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "too close to the limit" in judgement.remedy


@pytest.mark.parametrize("wanted", [0.9, float("nan")])
def test_refuses_to_look_for_less_than_no_speed_up(wanted: float) -> None:
    with pytest.raises(UsageError, match="expected 1 or more"):
        NoSpeedUp(min_speed_up=wanted)


def test_false_alarms_and_wrong_passes_at_the_wanted_figure() -> None:
    rng = np.random.default_rng(0)
    num_studies, outcomes = 1000, []
    for _ in range(num_studies):
        runs = rng.normal(0, 0.05, (3, 1))
        baseline = np.exp(np.log(1.67) + runs + rng.normal(0, 0.02, (3, 5)))
        judgement = NoSpeedUp(min_speed_up=1.67).judge(measured(baseline, np.ones((3, 5))))
        outcomes.append(judgement.outcome)
    # 2.5 % each, with four standard errors
    limit = 0.025 + 4 * np.sqrt(0.025 * 0.975 / num_studies)
    assert outcomes.count(Outcome.FAIL) / num_studies < limit
    assert outcomes.count(Outcome.PASS) / num_studies < limit
