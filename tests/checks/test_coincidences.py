"""Contents that training and evaluation share: copies, or rows that are equal by chance."""

from pathlib import Path

import numpy as np
import pytest

from observed import EVALUATION, TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.train_validation_overlap import TrainValidationOverlap
from scaleproof.evidence.study import Study


def judge(study: Study) -> Judgement:
    check = TrainValidationOverlap(min_contents=10)
    return check.judge(check.measure(study))


def cut_from(kinds: np.ndarray, num_training: int) -> FakeScript:
    """A split of items that are of these kinds, into data sets of their own."""
    parts = {TRAINING: kinds[:num_training], EVALUATION: kinds[num_training:]}

    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        return (parts[loader][ids].astype(np.uint64) + np.uint64(1)) * np.uint64(2**40)

    return FakeScript(
        num_ranks=1,
        parallelism="none",
        num_samples=num_training,
        num_evaluation_samples=len(kinds) - num_training,
        contents=contents,
        batch_size=64,
    )


def oversampled(num_distinct: int, num_rare: int, times: int) -> np.ndarray:
    rare = np.repeat(np.arange(num_rare), times - 1)
    return np.random.default_rng(0).permutation(np.append(np.arange(num_distinct), rare))


def test_what_was_repeated_before_the_split_fails(tmp_path: Path) -> None:
    """Every tenth of 1,800 items is there four times, in either set."""
    judgement = judge(build_observed(tmp_path, cut_from(oversampled(1800, 180, 4), 1755)))

    assert judgement.outcome is Outcome.FAIL
    assert "as when items are repeated before the split" in judgement.sentence
    assert "Split first" in judgement.remedy


def test_what_was_repeated_after_the_split_passes(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(1800)
    training = np.append(order[:1350], np.repeat(order[:135], 3))
    kinds = np.append(training, order[1350:])
    judgement = judge(build_observed(tmp_path, cut_from(kinds, len(training))))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence.endswith("evaluates on (by contents).")


def test_repeats_in_training_do_not_excuse_what_is_evaluated_on_too(tmp_path: Path) -> None:
    """Of the 450 that are evaluated on, each once, 100 are trained on, four times each."""
    order = np.random.default_rng(0).permutation(1800)
    training = np.append(order[:1350], np.repeat(order[:135], 3))
    kinds = np.concatenate([training, order[1350:1700], order[:100]])
    judgement = judge(build_observed(tmp_path, cut_from(kinds, len(training))))

    assert judgement.outcome is Outcome.FAIL
    assert "100 of the 450 contents" in judgement.sentence


@pytest.mark.parametrize("num_kinds", [10_000, 2_000])
def test_rows_some_of_which_are_equal_by_chance_are_undecided(
    tmp_path: Path, num_kinds: int
) -> None:
    kinds = np.random.default_rng(0).integers(0, num_kinds, 2000)
    judgement = judge(build_observed(tmp_path, cut_from(kinds, 1500)))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "may be equal by chance, or some were copied before the split" in judgement.sentence
    assert "drop equal items before the split" in judgement.remedy


@pytest.mark.parametrize("num_kinds", [16, 256])
def test_rows_of_few_kinds_pass(tmp_path: Path, num_kinds: int) -> None:
    """Four or eight columns of zeros and ones."""
    kinds = np.random.default_rng(0).integers(0, num_kinds, 2000)
    judgement = judge(build_observed(tmp_path, cut_from(kinds, 1500)))

    assert judgement.outcome is Outcome.PASS
    assert "as many do within each set" in judgement.sentence


def test_pairs_that_may_be_chance_are_undecided_beside_repeats_on_purpose(tmp_path: Path) -> None:
    """Some items are there twice; then all of the training part is repeated."""
    pairs = oversampled(1000, 100, 2)
    kinds = np.concatenate([np.repeat(pairs[:800], 3), pairs[800:]])
    judgement = judge(build_observed(tmp_path, cut_from(kinds, 2400)))

    assert judgement.outcome is Outcome.UNDECIDED
