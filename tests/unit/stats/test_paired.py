from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scaleproof.errors import EvidenceError
from scaleproof.evidence.records import EVALUATION_TABLE, RankOutcome
from scaleproof.stats.paired import align_with, pair_final_evaluations
from studies import FakeArm, build_study


def diverged_from(epoch: int) -> FakeArm:
    outcome = RankOutcome(status="diverged", epoch=epoch, step=0, phase="training")
    return FakeArm(num_ranks=2, num_epochs=epoch, outcome=lambda seed, rank: outcome)


def same_epochs(arm: FakeArm) -> FakeArm:
    return arm.with_(manifest={"num_epochs": 5})


def table(ids: list[int], targets: list[int] | None = None) -> np.ndarray[Any, Any]:
    rows = np.zeros(len(ids), EVALUATION_TABLE)
    rows["sample_id"] = ids
    rows["target"] = targets or [0] * len(ids)
    return rows


def pair(baseline: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any], seed: int = 0) -> Any:
    def run(rows: np.ndarray[Any, Any]) -> Any:
        return SimpleNamespace(
            final_epochs_done=5,
            status="complete",
            final_evaluation=rows,
            paths=SimpleNamespace(root=Path("study/arm")),
        )

    return SimpleNamespace(seed=seed, baseline=run(baseline), candidate=run(candidate))


def test_aligns_all_seeds_of_both_arms(tmp_path: Path):
    study = build_study(tmp_path, seeds=(0, 1))
    samples = pair_final_evaluations(study.pairs)
    assert samples.seeds == (0, 1)
    assert samples.baseline.shape == samples.candidate.shape == (2, 300)
    assert np.array_equal(samples.baseline["sample_id"], samples.candidate["sample_id"])
    assert (samples.num_unmatched, samples.diverged_seeds, samples.left_out_seeds) == (0, (), ())


def test_keeps_shared_samples_once_and_counts_the_others():
    samples = pair_final_evaluations([pair(table([1, 2, 2, 3]), table([2, 3, 4]))])
    assert samples.baseline["sample_id"].tolist() == [[2, 3]]
    assert samples.num_samples == 2
    assert samples.num_unmatched == 2


def test_nothing_to_pair():
    samples = pair_final_evaluations([])
    assert (samples.seeds, samples.num_samples) == ((), 0)


def test_refuses_other_labels_for_the_same_sample():
    with pytest.raises(EvidenceError, match=r"sample 2 has class 1 in .* and class 0 in another"):
        pair_final_evaluations([pair(table([1, 2], [0, 1]), table([1, 2], [0, 0]))])


def test_a_candidate_that_diverged_early_is_named(tmp_path: Path):
    study = build_study(tmp_path, candidate=same_epochs(diverged_from(2)), seeds=(4,))
    samples = pair_final_evaluations(study.pairs)
    assert (samples.seeds, samples.diverged_seeds) == ((), (4,))


def test_a_candidate_that_diverged_after_its_last_evaluation_is_measured(tmp_path: Path):
    study = build_study(tmp_path, candidate=diverged_from(5), seeds=(4,))
    samples = pair_final_evaluations(study.pairs)
    assert (samples.seeds, samples.diverged_seeds) == ((4,), ())


def test_a_baseline_that_diverged_early_leaves_nothing_to_compare_with(tmp_path: Path):
    baseline = replace(same_epochs(diverged_from(2)), num_ranks=1)
    study = build_study(tmp_path, baseline=baseline, seeds=(4,))
    samples = pair_final_evaluations(study.pairs)
    assert (samples.seeds, samples.left_out_seeds, samples.diverged_seeds) == ((), (4,), ())


def test_an_evaluation_before_training_is_no_final_one(tmp_path: Path):
    untrained = FakeArm(num_epochs=0, manifest={"num_epochs": 5})
    study = build_study(
        tmp_path, baseline=untrained, candidate=untrained.with_(num_ranks=2), seeds=(4,)
    )
    assert pair_final_evaluations(study.pairs).left_out_seeds == (4,)


def test_other_evaluations_are_aligned_or_refused():
    samples = pair_final_evaluations([pair(table([1, 2]), table([1, 2]))])
    rows = align_with(samples, [table([1, 1, 2, 3])])
    assert rows is not None and rows["sample_id"].tolist() == [[1, 2]]
    assert align_with(samples, [table([1])]) is None
