"""Real runs with two gloo ranks: what they leave, and that N devices equal one."""

from pathlib import Path

import numpy as np
import pytest

from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Study
from tests_of_runs import run_study

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ddp_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(tmp_path_factory.mktemp("it's; odd") / "study", "sound", num_seeds=2)


def test_both_arms_finish_and_can_be_compared(ddp_study: Study):
    assert [run.status for run in ddp_study.runs.values()] == ["complete"] * 4
    assert [pair.seed for pair in ddp_study.pairs] == [0, 1]
    assert all(len(pair.candidate.epoch_times_s) == 3 for pair in ddp_study.pairs)


def test_every_training_sample_is_fed_once_an_epoch(ddp_study: Study):
    run = ddp_study.pairs[0].candidate
    for epoch in range(3):
        seen = [rank.seen(rank.samples[epoch]) for rank in run.ranks]
        assert seen[0].isdisjoint(seen[1])
        assert set(seen[0] | seen[1]) == set(range(70))
        assert not any(rank.repeated(rank.samples[epoch]) for rank in run.ranks)


def test_every_evaluation_sample_is_scored_once(ddp_study: Study):
    for pair in ddp_study.pairs:
        for run in (pair.baseline, pair.candidate):
            assert run.evaluated_epochs == (0, 1, 2, 3)
            assert run.final_evaluation["sample_id"].tolist() == list(range(31))


def test_ranks_of_ddp_hold_the_same_state_after_every_epoch(ddp_study: Study):
    first, second = ddp_study.pairs[0].candidate.ranks
    for one, other in zip(first.states, second.states, strict=True):
        assert one.tensors == other.tensors
    kinds = {tensor.kind for tensor in first.states[-1].tensors}
    assert kinds == set(TensorKind)


def test_orders_differ_between_epochs_and_seeds(ddp_study: Study):
    digests = [
        record.order_digest for pair in ddp_study.pairs for record in pair.baseline.ranks[0].samples
    ]
    assert len(set(digests)) == len(digests) == 6


def test_arms_start_from_the_same_weights(ddp_study: Study):
    pair = ddp_study.pairs[0]
    initial = [
        [t for t in run.ranks[0].states[0].tensors if t.kind is TensorKind.PARAMETER]
        for run in (pair.baseline, pair.candidate)
    ]
    assert initial[0] == initial[1]


def test_learning_rate_is_scaled_recorded_and_warmed_up(ddp_study: Study):
    manifest = ddp_study.pairs[0].candidate.manifest
    assert manifest is not None
    assert manifest.learning_rate.rule == "sqrt"
    assert manifest.learning_rate.scaled == pytest.approx(1e-2 * 2**0.5)
    rank = ddp_study.pairs[0].candidate.ranks[0]
    rates = np.concatenate([rank.steps(epoch)["learning_rate"] for epoch in rank.epochs])
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-2 * 2**0.5)


@pytest.mark.parametrize("strategy", ["ddp", "dp"])
def test_two_devices_take_the_steps_of_one_device_with_twice_the_batch(
    tmp_path: Path, strategy: str
):
    """The union of the shards is trained on: in fp64 the losses agree to rounding, the ragged
    tail (70 = 4 * 16 + 6) included."""
    two = run_study(
        tmp_path / "two",
        "without_batch_norm",
        strategy=strategy,
        with_baseline=False,
        learning_rate_rule="none",
    )
    one = run_study(
        tmp_path / "one",
        "without_batch_norm_double_batch",
        strategy="single",
        num_devices=1,
        with_baseline=False,
        learning_rate_rule="none",
    )
    (run_two,), (run_one,) = two.runs.values(), one.runs.values()
    assert run_two.step_losses == pytest.approx(run_one.step_losses, rel=1e-6)
    losses = [run.final_evaluation["loss"] for run in (run_two, run_one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_three_ranks_average_large_gradients_through_shared_memory(tmp_path: Path):
    arms = {
        "wide": {"num_devices": 3},
        "wide_triple_batch": {"num_devices": 1, "strategy": "single"},
    }
    runs = []
    for recipe, changes in arms.items():
        study = run_study(
            tmp_path / recipe,
            recipe,
            with_baseline=False,
            learning_rate_rule="none",
            **changes,
        )
        runs += study.runs.values()
    three, one = runs
    assert three.manifest is not None
    assert three.manifest.strategy_settings["gradient_exchange"] == "shared memory"
    assert three.step_losses == pytest.approx(one.step_losses, rel=1e-6)
    first, *others = (rank.states[-1].tensors for rank in three.ranks)
    assert all(tensors == first for tensors in others)


def test_without_room_to_share_memory_gloo_averages_the_same(tmp_path: Path):
    losses = []
    for recipe, exchange in (("wide", "shared memory"), ("wide_without_shared_memory", "gloo")):
        study = run_study(tmp_path / recipe, recipe, with_baseline=False, num_epochs=2)
        (run,) = study.runs.values()
        assert run.manifest is not None
        assert run.manifest.strategy_settings["gradient_exchange"] == exchange
        losses.append(run.step_losses.tolist())
    assert losses[0] == losses[1]  # bit for bit


def test_dp_keeps_only_the_buffers_of_replica_0(tmp_path: Path):
    """BatchNorm counts one batch per step, and its mean is of the first half of each batch."""
    study = run_study(tmp_path / "study", "counts_buffers", strategy="dp", with_baseline=False)
    (run,) = study.runs.values()
    states = run.ranks[0].states
    counter = [t for t in states[-1].tensors if t.name.endswith("samples_seen")]
    # 3 epochs of 70 samples; replica 0 sees ceil(half) of each batch: 8 * 4 + 3 an epoch.
    assert [tensor.norm for tensor in counter] == [3 * (8 * 4 + 3)]


def test_four_ranks_share_two_cores(tmp_path: Path):
    study = run_study(tmp_path / "study", "sound", num_devices=4, with_baseline=False, num_epochs=1)
    (run,) = study.runs.values()
    assert len(run.ranks) == 4
    assert run.status == "complete"


def test_replicas_that_part_are_seen(tmp_path: Path):
    study = run_study(tmp_path / "study", "replicas_part", with_baseline=False, num_epochs=1)
    (run,) = study.runs.values()
    first, second = (rank.states[-1] for rank in run.ranks)
    differing = [
        one.name
        for one, other in zip(first.tensors, second.tensors, strict=True)
        if one.digest != other.digest
    ]
    assert "inner.0.weight" in differing or "0.weight" in differing


def test_a_loss_that_is_not_finite_ends_the_run_on_all_ranks(tmp_path: Path):
    study = run_study(tmp_path / "study", "loss_becomes_nan", with_baseline=False)
    (run,) = study.runs.values()
    assert run.status == "diverged"
    assert {rank.outcome.status for rank in run.ranks if rank.outcome} == {"diverged"}
    assert len(run.epoch_times_s) < 3
