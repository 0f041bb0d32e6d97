from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from scaleproof.checks.accuracy_drop import AccuracyDifference, AccuracyDrop
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.paired_quality import PairedEvidence
from scaleproof.evidence.records import RankOutcome
from scaleproof.stats.noninferiority import measure_noninferiority, paired_item_standard_error
from studies import FakeArm, build_study, flip_share


def wrong(share: float, stream: int = 0) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda seed, targets: flip_share(targets, share=share, seed=100 * stream + seed)


def candidate(share: float) -> FakeArm:
    return FakeArm(num_ranks=2, predictions=wrong(share, stream=1))


def judge(check: AccuracyDrop, root: Path, arm: FakeArm, *, num_seeds: int) -> Judgement:
    study = build_study(root, candidate=arm, seeds=tuple(range(num_seeds)))
    return check.judge(check.measure(study))


def measured(differences: np.ndarray, num_samples: int, item_error: float) -> AccuracyDifference:
    return AccuracyDifference(
        evidence=PairedEvidence(
            num_devices=2,
            num_baseline_devices=1,
            seeds=tuple(range(len(differences))),
            num_samples=num_samples,
            num_unmatched=0,
            diverged_seeds=(),
            left_out_seeds=(),
        ),
        baseline_accuracy=(0.0,) * len(differences),
        candidate_accuracy=tuple(differences.tolist()),
        item_standard_error=item_error,
    )


def simulate(rng: np.random.Generator, *, drop: float, num_seeds: int) -> AccuracyDifference:
    """360 samples of unequal difficulty, about 95 % right, runs that vary, a true ``drop``."""
    difficulty = rng.normal(0, 1.5, 360)
    scale = np.sqrt(1 + 1.5**2 + 0.05**2)

    def right(share: float) -> np.ndarray:
        level = scale * ndtri(share) + rng.normal(0, 0.05, (num_seeds, 1))
        return level + difficulty + rng.normal(0, 1, (num_seeds, 360)) > 0

    differences = right(0.95 - drop).astype(float) - right(0.95)
    error = paired_item_standard_error(differences)
    return measured(differences.mean(axis=1), 360, error)


def test_as_accurate_passes(tmp_path: Path) -> None:
    judgement = judge(AccuracyDrop(max_drop=0.05), tmp_path, candidate(0.1), num_seeds=4)
    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence.startswith(
        "Accuracy with 2 devices is 90.00 %, with one 90.00 %: +0.00 points (90 % interval "
    )
    assert judgement.sentence.endswith("over 4 seeds; allowed −5.00).")


def test_less_accurate_fails(tmp_path: Path) -> None:
    judgement = judge(AccuracyDrop(), tmp_path, candidate(0.3), num_seeds=3)
    assert judgement.outcome is Outcome.FAIL
    assert "2 devices is 70.00 %, with one 90.00 %: −20.00 points" in judgement.sentence
    assert "train one device at the global batch" in judgement.remedy
    assert judgement.p_value is not None and judgement.p_value < 0.01


def test_not_significantly_different_is_not_as_good(tmp_path: Path) -> None:
    def unsteady(seed: int, targets: np.ndarray) -> np.ndarray:
        return flip_share(targets, share=0.1 + 0.03 * (seed - 1), seed=seed)

    arm = FakeArm(num_ranks=2, predictions=unsteady)
    judgement = judge(AccuracyDrop(), tmp_path, arm, num_seeds=3)
    assert judgement.outcome is Outcome.UNDECIDED
    assert "+0.00 points" in judgement.sentence
    assert "seeds per arm would decide" in judgement.remedy


def test_one_seed_can_not_show_it(tmp_path: Path) -> None:
    judgement = judge(AccuracyDrop(max_drop=0.05), tmp_path, candidate(0.1), num_seeds=1)
    assert judgement.outcome is Outcome.UNDECIDED
    assert "one seed per arm can't show whether accuracy is as good" in judgement.sentence
    assert "--seeds 3" in judgement.remedy


def test_one_seed_decides_on_sampling_error_only_when_allowed(tmp_path: Path) -> None:
    check = AccuracyDrop(max_drop=0.06, allow_single_seed=True)
    good = judge(check, tmp_path / "good", candidate(0.1), num_seeds=1)
    assert good.outcome is Outcome.PASS
    assert "from 1 seed, without the variation from run to run" in good.sentence
    bad = judge(check, tmp_path / "bad", candidate(0.4), num_seeds=1)
    assert bad.outcome is Outcome.FAIL
    unclear = judge(check, tmp_path / "unclear", candidate(0.14), num_seeds=1)
    assert unclear.outcome is Outcome.UNDECIDED
    assert "at least 3 seeds" in unclear.remedy


def diverged(epochs_done: int) -> FakeArm:
    outcome = RankOutcome(status="diverged", epoch=epochs_done, step=7, phase="training")
    return candidate(0.1).with_(
        num_epochs=epochs_done, outcome=lambda seed, rank: outcome, manifest={"num_epochs": 5}
    )


def test_a_candidate_that_diverged_fails_even_with_one_seed(tmp_path: Path) -> None:
    judgement = judge(AccuracyDrop(max_drop=0.05), tmp_path, diverged(3), num_seeds=1)
    assert judgement.outcome is Outcome.FAIL
    assert "Training with 2 devices diverged in seed 0" in judgement.sentence


def test_a_candidate_that_diverged_after_its_evaluation_is_measured(tmp_path: Path) -> None:
    judgement = judge(AccuracyDrop(max_drop=0.05), tmp_path, diverged(5), num_seeds=4)
    assert judgement.outcome is Outcome.PASS


def test_arms_that_scored_other_samples_are_undecided(tmp_path: Path) -> None:
    fewer = FakeArm(
        num_ranks=2,
        targets=lambda: np.repeat(np.arange(3, dtype=np.int32), 100)[:290],
        manifest={"num_evaluation_samples": 300},
    )
    judgement = judge(AccuracyDrop(max_drop=0.05), tmp_path, fewer, num_seeds=3)
    assert judgement.outcome is Outcome.UNDECIDED
    assert "10 of 300 evaluation samples were not scored by every run" in judgement.sentence


def test_no_evaluation_after_training_is_undecided(tmp_path: Path) -> None:
    untrained = FakeArm(num_epochs=0, manifest={"num_epochs": 5})
    study = build_study(tmp_path, baseline=untrained, candidate=untrained.with_(num_ranks=2))
    judgement = AccuracyDrop().judge(AccuracyDrop().measure(study))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "in seeds 0, 1 and 2: no final accuracy to compare" in judgement.sentence


def test_exactly_at_the_threshold() -> None:
    differences = np.array([-0.02, -0.01, -0.03])
    measurement = measured(differences, 10_000, 0.001)
    result = measure_noninferiority(
        differences, margin=0.0, item_standard_error=0.001, num_samples=10_000
    )
    outcomes = [
        AccuracyDrop(max_drop=limit).judge(measurement).outcome
        for limit in (-result.low, np.nextafter(-result.low, 0), -result.high)
    ]
    assert outcomes == [Outcome.PASS, Outcome.UNDECIDED, Outcome.UNDECIDED]
    beyond = AccuracyDrop(max_drop=float(np.nextafter(-result.high, 0))).judge(measurement)
    assert beyond.outcome is Outcome.FAIL


def test_wrong_passes_at_the_margin_and_false_alarms_at_no_difference() -> None:
    rng = np.random.default_rng(0)
    num_studies = 500
    for num_seeds in (2, 4):
        at_margin = [
            AccuracyDrop().judge(simulate(rng, drop=0.01, num_seeds=num_seeds)).outcome
            for _ in range(num_studies)
        ]
        limit = 0.05 + 4 * np.sqrt(0.05 * 0.95 / num_studies)
        assert at_margin.count(Outcome.PASS) / num_studies < limit
        assert at_margin.count(Outcome.FAIL) / num_studies < limit
        equal = [
            AccuracyDrop().judge(simulate(rng, drop=0.0, num_seeds=num_seeds)).outcome
            for _ in range(num_studies)
        ]
        assert equal.count(Outcome.FAIL) / num_studies < 0.02
