from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import EVALUATION, FakeReplay, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.undivided_accumulation import UndividedAccumulation
from scaleproof.evidence.close_ups import CloseUpRecord, LossArrival, ReplayName
from scaleproof.evidence.observations import PassRecord
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check


def finding(path: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = UndividedAccumulation(**thresholds)
    return run_check(check, build_observed(path, script), blocks=True)


def arrival(backward: int, weight: float | None, **changes: Any) -> LossArrival:
    usual = {"function": "cross_entropy", "where": "train.py:60", "reduction": "mean"}
    return LossArrival(
        backward=backward, num_items=changes.pop("num_items", 4), weight=weight, **usual | changes
    )


def script(num_backwards: int, *arrivals: LossArrival, **changes: Any) -> FakeScript:
    return FakeScript(
        is_checked=True,
        num_backwards=num_backwards,
        arrivals=lambda script, rank, step: arrivals,
        **changes,
    )


def of_weights(*weights: float | None, **changes: Any) -> FakeScript:
    return script(len(weights), *(arrival(i, w) for i, w in enumerate(weights)), **changes)


def test_divided_losses_pass(tmp_path: Path) -> None:
    found = finding(tmp_path, of_weights(0.25, 0.25, 0.25, 0.25))

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "The losses of 4 backwards, which make a step (SGD of train.py:41), are divided by their "
        "number, at 3 steps."
    )


def test_undivided_losses_fail_and_name_the_line(tmp_path: Path) -> None:
    found = finding(tmp_path, of_weights(1.0, 1.0, 1.0))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, step 1: 3 backwards add up (SGD of train.py:41), and cross_entropy of "
        "train.py:60 counts 1, 1 and 1 in them, expected 1 altogether: the gradient is 3 times too "
        "large; so at 3 of 3 steps."
    )
    assert "train.py:60" in found.remedy


def test_weights_by_tokens_pass(tmp_path: Path) -> None:
    assert finding(tmp_path, of_weights(0.7, 0.2, 0.1)).outcome is Outcome.PASS


def test_weights_by_the_tokens_of_all_ranks_add_up_over_ranks(tmp_path: Path) -> None:
    def arrivals(script: FakeScript, rank: int, step: int) -> tuple[LossArrival, ...]:
        return tuple(arrival(i, w) for i, w in enumerate([(0.9, 0.5), (0.2, 0.4)][rank]))

    found = finding(tmp_path, FakeScript(is_checked=True, num_backwards=2, arrivals=arrivals))

    assert found.outcome is Outcome.PASS


def test_exactly_at_the_tolerance_of_one(tmp_path: Path) -> None:
    at = of_weights(1.25, 1.25)

    assert finding(tmp_path / "at", at, tolerance=0.25).outcome is Outcome.FAIL
    found = finding(tmp_path / "below", at, tolerance=float(np.nextafter(0.25, 0)))
    assert found.outcome is Outcome.UNDECIDED
    assert "neither 1 altogether nor 1 each" in found.sentence


def test_one_step_is_too_little(tmp_path: Path) -> None:
    found = finding(tmp_path, of_weights(1.0, 1.0, probed_steps=(2,)))

    assert found.outcome is Outcome.PASS
    assert "1 of them odd" in found.sentence


@pytest.mark.parametrize("num_wrong", [1, 2])
def test_a_quarter_of_the_steps_is_enough(tmp_path: Path, num_wrong: int) -> None:
    def arrivals(script: FakeScript, rank: int, step: int) -> tuple[LossArrival, ...]:
        return tuple(arrival(i, 1.0 if step <= num_wrong else 0.5) for i in range(2))

    eight = tuple(range(1, 9))
    made = FakeScript(is_checked=True, num_backwards=2, arrivals=arrivals, probed_steps=eight)
    outcome = finding(tmp_path, made).outcome

    assert outcome is (Outcome.FAIL if num_wrong == 2 else Outcome.PASS)


def test_the_ragged_end_of_an_epoch_is_no_fault(tmp_path: Path) -> None:
    """Two of four microbatches are left, each divided by four."""

    def arrivals(script: FakeScript, rank: int, step: int) -> tuple[LossArrival, ...]:
        return tuple(arrival(i, 0.25) for i in range(2 if step == 3 else 4))

    def steps(rank: int, table: np.ndarray) -> None:
        table["num_backwards"][2] = table["num_batches"][2] = 2

    def change(rank: int, record: Any) -> Any:
        is_probe = hasattr(record, "num_backwards") and record.step == 3
        return msgspec.structs.replace(record, num_backwards=2) if is_probe else record

    made = FakeScript(
        is_checked=True, num_backwards=4, arrivals=arrivals, steps=steps, change=change
    )
    found = finding(tmp_path, made)

    assert found.outcome is Outcome.PASS
    assert "odd" not in found.sentence


def test_gradients_divided_before_the_step_are_as_good(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        return np.mean(locals_, axis=0) / 4

    assert finding(tmp_path, of_weights(1, 1, 1, 1, final=final)).outcome is Outcome.PASS


def test_plain_sums_need_no_division(tmp_path: Path) -> None:
    sums = [arrival(i, 4.0, reduction="sum") for i in range(2)]
    found = finding(tmp_path, script(2, *sums))

    assert found.outcome is Outcome.PASS
    assert "sums over their items" in found.sentence


def test_a_sum_divided_by_the_backwards_passes(tmp_path: Path) -> None:
    sums = [arrival(i, 8 / 3, reduction="sum", num_items=8) for i in range(3)]
    found = finding(tmp_path, script(3, *sums))

    assert found.outcome is Outcome.PASS
    assert "sums over their items, divided by their number, at 3 steps." in found.sentence


def test_a_sum_divided_by_its_items_alone_fails(tmp_path: Path) -> None:
    sums = [arrival(i, 1.0, reduction="sum", num_items=8) for i in range(3)]

    assert finding(tmp_path, script(3, *sums)).outcome is Outcome.FAIL


def test_a_sum_of_as_many_items_as_backwards_is_open(tmp_path: Path) -> None:
    """Divided by the one or by the other: 1 each."""
    sums = [arrival(i, 1.0, reduction="sum", num_items=3) for i in range(3)]

    assert finding(tmp_path, script(3, *sums)).outcome is Outcome.UNDECIDED


def replayed(of_ranks: float, of_one: float, num_backwards: int = 2) -> FakeScript:
    def arrivals(script: FakeScript, rank: int, step: int) -> tuple[LossArrival, ...]:
        return tuple(arrival(i, of_one) for i in range(num_backwards))

    replays: dict[ReplayName, FakeReplay] = {"union": FakeReplay(arrivals=arrivals)}
    return of_weights(*[of_ranks] * num_backwards, replays=replays)


def test_a_factor_of_the_ranks_is_not_one_of_the_backwards(tmp_path: Path) -> None:
    """``loss / 2 * num_ranks``: one device shows that it is divided (see misscaled-gradients)."""
    assert finding(tmp_path, replayed(1.0, 0.5)).outcome is Outcome.PASS


def test_one_device_shows_what_a_factor_of_the_ranks_hides(tmp_path: Path) -> None:
    found = finding(tmp_path, replayed(2.0, 1.0))

    assert found.outcome is Outcome.FAIL
    assert "and on one device, cross_entropy of train.py:60 counts 1 and 1" in found.sentence


def test_a_constant_number_of_a_rank_s_items_is_its_mean(tmp_path: Path) -> None:
    """``loss / 8`` of eight items a rank: on one device with all items it is the ranks' number."""
    assert finding(tmp_path, replayed(1.0, 3.0, num_backwards=5)).outcome is Outcome.FAIL


def test_both_sides_undivided_fail(tmp_path: Path) -> None:
    assert finding(tmp_path, replayed(1.0, 1.0)).outcome is Outcome.FAIL


def one_batch(rank: int, table: np.ndarray) -> None:
    table["num_batches"] = 1


def no_loader(rank: int, table: np.ndarray) -> None:
    table["num_batches"], table["num_samples"] = 0, -1


def test_two_backwards_on_one_batch_are_no_accumulation(tmp_path: Path) -> None:
    found = finding(tmp_path, of_weights(1.0, 1.0, steps=one_batch))

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert not found.is_evidence_missing


def test_a_loader_that_looks_one_batch_ahead_shifts_single_steps_only(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        table["num_batches"][0], table["num_batches"][-1] = 3, 1

    assert finding(tmp_path, of_weights(1.0, 1.0, steps=steps)).outcome is Outcome.FAIL


def test_without_a_loader_it_is_open_unless_divided(tmp_path: Path) -> None:
    found = finding(tmp_path / "whole", of_weights(1.0, 1.0, steps=no_loader))
    assert found.outcome is Outcome.UNDECIDED
    assert "if each ran on a batch" in found.sentence

    assert finding(tmp_path / "half", of_weights(0.5, 0.5, steps=no_loader)).outcome is Outcome.PASS


def test_two_losses_of_one_step_are_no_accumulation(tmp_path: Path) -> None:
    """Labelled and unlabelled batches, each with a loss of its own."""
    losses = arrival(0, 1.0), arrival(1, 1.0, where="train.py:70")
    found = finding(tmp_path, script(2, *losses))

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "a loss of its own" in found.sentence


def test_a_batch_from_each_of_two_loaders_may_be_a_term_each(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        is_other = isinstance(record, PassRecord) and record.loader == EVALUATION
        if not is_other:
            return record
        first = 6 * record.epoch
        return msgspec.structs.replace(
            record, use="training", first_step=first, last_step=first + 6
        )

    for weight, outcome in ((1.0, Outcome.UNDECIDED), (0.5, Outcome.PASS)):
        found = finding(tmp_path / str(weight), of_weights(weight, weight, change=change))
        assert found.outcome is outcome


@pytest.mark.parametrize(("divisor", "outcome"), [(1, "fail"), (2, "pass")])
def test_an_auxiliary_loss_does_not_hide_the_principal_one(
    tmp_path: Path, divisor: int, outcome: str
) -> None:
    losses = [
        arrival(i, weight / divisor, where=where)
        for i in range(2)
        for weight, where in ((1.0, "train.py:60"), (0.5, "train.py:61"))
    ]

    assert finding(tmp_path, script(2, *losses)).outcome == outcome


def test_a_constant_coefficient_is_no_evidence(tmp_path: Path) -> None:
    assert finding(tmp_path, of_weights(0.7, 0.7)).outcome is Outcome.UNDECIDED


def test_calls_that_can_be_read_both_ways_leave_it_open(tmp_path: Path) -> None:
    """A call for each of two samples, each half: a mean over samples, or over microbatches."""
    calls = [arrival(i, 0.5) for i in range(2) for _ in range(2)]

    assert finding(tmp_path, script(2, *calls)).outcome is Outcome.UNDECIDED


def test_a_loss_that_is_not_seen_is_undecided(tmp_path: Path) -> None:
    for name, made in (("none", script(2)), ("infinite", of_weights(None, None))):
        assert finding(tmp_path / name, made).outcome is Outcome.UNDECIDED


def test_steps_of_one_backward_and_observed_only_runs_are_not_asked(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        return None if isinstance(record, CloseUpRecord) else record

    for name, made in (("one", of_weights(1.0)), ("observed", of_weights(1, 1, change=change))):
        found = finding(tmp_path / name, made)
        assert found.outcome is Outcome.NOT_APPLICABLE
        assert not found.is_evidence_missing
