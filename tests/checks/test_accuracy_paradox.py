from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.accuracy_paradox import AccuracyParadox
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.errors import UsageError
from scaleproof.evidence.study import Study
from studies import FakeArm, build_study

FRAUD = ("legitimate", "fraud")


def fraud_arm(
    *,
    found: int,
    num_fraud: int = 100,
    num_false_alarms: int = 0,
    num: int = 10_000,
    ranks: int = 2,
) -> FakeArm:
    """The last ``num_fraud`` of ``num`` samples are fraud, of which ``found`` are found."""

    def predictions(_seed: int, targets: np.ndarray) -> np.ndarray:
        predicted = np.zeros_like(targets)
        predicted[num - num_fraud : num - num_fraud + found] = 1
        predicted[:num_false_alarms] = 1
        return predicted

    return FakeArm(
        num_ranks=ranks,
        num_epochs=2,
        targets=lambda: (np.arange(num) >= num - num_fraud).astype(np.int32),
        predictions=predictions,
    )


def judge(study: Study, **thresholds: object) -> Judgement:
    check = AccuracyParadox(**thresholds)  # type: ignore[arg-type]
    return check.judge(check.measure(study))


def judge_fraud(tmp_path: Path, *, found: int, baseline: int | None = None, **how: object):
    thresholds = {k: how.pop(k) for k in ("min_recall_by_class", "must_beat_guessing") if k in how}
    study = build_study(
        tmp_path,
        candidate=fraud_arm(found=found, **how),  # type: ignore[arg-type]
        baseline=None if baseline is None else fraud_arm(found=baseline, ranks=1),
        has_baseline=baseline is not None,
        class_names=FRAUD,
        seeds=(0,),
    )
    return judge(study, **thresholds)


def test_a_balanced_model_that_is_right_nine_times_of_ten_passes(tmp_path: Path) -> None:
    judgement = judge(build_study(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert "90.0 % accuracy against 33.3 % for always guessing 'cat'" in judgement.sentence


def test_a_class_that_is_hardly_found_fails_and_is_named(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=12, num_false_alarms=52, baseline=80)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "12 % recall on 'fraud', below its floor of 40 %, with 98.6 % accuracy: always guessing "
        "'legitimate' scores 99.0 %; single-1 has 80 %."
    )
    assert "'fraud'" in judgement.remedy


def test_a_fault_that_one_device_has_too_is_not_blamed_on_many(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=12, baseline=11)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.endswith("single-1 has 11 %, so ddp-2 is not what caused it.")


def test_better_than_guessing_but_a_missed_class_fails_with_its_p_value(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=25)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.p_value is not None
    assert 0 < judgement.p_value < 0.01


def test_a_class_missed_with_one_seed_only_fails_and_names_the_seed(tmp_path: Path) -> None:
    def predictions(seed: int, targets: np.ndarray) -> np.ndarray:
        return np.where(targets == 2, 0, targets).astype(np.int32) if seed == 1 else targets

    judgement = judge(
        build_study(tmp_path, candidate=FakeArm(num_ranks=2, predictions=predictions))
    )

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith("0 % recall on 'ship' with seed 1")


def test_an_accuracy_no_better_than_guessing_fails_with_every_class_found(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=90, num_false_alarms=190)

    assert judgement.outcome is Outcome.FAIL
    assert "98.0 % accuracy is no better than the 99.0 % of always guessing" in judgement.sentence
    assert judgement.p_value is None


def test_the_user_may_say_that_only_the_floors_count(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=90, num_false_alarms=190, must_beat_guessing=False)

    assert judgement.outcome is Outcome.PASS


def test_an_accuracy_just_above_guessing_is_undecided(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=60, num_false_alarms=55)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "not clearly more" in judgement.sentence


def test_too_few_samples_of_a_class_are_undecided(tmp_path: Path) -> None:
    judgement = judge_fraud(tmp_path, found=2, num_fraud=4)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "50 % recall on 'fraud' rests on 4 samples" in judgement.sentence
    assert "more samples of 'fraud'" in judgement.remedy


def test_a_class_without_samples_is_undecided(tmp_path: Path) -> None:
    study = build_study(tmp_path, class_names=("cat", "dog", "ship", "frog"))
    judgement = judge(study)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "'frog' has no evaluation sample" in judgement.sentence
    assert judge(study, min_recall_by_class={"frog": 0.0}).outcome is Outcome.PASS


def test_no_evaluation_after_training_is_undecided(tmp_path: Path) -> None:
    assert judge(
        build_study(tmp_path, candidate=FakeArm(num_ranks=2, num_epochs=0), has_baseline=False)
    ).outcome is (Outcome.UNDECIDED)


def test_samples_of_a_single_class_are_undecided(tmp_path: Path) -> None:
    arm = FakeArm(
        targets=lambda: np.zeros(300, np.int32), predictions=lambda _seed, targets: targets
    )
    judgement = judge(build_study(tmp_path, candidate=arm, has_baseline=False))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "of the class 'cat'" in judgement.sentence


def test_a_recall_exactly_at_its_floor_passes_when_enough_samples_back_it(tmp_path: Path) -> None:
    at = {"min_recall_by_class": {"fraud": 0.9}}
    common = {"num_fraud": 400, "num": 2000, **at}

    assert judge_fraud(tmp_path / "at", found=360, **common).outcome is Outcome.PASS
    assert judge_fraud(tmp_path / "below", found=359, **common).outcome is Outcome.UNDECIDED
    assert judge_fraud(tmp_path / "few", found=9, num_fraud=10, num=100, **at).outcome is (
        Outcome.UNDECIDED
    )


def test_an_unknown_class_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'fruad'.*'legitimate' and 'fraud'"):
        judge_fraud(tmp_path, found=80, min_recall_by_class={"fruad": 0.5})


def test_false_alarms_stay_below_the_promised_rate() -> None:
    """Three classes truly at the floor, one seed: at most 5 % of studies may fail."""
    from scaleproof.checks.accuracy_paradox import (
        AccuracyParadoxMeasurement,
        ArmScores,
        ClassRecall,
    )

    rng = np.random.default_rng(0)
    check = AccuracyParadox(min_recall=0.4)
    num_failed = 0
    for right in rng.binomial(200, 0.4, size=(400, 3)):
        classes = tuple(
            ClassRecall(name=str(i), num_samples=(200,), num_right=(int(k),), recall=int(k) / 200)
            for i, k in enumerate(right)
        )
        scores = ArmScores(
            arm="ddp-2",
            seeds=(0,),
            num_samples=(600,),
            num_right=(int(right.sum()),),
            accuracy=int(right.sum()) / 600,
            majority_class="0",
            no_information_rate=0.1,
            classes=classes,
        )
        measurement = AccuracyParadoxMeasurement(candidate=scores, baseline=None)
        num_failed += check.judge(measurement).outcome is Outcome.FAIL
    assert num_failed <= 0.05 * 400
