"""The checks of quality that recipes have too, on scripts: what they can and can't look at."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from reported import predicting, reporting
from scaleproof.checks.accuracy_below_floor import AccuracyBelowFloor
from scaleproof.checks.accuracy_drop import AccuracyDrop
from scaleproof.checks.accuracy_paradox import AccuracyParadox
from scaleproof.checks.check import AbstractCheck, Outcome
from scaleproof.checks.loss_mismatch import LossMismatch
from scaleproof.checks.non_finite import NonFinite
from scaleproof.checks.recall_drop import RecallDrop
from scaleproof.checks.unstable_loss import UnstableLoss
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import (
    Moment,
    SnapshotRecord,
    StepFlag,
    StepsRecord,
)
from scaleproof.evidence.records import EpochRecord, TensorKind
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

ALONE: dict[str, Any] = {"num_ranks": 1, "parallelism": "none"}
LONG: dict[str, Any] = {"num_samples": 160}  # 20 steps an epoch on two ranks, 40 on one
State = dict[tuple[TensorKind, str], np.ndarray]


def look(
    check: AbstractCheck[Any],
    path: Path,
    script: FakeScript,
    baseline: FakeScript | None = None,
    seeds: tuple[int, ...] = (0,),
) -> Finding:
    study = build_observed(path, script, baseline=baseline, seeds=seeds)
    return run_check(check, study, blocks=True)


@pytest.mark.parametrize(
    "check",
    [AccuracyDrop(), RecallDrop(), LossMismatch(), AccuracyParadox(), AccuracyBelowFloor()],
    ids=lambda check: check.name,
)
def test_without_predictions_the_question_does_not_arise(
    tmp_path: Path, check: AbstractCheck[Any]
) -> None:
    finding = look(check, tmp_path, FakeScript(), FakeScript(**ALONE))

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing
    assert "the script reported no predictions (scaleproof.report_predictions)" in finding.sentence


NUM_ROWS = 2_000


def rows(num_wrong: int) -> dict[int, list[tuple[int, bool]]]:
    return {0: [(sample, sample >= num_wrong) for sample in range(NUM_ROWS)], 1: []}


@pytest.mark.parametrize(("num_wrong", "outcome"), [(100, Outcome.PASS), (400, Outcome.FAIL)])
def test_predictions_are_judged_as_those_of_a_recipe(
    tmp_path: Path, num_wrong: int, outcome: Outcome
) -> None:
    script = FakeScript(more=predicting(rows(num_wrong)))
    baseline = FakeScript(more=predicting(rows(100)), **ALONE)
    accuracy = look(AccuracyDrop(), tmp_path / "accuracy", script, baseline, seeds=(0, 1, 2))
    recall = look(RecallDrop(), tmp_path / "recall", script, baseline, seeds=(0, 1, 2))
    paradox = look(AccuracyParadox(), tmp_path / "paradox", script)

    assert accuracy.outcome is outcome
    assert recall.outcome is outcome
    assert "Recall of 0 (1,000 samples)" in recall.sentence
    assert paradox.outcome is Outcome.PASS


def test_losses_that_a_script_does_not_report_are_no_mismatch(tmp_path: Path) -> None:
    script = FakeScript(more=predicting(rows(100)))
    baseline = FakeScript(more=predicting(rows(100)), **ALONE)
    finding = look(LossMismatch(), tmp_path, script, baseline)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing
    assert look(NonFinite(), tmp_path / "finite", script).outcome is Outcome.PASS


# --- non-finite


def state_with(broken_from: int, key: tuple[TensorKind, str]) -> Any:
    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = FakeScript().state(script, rank, steps_done, moment)
        tensors.setdefault(key, np.ones(3))
        if rank == 1 and steps_done >= broken_from:
            tensors[key] = np.full(3, np.inf)
        return tensors

    return state


HEAD = (TensorKind.PARAMETER, "head.weight")


def lost_from(step: int, value: float = np.nan) -> Any:
    def steps(rank: int, table: np.ndarray) -> None:
        if rank == 1:
            table["loss"][step - 1 :] = value

    return steps


def test_a_loss_that_becomes_nan_with_the_weights_is_named_with_its_step(tmp_path: Path) -> None:
    script = FakeScript(steps=lost_from(8), state=state_with(8, HEAD))
    finding = look(NonFinite(), tmp_path, script)

    assert finding.outcome is Outcome.FAIL
    assert finding.sentence == (
        "observed-seed0, rank 1: the training loss is not finite in epoch 2, step 2."
    )


def test_a_loss_that_is_not_known_is_not_nan(tmp_path: Path) -> None:
    known = FakeScript(steps=lost_from(8))
    never = FakeScript(steps=lost_from(1), state=state_with(10_000, HEAD))
    nothing = FakeScript(steps=lambda _rank, table: table["loss"].fill(np.nan))

    assert look(NonFinite(), tmp_path / "known", known).outcome is Outcome.PASS
    assert look(NonFinite(), tmp_path / "never", never).outcome is Outcome.PASS
    finding = look(NonFinite(), tmp_path / "nothing", nothing)
    assert finding.outcome is Outcome.PASS
    assert "the losses are not known" in finding.sentence


def test_an_infinite_loss_fails_unless_a_scaler_leaves_the_step_out(tmp_path: Path) -> None:
    def scaled(rank: int, table: np.ndarray) -> None:
        lost_from(8, np.inf)(rank, table)
        table["flags"] |= int(StepFlag.SCALED)

    infinite = look(NonFinite(), tmp_path / "inf", FakeScript(steps=lost_from(8, np.inf)))

    assert infinite.outcome is Outcome.FAIL
    assert "in epoch 2, step 2" in infinite.sentence
    assert look(NonFinite(), tmp_path / "scaled", FakeScript(steps=scaled)).outcome is Outcome.PASS


def test_a_weight_that_is_not_finite_is_named_without_any_known_loss(tmp_path: Path) -> None:
    script = FakeScript(steps=lost_from(1), state=state_with(2, HEAD))
    finding = look(NonFinite(), tmp_path, script)

    assert finding.outcome is Outcome.FAIL
    assert "parameter 'head.weight' is not finite in epoch 1, step 2" in finding.sentence


def test_a_mask_that_is_infinite_from_the_start_is_no_fault(tmp_path: Path) -> None:
    mask = (TensorKind.BUFFER, "mask")
    always = FakeScript(state=state_with(0, mask))
    later = FakeScript(state=state_with(2, mask))

    assert look(NonFinite(), tmp_path / "always", always).outcome is Outcome.PASS
    assert look(NonFinite(), tmp_path / "later", later).outcome is Outcome.FAIL


def test_a_reported_loss_that_is_not_finite_fails_and_another_figure_does_not(
    tmp_path: Path,
) -> None:
    loss = FakeScript(more=reporting({0: {"val_loss": None}}))
    ratio = FakeScript(more=reporting({0: {"psnr": None}}))

    assert "the reported val_loss" in look(NonFinite(), tmp_path / "loss", loss).sentence
    assert look(NonFinite(), tmp_path / "ratio", ratio).outcome is Outcome.PASS


def test_without_losses_and_states_it_is_undecided(tmp_path: Path) -> None:
    def change(_rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, SnapshotRecord) else record

    script = FakeScript(change=change, steps=lambda _rank, table: table["loss"].fill(np.nan))

    assert look(NonFinite(), tmp_path, script).outcome is Outcome.UNDECIDED


# --- unstable-loss


def rising(_rank: int, table: np.ndarray) -> None:
    num = len(table)
    table["loss"] = np.where(np.arange(num) < 2 * num // 3, 0.5, 1.0)
    table["loss"] += np.linspace(0, 0.01, num)


def test_steps_are_enough_without_any_finished_epoch(tmp_path: Path) -> None:
    def change(_rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, EpochRecord) else record

    finding = look(UnstableLoss(), tmp_path, FakeScript(change=change, **LONG))

    assert finding.outcome is Outcome.PASS


def test_a_rising_loss_is_named_with_its_epochs(tmp_path: Path) -> None:
    finding = look(UnstableLoss(), tmp_path, FakeScript(steps=rising, **LONG))

    assert finding.outcome is Outcome.FAIL
    assert "rose again from 0.502 in epoch 1 to 1.01 in epoch 3" in finding.sentence


def test_a_script_of_one_epoch_is_looked_at_in_fifths(tmp_path: Path) -> None:
    one_epoch: dict[str, Any] = {"num_epochs": 1, "num_samples": 480}
    falling = look(UnstableLoss(), tmp_path / "falling", FakeScript(**one_epoch))
    finding = look(UnstableLoss(), tmp_path / "rising", FakeScript(steps=rising, **one_epoch))

    assert falling.outcome is Outcome.PASS
    assert finding.outcome is Outcome.FAIL
    assert "in fifth 1 to 1.01 in fifth 5" in finding.sentence


def test_an_epoch_left_after_one_step_is_no_obstacle(tmp_path: Path) -> None:
    def steps(_rank: int, table: np.ndarray) -> None:
        table["epoch"][-1] = 3

    assert look(UnstableLoss(), tmp_path, FakeScript(steps=steps, **LONG)).outcome is Outcome.PASS


def test_the_losses_of_a_gan_are_not_judged(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        rising(rank, table)
        table["optimizer"] = np.arange(len(table)) % 2

    finding = look(UnstableLoss(), tmp_path, FakeScript(steps=steps, **LONG))

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def test_two_optimizers_behind_one_backward_have_one_loss(tmp_path: Path) -> None:
    def steps(_rank: int, table: np.ndarray) -> None:
        table["optimizer"][1::2] = 1
        table["num_backwards"][1::2] = 0
        table["loss"][1::2] = np.nan

    script = FakeScript(steps=steps, num_samples=320)

    assert look(UnstableLoss(), tmp_path, script).outcome is Outcome.PASS


def test_an_unknown_loss_is_not_judged(tmp_path: Path) -> None:
    script = FakeScript(steps=lambda _rank, table: table["loss"].fill(np.nan), **LONG)
    finding = look(UnstableLoss(), tmp_path, script)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def test_without_steps_evidence_is_missing(tmp_path: Path) -> None:
    def change(_rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, StepsRecord) else record

    finding = look(UnstableLoss(), tmp_path, FakeScript(change=change))

    assert finding.is_evidence_missing


def test_steps_unknown_on_one_rank_are_those_of_the_other(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        if rank == 1:
            table["loss"] = np.nan

    assert look(UnstableLoss(), tmp_path, FakeScript(steps=steps, **LONG)).outcome is Outcome.PASS


def test_the_samples_of_a_rank_weigh_its_loss(tmp_path: Path) -> None:
    """A rank that never saw a loader counts as the others do, step by step."""

    def steps(_rank: int, table: np.ndarray) -> None:
        table["num_samples"] = -1

    finding = look(UnstableLoss(), tmp_path, FakeScript(steps=steps, **LONG))

    assert msgspec.to_builtins(finding.outcome) == "pass"
