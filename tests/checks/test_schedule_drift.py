from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.schedule_drift import ScheduleDrift
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import ProbeRecord, StepsRecord
from scaleproof.verdict.run_check import run_check

Shape = Callable[[np.ndarray], np.ndarray]


def judge(path: Path, script: FakeScript, baseline: FakeScript | None = None) -> Judgement:
    check = ScheduleDrift()
    return check.judge(check.measure(build_observed(path, script, baseline=baseline)))


def with_rates(rate_of: Callable[[int, np.ndarray], Any], **script: Any) -> FakeScript:
    """``rate_of(rank, steps from 0)``."""

    def steps(rank: int, table: np.ndarray) -> None:
        table["learning_rate"] = rate_of(rank, np.arange(len(table)))

    return FakeScript(steps=steps, **script)


def test_equal_rates_pass(tmp_path: Path) -> None:
    finding = run_check(ScheduleDrift(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS
    assert finding.sentence == "All ranks had the same learning rate in each of 18 steps."


def test_a_plateau_that_one_rank_alone_sees_is_named(tmp_path: Path) -> None:
    def rates(rank: int, step: np.ndarray) -> np.ndarray:
        return np.where((step >= 12) & (rank == 1), 0.01, 0.1)

    judgement = judge(tmp_path, with_rates(rates))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 1, step 13: the learning rate of the optimizer at train.py:41 is "
        "0.01, on rank 0 it is 0.1 (6 of 18 steps differ; it changed 1 time there and 0 times "
        "here)."
    )
    assert "ReduceLROnPlateau" in judgement.remedy


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    script = with_rates(lambda rank, step: 0.5 - 0.125 * rank + 0 * step)
    measured = ScheduleDrift().measure(build_observed(tmp_path, script))

    at, below = (ScheduleDrift(tolerance=t) for t in (0.25, float(np.nextafter(0.25, 0))))

    assert at.judge(measured).outcome is Outcome.PASS
    assert below.judge(measured).outcome is Outcome.FAIL


def test_two_optimizers_have_rates_of_their_own(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        table["optimizer"] = np.arange(len(table)) % 2
        table["learning_rate"] = np.where(table["optimizer"] == 0, 0.1, 4e-4)

    assert judge(tmp_path, FakeScript(steps=steps)).outcome is Outcome.PASS


def test_ranks_that_end_apart_are_compared_as_far_as_both_came(tmp_path: Path) -> None:
    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return np.arange(24 if rank == 0 or epoch == 0 else 20)

    script = with_rates(lambda _rank, step: 0.1 / (1 + step), fed=fed)
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.PASS
    assert "each of 16 steps" in judgement.sentence


def scaled(factor: float) -> Callable[[int, AnyRecord], AnyRecord]:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, ProbeRecord):
            is_odd = rank == 1 and record.step > 1
            scale = 65536.0 * (factor if is_odd else 1)
            return msgspec.structs.replace(record, grad_scale=scale)
        return record

    return change


def test_a_loss_scale_that_differs_fails_and_an_equal_one_passes(tmp_path: Path) -> None:
    judgement = judge(tmp_path / "differs", FakeScript(change=scaled(0.5)))

    assert judge(tmp_path / "equal", FakeScript(change=scaled(1.0))).outcome is Outcome.PASS
    assert judgement.outcome is Outcome.FAIL
    assert "rank 1, step 2: the loss scale of the optimizer at train.py:41 is 3.277e+04" in (
        judgement.sentence
    )


def cosine(share: np.ndarray) -> np.ndarray:
    return 0.05 * (1 + np.cos(np.pi * share))


def milestones(share: np.ndarray) -> np.ndarray:
    return 0.1 * np.where(share < 0.5, 1.0, np.where(share < 0.8, 0.1, 0.01))


def over(shape: Shape, num_planned: float) -> Callable[[int, np.ndarray], np.ndarray]:
    """A schedule made for ``num_planned`` steps."""
    return lambda _rank, step: shape(step / num_planned)


BASELINE = {"num_ranks": 1, "parallelism": "none", "num_samples": 160}
CANDIDATE = {"num_samples": 160}  # 60 steps of 120 in three epochs

shapes = pytest.mark.parametrize("shape", [cosine, milestones])


@shapes
def test_a_schedule_over_the_same_samples_passes(tmp_path: Path, shape: Shape) -> None:
    judgement = judge(
        tmp_path,
        with_rates(over(shape, 60), **CANDIDATE),
        with_rates(over(shape, 120), **BASELINE),
    )

    assert judgement.outcome is Outcome.PASS
    assert "keeps the pace of the baseline's" in judgement.sentence


@shapes
def test_a_schedule_made_for_the_unsplit_loader_is_stepped_too_rarely(
    tmp_path: Path, shape: Shape
) -> None:
    judgement = judge(
        tmp_path,
        with_rates(over(shape, 120), **CANDIDATE),
        with_rates(over(shape, 120), **BASELINE),
    )

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "candidate-seed0: the schedule of the optimizer at train.py:41 is stepped 2 times too "
        "rarely for that of baseline-seed0: only 50 % of it is over when training ends."
    )


@shapes
def test_a_schedule_that_every_process_steps_is_over_too_early(
    tmp_path: Path, shape: Shape
) -> None:
    judgement = judge(
        tmp_path,
        with_rates(over(lambda share: shape(np.minimum(share, 1.0)), 30), **CANDIDATE),
        with_rates(over(shape, 120), **BASELINE),
    )

    assert judgement.outcome is Outcome.FAIL
    assert "2 times too often" in judgement.sentence
    assert "after 50 % of the training" in judgement.sentence


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(lambda _r, step: 0.2 * cosine(step / 60), id="another peak"),
        pytest.param(lambda _r, step: np.minimum((step + 1) / 12, 1) / 10, id="longer warm-up"),
        pytest.param(
            lambda _r, step: np.minimum((step + 1) / 15, 1) * cosine(step / 60),
            id="warm-up before the same decline",
        ),
        pytest.param(
            lambda _r, step: 0.1 * np.minimum(1, (60 - step) / 2), id="a few steps of cooldown"
        ),
    ],
)
def test_another_peak_or_warm_up_is_no_fault(
    tmp_path: Path, candidate: Callable[[int, np.ndarray], np.ndarray]
) -> None:
    baselines = {
        "warm": lambda _r, step: np.minimum((step + 1) / 12, 1) / 10,
        "falling": over(cosine, 120),
        "cooling": lambda _r, step: 0.1 * np.minimum(1, (120 - step) / 4),
    }
    for name, rates in baselines.items():
        judgement = judge(
            tmp_path / name, with_rates(candidate, **CANDIDATE), with_rates(rates, **BASELINE)
        )

        assert judgement.outcome is Outcome.PASS


def test_as_many_steps_on_more_samples_are_no_fault(tmp_path: Path) -> None:
    candidate = with_rates(over(cosine, 120), num_samples=320)
    judgement = judge(tmp_path, candidate, with_rates(over(cosine, 120), **BASELINE))

    assert judgement.outcome is Outcome.PASS


def test_without_steps_evidence_is_missing(tmp_path: Path) -> None:
    script = FakeScript(
        change=lambda rank, record: (
            None if rank == 1 and isinstance(record, StepsRecord) else record
        )
    )
    finding = run_check(ScheduleDrift(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert finding.is_evidence_missing


def test_ranks_without_an_optimizer_in_common_are_undecided(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        table["optimizer"] = rank

    def change(_rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, ProbeRecord) else record

    judgement = judge(tmp_path, FakeScript(steps=steps, change=change))

    assert judgement.outcome is Outcome.UNDECIDED
