from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.accuracy_below_floor import (
    AccuracyBelowFloor,
    AccuracyBelowFloorMeasurement,
    ArmAccuracy,
)
from scaleproof.checks.check import Judgement, Outcome
from studies import FakeArm, build_study, flip_share


def judge(*num_right: int, floor: float | None, num_samples: int = 1000) -> Judgement:
    arm = ArmAccuracy(arm="ddp-2", num_right=num_right, num_samples=(num_samples,) * len(num_right))
    measurement = AccuracyBelowFloorMeasurement(candidate=arm, baseline=None)
    return AccuracyBelowFloor(min_accuracy=floor).judge(measurement)


def wrong(share: float) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda seed, targets: flip_share(targets, share=share + 0.01 * seed, seed=seed)


def test_accuracy_clearly_above_the_floor_passes_and_mentions_the_baseline(tmp_path: Path) -> None:
    study = build_study(
        tmp_path,
        baseline=FakeArm(predictions=wrong(0.05)),
        candidate=FakeArm(num_ranks=2, predictions=wrong(0.1)),
    )
    check = AccuracyBelowFloor(min_accuracy=0.8)
    judgement = check.judge(check.measure(study))

    assert judgement.outcome is Outcome.PASS
    assert "89.0 % accuracy (3 seeds" in judgement.sentence
    assert "single-1 has 94.0 %" in judgement.sentence


def test_accuracy_clearly_below_the_floor_fails_and_says_who_has_it_too(tmp_path: Path) -> None:
    study = build_study(
        tmp_path,
        baseline=FakeArm(predictions=wrong(0.5)),
        candidate=FakeArm(num_ranks=2, predictions=wrong(0.5)),
    )
    check = AccuracyBelowFloor(min_accuracy=0.8)
    judgement = check.judge(check.measure(study))

    assert judgement.outcome is Outcome.FAIL
    assert "49.0 % accuracy" in judgement.sentence
    assert "so ddp-2 is not what caused it" in judgement.sentence
    assert judgement.p_value is not None
    assert judgement.p_value < 0.01


def test_without_a_floor_it_does_not_apply() -> None:
    assert judge(900, floor=None).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("num_right", [(810,), (800, 780, 830), (790, 801)])
def test_a_floor_inside_the_interval_is_undecided(num_right: tuple[int, ...]) -> None:
    judgement = judge(*num_right, floor=0.8)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "seeds" in judgement.remedy


@pytest.mark.parametrize("num_right", [100, 300, 700, 780, 801])
def test_exactly_at_the_floor_passes_whatever_the_rounding(num_right: int) -> None:
    assert judge(*[num_right] * 3, floor=num_right / 1000).outcome is Outcome.PASS
    assert judge(*[num_right] * 3, floor=num_right / 1000 + 1e-9).outcome is Outcome.FAIL


def test_one_seed_decides_with_the_interval_of_its_samples() -> None:
    assert judge(900, floor=0.8).outcome is Outcome.PASS
    failed = judge(700, floor=0.8)
    assert failed.outcome is Outcome.FAIL
    assert failed.p_value is not None
    assert failed.p_value < 1e-6


def test_no_evaluation_after_training_is_undecided(tmp_path: Path) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, num_epochs=0), has_baseline=False)
    check = AccuracyBelowFloor(min_accuracy=0.8)

    assert check.judge(check.measure(study)).outcome is Outcome.UNDECIDED


def test_false_alarms_stay_below_the_promised_rate() -> None:
    """Truly at the floor, three seeds: at most 5 % of studies may fail."""
    draws = np.random.default_rng(0).binomial(1000, 0.8, size=(400, 3))
    outcomes = [judge(*map(int, draw), floor=0.8).outcome for draw in draws]

    assert outcomes.count(Outcome.FAIL) <= 0.05 * 400
