from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.unstable_loss import (
    MIN_JUDGED_STEPS,
    WINDOW,
    LossCurve,
    UnstableLoss,
    UnstableLossMeasurement,
    spike_onsets,
)
from scaleproof.evidence.study import Study
from studies import FakeArm, build_study

Losses = Callable[[int, int], np.ndarray]
Noise = Callable[[np.random.Generator, int], np.ndarray]


def judge(study: Study, **thresholds: float) -> Judgement:
    check = UnstableLoss(**thresholds)
    return check.judge(check.measure(study))


def converging(num_steps: int) -> np.ndarray:
    return 2.0 * np.exp(-np.arange(num_steps) / (num_steps / 4)) + 0.3


def noisy(seed: int, num_steps: int) -> np.ndarray:
    return converging(num_steps) * (1 + 0.1 * np.random.default_rng(seed).normal(size=num_steps))


def spiking(every: int, first: int = 33) -> Losses:
    def losses(seed: int, num_steps: int) -> np.ndarray:
        values = noisy(seed, num_steps)
        values[first::every] += 3.0
        return values

    return losses


def rising(by: float, of_seed: int | None = None) -> Losses:
    def losses(seed: int, num_steps: int) -> np.ndarray:
        values = noisy(seed, num_steps)
        if of_seed is None or seed == of_seed:
            values[-num_steps // 5 :] += by
        return values

    return losses


def study_of(tmp_path: Path, candidate: Losses, baseline: Losses | None = noisy) -> Study:
    """Ten steps an epoch and more: 200 steps in all."""
    arm = FakeArm(num_train_samples=320, batch_per_device=4)
    return build_study(
        tmp_path,
        baseline=None if baseline is None else arm.with_(step_losses=baseline),
        has_baseline=baseline is not None,
        candidate=arm.with_(num_ranks=2, step_losses=candidate),
    )


def test_an_ordinary_noisy_curve_passes(tmp_path: Path) -> None:
    judgement = judge(study_of(tmp_path, noisy))

    assert judgement.outcome is Outcome.PASS
    assert "0 loss spikes in 540 steps against 0 in 1,140 with single-1" in judgement.sentence


def test_spikes_that_one_device_does_not_have_fail_and_the_first_is_named(tmp_path: Path) -> None:
    judgement = judge(study_of(tmp_path, spiking(every=12)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith("42 loss spikes in 540 steps against 0 in 1,140")
    assert "first in ddp-2-seed0, epoch 1, step 34" in judgement.sentence  # 40 steps an epoch
    assert judgement.p_value is not None
    assert judgement.p_value < 0.001


def test_spikes_that_one_device_has_alike_pass_and_it_says_so(tmp_path: Path) -> None:
    judgement = judge(study_of(tmp_path, spiking(every=12), spiking(every=12)))

    assert judgement.outcome is Outcome.PASS
    assert "not clearly more" in judgement.sentence


def test_a_loss_that_rises_again_fails_and_names_run_and_epochs(tmp_path: Path) -> None:
    judgement = judge(study_of(tmp_path, rising(by=1.0, of_seed=2)))

    assert judgement.outcome is Outcome.FAIL
    assert "ddp-2-seed2: the training loss rose again from" in judgement.sentence
    assert "in epoch 4 to 1.35 in epoch 5 (1 of 3 runs); single-1 shows no such rise" in (
        judgement.sentence
    )


def test_a_rise_that_one_device_has_alike_passes_and_it_says_so(tmp_path: Path) -> None:
    judgement = judge(study_of(tmp_path, rising(by=1.0), rising(by=0.9)))

    assert judgement.outcome is Outcome.PASS
    assert "as it does with single-1" in judgement.sentence


def test_without_a_baseline_it_judges_by_itself(tmp_path: Path) -> None:
    assert judge(study_of(tmp_path / "1", noisy, None)).outcome is Outcome.PASS
    spikes = judge(study_of(tmp_path / "2", spiking(every=12), None))
    assert spikes.outcome is Outcome.FAIL
    assert "single" not in spikes.sentence
    assert judge(study_of(tmp_path / "3", rising(by=1.0), None)).outcome is Outcome.FAIL


def test_a_run_that_is_too_short_is_undecided(tmp_path: Path) -> None:
    study = build_study(
        tmp_path,
        candidate=FakeArm(num_ranks=2, num_epochs=1, num_train_samples=400),
        has_baseline=False,
    )
    judgement = judge(study)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "ddp-2-seed0 has too few steps" in judgement.sentence


def test_losses_that_are_not_finite_are_left_to_their_own_check(tmp_path: Path) -> None:
    def partly_nan(seed: int, num_steps: int) -> np.ndarray:
        values = noisy(seed, num_steps)
        values[-5:] = np.nan
        return values

    assert judge(study_of(tmp_path / "1", partly_nan)).outcome is Outcome.PASS
    all_nan = judge(study_of(tmp_path / "2", lambda _seed, num: np.full(num, np.nan)))
    assert all_nan.outcome is Outcome.UNDECIDED


def curve(
    *, num_spikes: int = 0, num_judged: int = 1000, rise: float = 0.0, error: float = 0.001
) -> LossCurve:
    return LossCurve(
        run="ddp-2-seed0",
        num_judged=num_judged,
        num_spikes=num_spikes,
        first_spike=(0, 25) if num_spikes else None,
        first_loss=2.0,
        lowest_loss=0.5,
        lowest_epoch=3,
        last_loss=0.5 + rise,
        last_epoch=4,
        rise_error=error,
    )


def judge_curve(candidate: LossCurve, baseline: LossCurve | None = None, **how: float) -> Outcome:
    measurement = UnstableLossMeasurement(
        candidate=(candidate,),
        baseline_arm=None if baseline is None else "single-1",
        baseline=() if baseline is None else (baseline,),
        too_short=(),
    )
    return UnstableLoss(**how).judge(measurement).outcome


def test_exactly_at_the_thresholds_passes() -> None:
    assert judge_curve(curve(num_spikes=10), max_spike_share=0.01) is Outcome.PASS
    assert judge_curve(curve(rise=0.25), max_rise=0.125) is Outcome.PASS
    assert judge_curve(curve(rise=0.25), max_rise=0.1249) is Outcome.FAIL


def test_few_spikes_more_than_the_baseline_are_undecided() -> None:
    assert judge_curve(curve(num_spikes=3, num_judged=100), curve(num_judged=100)) is (
        Outcome.UNDECIDED
    )
    assert judge_curve(curve(num_spikes=1, num_judged=10), curve(num_judged=10)) is Outcome.PASS


def test_a_rise_within_its_error_passes() -> None:
    assert judge_curve(curve(rise=0.3, error=0.1)) is Outcome.PASS


NOISES: dict[str, Noise] = {
    "normal": lambda rng, n: np.abs(1 + 0.2 * rng.normal(size=n)),
    "skewed": lambda rng, n: rng.gamma(4, 0.25, n),
    "very skewed": lambda rng, n: rng.exponential(1, n),
    "heavy-tailed": lambda rng, n: np.abs(1 + 0.1 * rng.standard_t(4, n)),
    "log-normal": lambda rng, n: np.exp(0.5 * rng.normal(size=n)),
}


@pytest.mark.parametrize("kind", NOISES)
def test_ordinary_noise_is_no_spike(kind: str) -> None:
    rng = np.random.default_rng(0)
    num_steps, num_runs = 3000, 5
    spikes = [
        len(spike_onsets(converging(num_steps) * NOISES[kind](rng, num_steps)))
        for _ in range(num_runs)
    ]

    assert sum(spikes) <= 0.002 * num_steps * num_runs


@pytest.mark.parametrize("kind", NOISES)
def test_ordinary_noise_is_no_rise_and_raises_few_false_alarms(kind: str, tmp_path: Path) -> None:
    def losses(seed: int, num_steps: int) -> np.ndarray:
        return converging(num_steps) * NOISES[kind](np.random.default_rng(seed), num_steps)

    assert judge(study_of(tmp_path, losses, None)).outcome is Outcome.PASS


def test_a_spike_of_several_steps_counts_once_and_a_short_curve_has_none() -> None:
    losses = np.full(100, 1.0)
    losses[50:54] = 5.0
    losses[80] = 5.0

    assert spike_onsets(losses).tolist() == [50, 80]
    assert len(spike_onsets(losses[:WINDOW])) == 0
    assert MIN_JUDGED_STEPS > 0


def test_losses_of_zero_and_below_are_no_trouble() -> None:
    assert len(spike_onsets(np.zeros(100))) == 0
    assert len(spike_onsets(np.linspace(0.5, -0.5, 100))) == 0


def policy_gradient(seed: int, num_steps: int) -> np.ndarray:
    """It changes sign, and rises while the reward does."""
    noise = 0.1 * np.random.default_rng(seed).normal(size=num_steps)
    return 0.3 * np.cos(np.linspace(0, 2 * np.pi, num_steps)) + noise


def test_a_loss_that_goes_below_zero_is_not_judged_by_itself(tmp_path: Path) -> None:
    judgement = judge(study_of(tmp_path, policy_gradient, None))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "of the training losses lie below zero" in judgement.sentence


def test_of_a_loss_below_zero_spikes_are_compared_with_the_baselines(tmp_path: Path) -> None:
    def spiking_below(seed: int, num_steps: int) -> np.ndarray:
        values = policy_gradient(seed, num_steps)
        values[33::12] += 5.0
        return values

    alike = judge(study_of(tmp_path / "alike", policy_gradient, policy_gradient))
    assert alike.outcome is Outcome.PASS
    assert "whether it rises again is not judged" in alike.sentence
    more = judge(study_of(tmp_path / "more", spiking_below, policy_gradient))
    assert more.outcome is Outcome.FAIL


@pytest.mark.parametrize(("num_below", "outcome"), [(10, "fail"), (11, "not-applicable")])
def test_a_few_losses_below_zero_are_noise(tmp_path: Path, num_below: int, outcome: str) -> None:
    """Of 200."""

    def losses(seed: int, num_steps: int) -> np.ndarray:
        values = rising(by=1.0)(seed, num_steps)
        values[50 : 50 + num_below] = -0.01
        return values

    assert judge(study_of(tmp_path, losses, None)).outcome == outcome
