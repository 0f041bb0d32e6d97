from pathlib import Path
from typing import Any

import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.discarded_microbatches import DiscardedMicrobatches
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check


def finding(path: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = DiscardedMicrobatches(**thresholds)
    return run_check(check, build_observed(path, script), blocks=True)


def counting(*weights: float, ranks: Any = None, **changes: Any) -> FakeScript:
    """Each backward's gradient counts so much; ``ranks`` gives weights by rank instead."""

    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        of_rank = [script.backwards(script, r, step) for r in range(script.num_ranks)]
        by_rank = ranks or [weights] * script.num_ranks
        used = [np.tensordot(w, b, axes=1) for w, b in zip(by_rank, of_rank, strict=True)]
        return np.mean(used, axis=0)

    number = len(weights) or len(ranks[0])
    return FakeScript(is_checked=True, num_backwards=number, final=final, **changes)


def test_backwards_that_count_alike_pass(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(1.0, 1.0, 1.0))

    assert found.outcome is Outcome.PASS
    assert found.sentence == "All 3 backwards of a step count alike, at 3 steps."


def test_a_common_factor_is_no_fault(tmp_path: Path) -> None:
    assert finding(tmp_path, counting(0.01, 0.01)).outcome is Outcome.PASS


def test_zero_grad_between_microbatches_fails(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(0.0, 0.0, 1.0))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, step 1: the backwards of a step do not count alike (SGD of train.py:41, "
        "backward at train.py:61), but 0.00, 0.00 and 1.00: nothing of numbers 1 and 2 of 3 is "
        "left; so at 3 of 3 steps."
    )
    assert "zero_grad" in found.remedy


def test_a_lost_last_microbatch_fails(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(1.0, 1.0, 0.0))

    assert found.outcome is Outcome.FAIL
    assert "nothing of number 3 of 3 is left" in found.sentence
    assert "kept until the step" in found.remedy


def test_gradients_that_are_divided_again_and_again_fail(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(1 / 27, 1 / 9, 1 / 3))

    assert found.outcome is Outcome.FAIL
    assert "but 0.11, 0.33 and 1.00" in found.sentence
    assert "each 0.333 of the next: they are divided at every backward" in found.sentence
    assert "Divide the loss" in found.remedy


def test_other_factors_fail_too(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(0.4, 1.0, 0.7))

    assert found.outcome is Outcome.FAIL
    assert "something changes them between backwards" in found.sentence


def test_clipping_at_every_microbatch_is_seen_by_what_was_used(tmp_path: Path) -> None:
    """The first clipping was given the first backward alone."""

    def given(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        return np.mean([script.backwards(script, r, step)[0] for r in range(2)], axis=0)

    script = counting(0.3, 1.0, before_clipping=given, clipped_tensors=(0, 1, 2))
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.FAIL
    assert "0.30 and 1.00" in found.sentence


def test_exactly_at_the_tolerance(tmp_path: Path) -> None:
    script = counting(0.75, 1.0)

    assert finding(tmp_path / "at", script, tolerance=0.25 + 1e-9).outcome is Outcome.PASS
    assert finding(tmp_path / "above", script, tolerance=0.25 - 1e-9).outcome is Outcome.FAIL


def test_one_step_is_too_little(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(0.0, 1.0, probed_steps=(2,)))

    assert found.outcome is Outcome.UNDECIDED
    assert "one step only" in found.sentence


def test_one_odd_step_of_many_is_a_remark(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        own = [script.backwards(script, r, step) for r in range(2)]
        weights = (0.0, 1.0) if step == 2 else (1.0, 1.0)
        return np.mean([np.tensordot(weights, b, axes=1) for b in own], axis=0)

    script = FakeScript(is_checked=True, num_backwards=2, final=final)
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.PASS
    assert "but for 1 step" in found.sentence


def test_ranks_that_differ_are_another_checks(tmp_path: Path) -> None:
    found = finding(tmp_path, counting(ranks=[(1.0, 1.0), (0.0, 1.0)]))

    assert found.outcome is Outcome.UNDECIDED
    assert "unsynced-gradients" in DiscardedMicrobatches.consequence_of


def test_what_no_weights_explain_tells_nothing(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        return np.random.default_rng(step).normal(size=locals_[0].shape)

    script = FakeScript(is_checked=True, num_backwards=2, final=final)

    assert finding(tmp_path, script).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("num_ranks", [1, 24])
def test_one_rank_and_many_are_told(tmp_path: Path, num_ranks: int) -> None:
    """Of many, the mean over ranks is fitted."""
    script = counting(0.0, 1.0, num_ranks=num_ranks, num_samples=8 * num_ranks)

    assert finding(tmp_path, script).outcome is Outcome.FAIL


def test_a_gan_of_two_backwards_on_one_batch_is_not_asked(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        table["num_batches"] = 1

    for name, script in (
        ("gan", counting(0.0, 1.0, steps=steps)),
        ("one", counting(1.0)),
    ):
        found = finding(tmp_path / name, script)
        assert found.outcome is Outcome.NOT_APPLICABLE
        assert not found.is_evidence_missing
