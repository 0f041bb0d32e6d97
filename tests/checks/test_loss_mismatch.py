from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.loss_mismatch import LossDifference, LossMismatch
from scaleproof.checks.paired_quality import PairedEvidence
from scaleproof.evidence.records import RankOutcome
from studies import FakeArm, build_study

NUM_SAMPLES = 300
Loss = Callable[[int, int], Any]


def falling(final: float, *, unsteady: float = 0.0, noise: float = 0.0) -> Loss:
    """2.3 before training, ``final`` after it; shape ``(NUM_SAMPLES,)`` when samples differ."""

    def loss(seed: int, epochs_done: int) -> Any:
        mean = 2.3 if epochs_done == 0 else final + unsteady * (seed - 1)
        if not noise:
            return mean
        return mean + np.random.default_rng([seed, epochs_done]).normal(0, noise, NUM_SAMPLES)

    return loss


def arm(loss: Loss, **changes: Any) -> FakeArm:
    """One process with two devices, so that it scores all samples in one table."""
    return FakeArm(num_devices=2, strategy="dp", evaluation_loss=loss, **changes)


def judge(
    root: Path,
    baseline: Loss,
    candidate: FakeArm,
    *,
    num_seeds: int = 3,
    check: LossMismatch | None = None,
) -> Judgement:
    study = build_study(
        root,
        baseline=FakeArm(evaluation_loss=baseline),
        candidate=candidate,
        seeds=tuple(range(num_seeds)),
    )
    check = check or LossMismatch()
    return check.judge(check.measure(study))


def measured(
    excess: np.ndarray, item_error: float = 0.0, initial: tuple[float | None, ...] | None = None
) -> LossDifference:
    """A baseline that falls from 2 to 1."""
    return LossDifference(
        evidence=PairedEvidence(
            num_devices=2,
            num_baseline_devices=1,
            seeds=tuple(range(len(excess))),
            num_samples=NUM_SAMPLES,
            num_unmatched=0,
            diverged_seeds=(),
            left_out_seeds=(),
        ),
        initial_loss=(2.0,) * len(excess) if initial is None else initial,
        baseline_loss=(1.0,) * len(excess),
        candidate_loss=tuple((1 + excess).tolist()),
        item_standard_error=item_error,
    )


def test_the_same_loss_passes(tmp_path: Path) -> None:
    candidate = arm(falling(0.31, unsteady=0.005))
    judgement = judge(tmp_path, falling(0.3), candidate)
    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence.startswith(
        "The final loss with 2 devices is 0.31, with one 0.3: +0.50 % of its fall in training "
        "(90 % interval "
    )
    assert judgement.sentence.endswith("over 3 seeds; allowed +5.00 %).")


def test_a_higher_loss_fails(tmp_path: Path) -> None:
    judgement = judge(tmp_path, falling(0.3), arm(falling(0.6, unsteady=0.01)))
    assert judgement.outcome is Outcome.FAIL
    assert "with 2 devices is 0.6, with one 0.3: +15.00 % of its fall" in judgement.sentence
    assert "learning rate" in judgement.remedy
    assert judgement.p_value is not None and judgement.p_value < 0.01


def test_losses_that_vary_much_are_undecided(tmp_path: Path) -> None:
    judgement = judge(tmp_path, falling(0.3), arm(falling(0.3, unsteady=0.1)))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "seeds per arm would decide" in judgement.remedy


def test_one_seed_can_not_show_it(tmp_path: Path) -> None:
    judgement = judge(tmp_path, falling(0.3), arm(falling(0.3)), num_seeds=1)
    assert judgement.outcome is Outcome.UNDECIDED
    assert "one seed per arm can't show whether the loss is as good" in judgement.sentence


@pytest.mark.parametrize(("final", "outcome"), [(0.3, Outcome.PASS), (0.9, Outcome.FAIL)])
def test_one_seed_decides_on_sampling_error_only_when_allowed(
    tmp_path: Path, final: float, outcome: Outcome
) -> None:
    check = LossMismatch(allow_single_seed=True)
    candidate = arm(falling(final, noise=0.1))
    judgement = judge(tmp_path, falling(0.3), candidate, num_seeds=1, check=check)
    assert judgement.outcome is outcome
    assert "from 1 seed, without the variation from run to run" in judgement.sentence


def test_the_sampling_error_is_that_of_a_ratio(tmp_path: Path) -> None:
    # the candidate's rise is a fixed share of each sample's fall: no sampling error at all
    def fall(seed: int, epochs_done: int) -> np.ndarray:
        depth = np.random.default_rng(0).uniform(0.5, 1.5, NUM_SAMPLES)
        return np.full(NUM_SAMPLES, 3.0) if epochs_done == 0 else 3.0 - depth

    def rise(seed: int, epochs_done: int) -> np.ndarray:
        return 3.0 - 0.9 * (3.0 - fall(seed, epochs_done))

    study = build_study(tmp_path, baseline=FakeArm(evaluation_loss=fall), candidate=arm(rise))
    measurement = LossMismatch().measure(study)
    assert measurement.item_standard_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_fails(tmp_path: Path, broken: float) -> None:
    def loss(seed: int, epochs_done: int) -> float:
        return broken if seed == 1 and epochs_done == 5 else 0.3

    judgement = judge(tmp_path, falling(0.3), arm(loss))
    assert judgement.outcome is Outcome.FAIL
    assert "with 2 devices is not finite in seed 1; with one it is" in judgement.sentence


def test_a_baseline_that_is_not_finite_leaves_nothing_to_compare_with(tmp_path: Path) -> None:
    judgement = judge(tmp_path, falling(np.nan), arm(falling(np.nan)))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "loss of the baseline is not finite in seeds 0, 1 and 2" in judgement.sentence


def test_a_baseline_that_learned_nothing_is_undecided(tmp_path: Path) -> None:
    judgement = judge(tmp_path, falling(2.3), arm(falling(2.3)))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "did not bring the baseline's loss down in seed 0: 2.3 before" in judgement.sentence


def test_no_loss_before_training_is_undecided() -> None:
    judgement = LossMismatch().judge(measured(np.zeros(3), initial=()))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "no finite loss before training" in judgement.sentence


def test_a_candidate_that_diverged_fails(tmp_path: Path) -> None:
    outcome = RankOutcome(status="diverged", epoch=2, step=7, phase="training")
    broken = arm(
        falling(0.3),
        num_epochs=2,
        outcome=lambda seed, rank: outcome,
        manifest={"num_epochs": 5},
    )
    judgement = judge(tmp_path, falling(0.3), broken)
    assert judgement.outcome is Outcome.FAIL
    assert "diverged in seeds 0, 1 and 2 and left no final loss" in judgement.sentence


def test_exactly_at_the_threshold() -> None:
    # 0.25 + 1 and the fall of 1 are exact in binary; no variation: the interval has no width
    measurement = measured(np.full(3, 0.25))
    assert LossMismatch(max_excess=0.25).judge(measurement).outcome is Outcome.PASS
    below = float(np.nextafter(0.25, 0))
    assert LossMismatch(max_excess=below).judge(measurement).outcome is Outcome.FAIL


def test_wrong_passes_at_the_margin_and_false_alarms_at_no_difference() -> None:
    rng = np.random.default_rng(0)
    num_studies = 1000

    def outcomes(true_excess: float, num_seeds: int) -> list[Outcome]:
        return [
            LossMismatch()
            .judge(measured(true_excess + rng.normal(0, 0.02, num_seeds), item_error=0.0))
            .outcome
            for _ in range(num_studies)
        ]

    limit = 0.05 + 4 * np.sqrt(0.05 * 0.95 / num_studies)
    for num_seeds in (2, 3, 5):
        at_margin = outcomes(0.05, num_seeds)
        assert at_margin.count(Outcome.PASS) / num_studies < limit
        assert at_margin.count(Outcome.FAIL) / num_studies < limit
        assert outcomes(0.0, num_seeds).count(Outcome.FAIL) / num_studies < 0.02
