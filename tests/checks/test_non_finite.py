from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.non_finite import NonFinite
from scaleproof.evidence.records import RankOutcome, TensorKind
from scaleproof.evidence.study import Study
from studies import FakeArm, build_study

Losses = Callable[[int, int], np.ndarray]


def judge(study: Study) -> Judgement:
    check = NonFinite()
    return check.judge(check.measure(study))


def losses_with(value: float, *, at_step: int, of_seed: int | None = None) -> Losses:
    def losses(seed: int, num_steps: int) -> np.ndarray:
        values = np.full(num_steps, 1.0)
        if of_seed is None or seed == of_seed:
            values[at_step:] = value
        return values

    return losses


def test_finite_values_pass(tmp_path: Path) -> None:
    judgement = judge(build_study(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert "all 180 training steps" in judgement.sentence  # 3 seeds, 2 ranks, 5 epochs, 6 steps


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named_with_run_rank_epoch_and_step(
    tmp_path: Path, value: float
) -> None:
    # six steps per epoch: step 13 (from 0) is epoch 3, step 2 in words
    candidate = FakeArm(num_ranks=2, step_losses=losses_with(value, at_step=13, of_seed=1))
    judgement = judge(build_study(tmp_path, candidate=candidate))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "ddp-2-seed1, rank 0: the training loss is not finite in epoch 3, step 2 (1 of 3 runs); "
        "single-1 has none."
    )


def test_the_last_step_alone_fails(tmp_path: Path) -> None:
    candidate = FakeArm(num_ranks=2, step_losses=losses_with(np.nan, at_step=29))

    assert "in epoch 5, step 6 (3 of 3 runs)" in (
        judge(build_study(tmp_path, candidate=candidate)).sentence
    )


def test_the_rank_that_has_it_first_is_named(tmp_path: Path) -> None:
    def state(_seed: int, rank: int, epochs_done: int) -> dict[tuple[TensorKind, str], np.ndarray]:
        bad = epochs_done >= (2 if rank == 1 else 4)
        return {(TensorKind.OPTIMIZER, "fc/exp_avg"): np.array([1.0, np.inf if bad else 1.0])}

    judgement = judge(build_study(tmp_path, candidate=FakeArm(num_ranks=2, state=state)))

    assert judgement.outcome is Outcome.FAIL
    assert "rank 1: optimizer 'fc/exp_avg' is not finite at the end of epoch 2" in (
        judgement.sentence
    )


def test_an_evaluation_loss_fails(tmp_path: Path) -> None:
    candidate = FakeArm(
        num_ranks=2, evaluation_loss=lambda _seed, done: np.nan if done == 4 else 1.0
    )
    judgement = judge(build_study(tmp_path, candidate=candidate))

    assert "an evaluation loss is not finite at the end of epoch 4" in judgement.sentence


def test_a_rank_that_stopped_because_of_it_fails(tmp_path: Path) -> None:
    candidate = FakeArm(
        num_ranks=2,
        outcome=lambda _seed, rank: RankOutcome(
            status="diverged" if rank == 1 else "ok", epoch=2, step=0, phase="training"
        ),
    )
    judgement = judge(build_study(tmp_path, candidate=candidate))

    assert judgement.outcome is Outcome.FAIL
    assert "rank 1: a loss or score (the rank stopped there)" in judgement.sentence
    assert "epoch 3" in judgement.sentence


def test_a_fault_of_both_arms_is_not_blamed_on_the_number_of_devices(tmp_path: Path) -> None:
    bad = losses_with(np.nan, at_step=20)
    study = build_study(
        tmp_path,
        baseline=FakeArm(step_losses=bad),
        candidate=FakeArm(num_ranks=2, step_losses=bad),
    )
    judgement = judge(study)

    assert judgement.outcome is Outcome.FAIL
    assert "single-1 has it too (epoch 2), so the number of devices is not what caused it" in (
        judgement.sentence
    )


def test_a_fault_of_the_baseline_alone_is_undecided(tmp_path: Path) -> None:
    study = build_study(tmp_path, baseline=FakeArm(step_losses=losses_with(np.nan, at_step=20)))
    judgement = judge(study)

    assert judgement.outcome is Outcome.UNDECIDED
    assert judgement.sentence.startswith("The baseline is no measure: single-1-seed0")


def test_no_losses_at_all_is_undecided(tmp_path: Path) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, num_epochs=0), has_baseline=False)

    assert judge(study).outcome is Outcome.UNDECIDED
