from pathlib import Path
from typing import Any

import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.batch_size_unscaled import BatchSizeUnscaled
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.verdict.run_check import run_check

ALONE: dict[str, Any] = {"num_ranks": 1, "parallelism": "none"}


def judge(
    path: Path, script: FakeScript, baseline: FakeScript | None = None, **thresholds: float
) -> Judgement:
    check = BatchSizeUnscaled(**thresholds)
    study = build_observed(path, script, baseline=baseline or FakeScript(**ALONE))
    return check.judge(check.measure(study))


def test_a_larger_batch_at_the_same_rate_fails_with_what_scaling_would_be(tmp_path: Path) -> None:
    judgement = judge(tmp_path, FakeScript())

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "candidate-seed0: an update is made from 8 samples, with the baseline from 4 (2.00×), at "
        "the same peak learning rate of 0.1 of the SGD at train.py:41."
    )
    assert "0.2 by linear scaling" in judgement.remedy
    assert "0.1414 by the square root" in judgement.remedy


@pytest.mark.parametrize("rate", [0.2, 0.1414])
def test_a_rate_that_was_scaled_passes(tmp_path: Path, rate: float) -> None:
    judgement = judge(tmp_path, FakeScript(learning_rate=rate))

    assert judgement.outcome is Outcome.PASS
    assert "(2.00×), and the peak learning rate" in judgement.sentence


def test_the_batch_divided_over_the_devices_passes(tmp_path: Path) -> None:
    assert judge(tmp_path, FakeScript(batch_size=2)).outcome is Outcome.PASS


def test_accumulation_counts(tmp_path: Path) -> None:
    def accumulate(_rank: int, table: np.ndarray) -> None:
        table["num_samples"] *= 2

    baseline = FakeScript(steps=accumulate, **ALONE)

    assert judge(tmp_path, FakeScript(), baseline).outcome is Outcome.PASS


def test_a_schedule_is_judged_by_its_peak(tmp_path: Path) -> None:
    def warm_up(_rank: int, table: np.ndarray) -> None:
        table["learning_rate"] = np.linspace(0.01, 0.2, len(table))

    assert judge(tmp_path, FakeScript(steps=warm_up)).outcome is Outcome.PASS


def test_exactly_at_the_thresholds(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(), baseline=FakeScript(**ALONE))

    def outcome(**thresholds: float) -> Outcome:
        check = BatchSizeUnscaled(**thresholds)
        return check.judge(check.measure(study)).outcome

    assert outcome(min_growth=2.0) is Outcome.FAIL
    assert outcome(min_growth=2.0000001) is Outcome.PASS


def test_exactly_at_the_allowed_change_of_the_rate(tmp_path: Path) -> None:
    script = FakeScript(learning_rate=0.125)
    baseline = FakeScript(learning_rate=0.1171875, **ALONE)  # 16/15 in numbers without rounding
    change = 0.125 / 0.1171875 - 1

    at = judge(tmp_path / "at", script, baseline, max_rate_change=change)
    below = judge(tmp_path / "below", script, baseline, max_rate_change=change - 1e-9)

    assert (at.outcome, below.outcome) == (Outcome.FAIL, Outcome.PASS)


def test_two_optimizers_are_both_looked_at(tmp_path: Path) -> None:
    def gan(rates: tuple[float, float]) -> Any:
        def steps(_rank: int, table: np.ndarray) -> None:
            table["optimizer"] = np.arange(len(table)) % 2
            table["num_samples"][1::2] = 0  # the second step of a batch takes none of its own
            table["learning_rate"] = np.where(table["optimizer"] == 0, *rates)

        return steps

    baseline = FakeScript(steps=gan((0.1, 0.02)), **ALONE)
    judgement = judge(tmp_path, FakeScript(steps=gan((0.2, 0.02))), baseline)

    assert judgement.outcome is Outcome.FAIL
    assert "peak learning rate of 0.02" in judgement.sentence


def test_samples_that_were_not_seen_are_undecided(tmp_path: Path) -> None:
    def unknown(_rank: int, table: np.ndarray) -> None:
        table["num_samples"] = -1

    judgement = judge(tmp_path, FakeScript(steps=unknown))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "baseline-seed0 and candidate-seed0" in judgement.sentence


def test_without_a_baseline_the_question_does_not_arise(tmp_path: Path) -> None:
    finding = run_check(BatchSizeUnscaled(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing
