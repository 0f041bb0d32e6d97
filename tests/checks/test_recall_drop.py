import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.paired_quality import PairedEvidence
from scaleproof.checks.recall_drop import ClassRecall, RecallDifference, RecallDrop
from scaleproof.errors import EvidenceError
from scaleproof.evidence.records import RankOutcome
from scaleproof.stats.noninferiority import (
    flip_standard_deviation,
    measure_noninferiority,
    paired_item_standard_error,
    pool_run_spread,
)
from studies import FakeArm, build_study

Predictions = Callable[[int, np.ndarray], np.ndarray]


def missing(shares: tuple[float, ...], stream: int = 0) -> Predictions:
    """Predictions that miss the given share of each class, other samples in every seed."""

    def predict(seed: int, targets: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([seed, stream])
        predictions = targets.copy()
        for label, share in enumerate(shares):
            own = np.flatnonzero(targets == label)
            lost = rng.permutation(own)[: round(share * len(own))]
            predictions[lost] = (label + 1) % 3
        return predictions

    return predict


def judge(
    root: Path,
    candidate: Predictions,
    *,
    num_seeds: int = 3,
    check: RecallDrop | None = None,
    class_names: tuple[str, ...] = ("cat", "dog", "ship"),
) -> Judgement:
    study = build_study(
        root,
        baseline=FakeArm(predictions=missing((0.1, 0.1, 0.1))),
        candidate=FakeArm(num_ranks=2, predictions=candidate),
        seeds=tuple(range(num_seeds)),
        class_names=class_names,
    )
    check = check or RecallDrop()
    return check.judge(check.measure(study))


def measured(baseline: np.ndarray, candidate: np.ndarray) -> RecallDifference:
    """From what was recognised, shape ``(num_classes, num_seeds, num_samples_per_class)``."""
    num_classes, num_seeds, num_samples = baseline.shape
    differences = candidate.astype(float) - baseline
    return RecallDifference(
        evidence=PairedEvidence(
            num_devices=2,
            num_baseline_devices=1,
            seeds=tuple(range(num_seeds)),
            num_samples=num_classes * num_samples,
            num_unmatched=0,
            diverged_seeds=(),
            left_out_seeds=(),
        ),
        classes=tuple(
            ClassRecall(
                name=f"class-{label}",
                num_samples=num_samples,
                baseline_recall=tuple(baseline[label].mean(axis=1).tolist()),
                candidate_recall=tuple(candidate[label].mean(axis=1).tolist()),
                item_standard_error=paired_item_standard_error(differences[label]),
                flip_standard_deviation=flip_standard_deviation(differences[label]),
            )
            for label in range(num_classes)
        ),
        absent=(),
    )


def simulate(rng: np.random.Generator, *, recall: float, drop: float) -> RecallDifference:
    """The size of the digits: 10 classes, 36 samples each, 4 seeds; ``drop`` in class 3 only."""
    shares = np.full((10, 1, 1), recall)
    baseline = rng.random((10, 4, 36)) < shares
    shares[3] -= drop
    return measured(baseline, rng.random((10, 4, 36)) < shares)


def test_as_good_in_every_class_passes(tmp_path: Path) -> None:
    judgement = judge(tmp_path, missing((0.1, 0.1, 0.09), stream=1), num_seeds=6)
    assert judgement.outcome is Outcome.PASS
    assert "(100 samples) with 2 devices is 9" in judgement.sentence
    assert judgement.sentence.endswith("over 6 seeds; allowed −5.0).")


def test_a_lost_class_fails_by_name(tmp_path: Path) -> None:
    judgement = judge(tmp_path, missing((0.1, 0.6, 0.1), stream=1))
    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith(
        "Recall of dog (100 samples) with 2 devices is 40.0 %, with one 90.0 %: −50.0 points"
    )
    assert "Also" not in judgement.sentence
    assert "samples of dog" in judgement.remedy
    assert judgement.p_value is not None and judgement.p_value < 0.01


def test_all_lost_classes_are_named_the_worst_first(tmp_path: Path) -> None:
    judgement = judge(tmp_path, missing((0.5, 0.1, 0.8), stream=1))
    assert judgement.sentence.startswith("Recall of ship")
    assert "Also shown to be worse: cat." in judgement.sentence


def test_undecided_classes_are_named(tmp_path: Path) -> None:
    judgement = judge(tmp_path, missing((0.1, 0.14, 0.1), stream=1))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "of 3 classes undecided: " in judgement.sentence
    assert "dog" in judgement.sentence
    assert "seeds" in judgement.remedy


def test_one_seed_can_not_show_it(tmp_path: Path) -> None:
    judgement = judge(tmp_path, missing((0.1, 0.1, 0.1)), num_seeds=1)
    assert judgement.outcome is Outcome.UNDECIDED
    assert "one seed per arm can't show whether recall is as good" in judgement.sentence


@pytest.mark.parametrize(
    ("lost", "outcome"), [(0.1, Outcome.PASS), (0.2, Outcome.UNDECIDED), (0.6, Outcome.FAIL)]
)
def test_one_seed_decides_on_sampling_error_only_when_allowed(
    tmp_path: Path, lost: float, outcome: Outcome
) -> None:
    check = RecallDrop(max_drop=0.15, allow_single_seed=True)
    judgement = judge(tmp_path, missing((0.1, lost, 0.1)), num_seeds=1, check=check)
    assert judgement.outcome is outcome
    assert "from 1 seed, without the variation from run to run" in judgement.sentence


def test_a_class_without_samples_is_listed_not_judged(tmp_path: Path) -> None:
    names = ("cat", "dog", "ship", "zebra")
    judgement = judge(tmp_path, missing((0.1, 0.6, 0.1)), class_names=names)
    assert judgement.outcome is Outcome.FAIL
    assert "Not in the evaluation set, so not judged: zebra." in judgement.sentence


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="has the target 2, expected 0 to 1"):
        judge(tmp_path, missing((0.1, 0.1, 0.1)), class_names=("cat", "dog"))


def test_a_candidate_that_diverged_fails(tmp_path: Path) -> None:
    outcome = RankOutcome(status="diverged", epoch=2, step=7, phase="training")
    broken = FakeArm(
        num_ranks=2,
        num_epochs=2,
        outcome=lambda seed, rank: outcome,
        manifest={"num_epochs": 5},
    )
    study = build_study(tmp_path, candidate=broken)
    judgement = RecallDrop().judge(RecallDrop().measure(study))
    assert judgement.outcome is Outcome.FAIL
    assert "diverged" in judgement.sentence


def test_equal_recalls_in_all_runs_are_no_proof_for_a_small_class() -> None:
    few = np.ones((2, 3, 8), dtype=bool)
    assert RecallDrop().judge(measured(few, few)).outcome is Outcome.UNDECIDED
    many = np.ones((2, 3, 80), dtype=bool)
    assert RecallDrop().judge(measured(many, many)).outcome is Outcome.PASS


def test_exactly_at_the_threshold() -> None:
    rng = np.random.default_rng(0)
    measurement = simulate(rng, recall=0.9, drop=0.0)
    classes = measurement.classes
    spreads = pool_run_spread(
        np.array([float(np.std(one.differences, ddof=1)) for one in classes]),
        np.array([one.flip_standard_deviation for one in classes]),
        num_seeds=4,
    )
    lowest = min(
        measure_noninferiority(
            one.differences,
            margin=0.0,
            item_standard_error=one.item_standard_error,
            num_samples=36,
            pooled=spread,
        ).low
        for one, spread in zip(classes, spreads, strict=True)
    )
    assert RecallDrop(max_drop=-lowest).judge(measurement).outcome is Outcome.PASS
    below = float(np.nextafter(-lowest, 0))
    assert RecallDrop(max_drop=below).judge(measurement).outcome is Outcome.UNDECIDED


def test_wrong_passes_at_the_margin_and_false_alarms_at_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # multipletests collects: 20 ms a call
    rng = np.random.default_rng(0)
    num_studies = 500
    at_margin = [
        RecallDrop().judge(simulate(rng, recall=0.99, drop=0.05)).outcome
        for _ in range(num_studies)
    ]
    limit = 0.05 + 4 * np.sqrt(0.05 * 0.95 / num_studies)
    assert at_margin.count(Outcome.PASS) / num_studies < limit
    assert at_margin.count(Outcome.FAIL) / num_studies < limit
    equal = [
        RecallDrop().judge(simulate(rng, recall=0.9975, drop=0.0)).outcome
        for _ in range(num_studies)
    ]
    assert equal.count(Outcome.FAIL) == 0
    # 0.5 % of samples differ between the arms, as measured on the digits: normally passed
    assert equal.count(Outcome.PASS) / num_studies > 0.9
