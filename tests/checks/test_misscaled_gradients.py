from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from observed import REPLAYS, FakeReplay, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.misscaled_gradients import MisscaledGradients
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.close_ups import LossArrival, ReplayName
from scaleproof.evidence.observations import ProbeRecord, RandomSource
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

Gradient = Callable[[FakeScript, int], np.ndarray]
SOUND = FakeScript(is_checked=True, replays=REPLAYS)


def finding(folder: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = MisscaledGradients(**thresholds)  # type: ignore[arg-type]
    return run_check(check, build_observed(folder, script), blocks=True)


def reference(factor: float | Callable[[int], float]) -> dict[ReplayName, FakeReplay]:
    """One device's gradient: the mean over ranks, over ``factor`` (by step)."""

    def gradient(script: FakeScript, step: int) -> np.ndarray:
        mean = np.mean([script.local(script, rank, step) for rank in range(script.num_ranks)], 0)
        return mean / (factor(step) if callable(factor) else factor)

    return {
        "union": FakeReplay(gradient=gradient),
        "reordered": FakeReplay(gradient=gradient, noise=1e-7),
    }


def losses(**fields: object) -> Callable[[FakeScript, int, int], tuple[LossArrival, ...]]:
    def arrivals(script: FakeScript, rank: int, step: int) -> tuple[LossArrival, ...]:
        found = FakeScript().arrivals(script, rank, step)
        return tuple(msgspec.structs.replace(arrival, **fields) for arrival in found)

    return arrivals


def unknown_reduction(rank: int, record: AnyRecord) -> AnyRecord:
    if isinstance(record, ProbeRecord):
        return msgspec.structs.replace(record, loss_reduction="unknown")
    return record


def test_the_size_of_one_device_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, SOUND)

    assert found.outcome is Outcome.PASS
    assert found.sentence.startswith(
        "At 3 compared steps the gradient that was used has the size of that of one device on the "
        "same items (largest difference "
    )


def test_a_loss_times_the_number_of_ranks_fails_with_the_factor_and_the_line(
    tmp_path: Path,
) -> None:
    found = finding(tmp_path, replace(SOUND, num_ranks=4, replays=reference(4.0)))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, step 1, SGD of train.py:41, the backward at train.py:61: the gradient "
        "that was used is 4 times that of one device on the same items (the number of ranks, 4), "
        "at 3 of 3 compared steps."
    )
    assert "the learning rate is 4 times" in found.remedy


def divided(number: float) -> FakeScript:
    """On both sides; a rank's batch has 8 samples, that of both 16."""

    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        return np.mean(locals_, axis=0) / number

    replays = {
        "union": FakeReplay(final=lambda step, gradient: gradient / number),
        "reordered": FakeReplay(final=lambda step, gradient: gradient / number, noise=1e-7),
    }
    return replace(SOUND, batch_size=8, final=final, replays=replays)


@pytest.mark.parametrize(("number", "whose"), [(8, "a rank"), (16, "all ranks")])
def test_a_mean_divided_by_the_samples_on_both_sides_fails(
    tmp_path: Path, number: int, whose: str
) -> None:
    found = finding(tmp_path, divided(number))

    assert found.outcome is Outcome.FAIL
    assert (
        f"the gradient that was used is 1/{number} of the mean of the ranks' ({number} samples are "
        f"the batch of {whose}), at 3 of 3 compared steps: the loss is a mean"
    ) in found.sentence


def test_another_division_on_both_sides_and_that_of_a_sum_pass(tmp_path: Path) -> None:
    assert finding(tmp_path / "other", divided(7)).outcome is Outcome.PASS
    summed = replace(divided(8), change=unknown_reduction)
    assert finding(tmp_path / "sum", summed).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1 / 3, "1 over the number of ranks, 3"),
        (2.0, "the number of backwards of a step, 2"),
        (6.0, "3 ranks times 2 backwards"),
        (1 / 6, "1 over 3 ranks times 2 backwards"),
        (1 / 9, "1 over the number of ranks squared, 3²"),
        (12.0, "the 12 samples of all ranks"),
    ],
)
def test_factors_have_names(tmp_path: Path, factor: float, words: str) -> None:
    script = replace(SOUND, num_ranks=3, num_backwards=2, replays=reference(factor))
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.FAIL
    assert f"({words}" in found.sentence


def test_a_factor_of_no_name_fails_with_its_number(tmp_path: Path) -> None:
    constant = finding(tmp_path / "1", replace(SOUND, replays=reference(1.37)))
    varying = finding(
        tmp_path / "2", replace(SOUND, replays=reference(lambda step: 1.2 + step / 10))
    )

    assert (constant.outcome, varying.outcome) == (Outcome.FAIL, Outcome.FAIL)
    assert "is 1.37 times that of one device on the same items, at" in constant.sentence
    assert "is 1.3 to 1.5 times" in varying.sentence


def test_a_plain_sum_keeps_the_size_of_one_batch(tmp_path: Path) -> None:
    summed = replace(
        SOUND,
        replays=reference(0.5),
        arrivals=losses(reduction="sum", weight=4.0),
        change=unknown_reduction,
    )
    found = finding(tmp_path / "sum", summed)
    assert found.outcome is Outcome.PASS
    assert "The loss is a sum over its items" in found.sentence
    assert "1/2 of one device's" in found.sentence

    # Divided by the items of all ranks, it must be multiplied by the number of ranks.
    divided = replace(summed, arrivals=losses(reduction="sum", weight=0.5))
    assert finding(tmp_path / "divided", divided).outcome is Outcome.FAIL
    # Twice the sum of one device is no matter of sums.
    twice = replace(summed, replays=reference(2.0))
    assert finding(tmp_path / "twice", twice).outcome is Outcome.FAIL


def test_a_sum_over_the_number_of_backwards_is_a_plain_one(tmp_path: Path) -> None:
    script = replace(
        SOUND, num_backwards=2, replays=reference(0.5), change=unknown_reduction,
        arrivals=losses(reduction="sum", weight=2.0),
    )  # fmt: skip
    assert finding(tmp_path / "1", script).outcome is Outcome.PASS
    # As many items as backwards: it may as well be a mean.
    script = replace(script, num_backwards=4, arrivals=losses(reduction="sum", weight=1.0))
    assert finding(tmp_path / "2", script).outcome is Outcome.UNDECIDED


def test_one_over_n_is_undecided_where_no_loss_was_seen(tmp_path: Path) -> None:
    unseen = replace(
        SOUND,
        replays=reference(0.5),
        arrivals=lambda script, rank, step: (),
        change=unknown_reduction,
    )
    found = finding(tmp_path / "unseen", unseen)
    assert found.outcome is Outcome.UNDECIDED
    assert "summed over its items" in found.sentence

    mean = replace(unseen, change=FakeScript().change)
    assert finding(tmp_path / "mean", mean).outcome is Outcome.FAIL
    twice = replace(unseen, replays=reference(2.0))
    assert finding(tmp_path / "twice", twice).outcome is Outcome.FAIL


def test_one_compared_step_is_too_few(tmp_path: Path) -> None:
    found = finding(tmp_path, replace(SOUND, probed_steps=(1,), replays=reference(2.0)))

    assert found.outcome is Outcome.UNDECIDED
    assert "at 1 of 1 compared step." in found.sentence


def test_a_single_step_of_many_is_a_remark(tmp_path: Path) -> None:
    once = reference(lambda step: 2.0 if step == 6 else 1.0)
    script = replace(SOUND, probed_steps=tuple(range(1, 13)), replays=once)
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.PASS
    assert "At step 6 alone it is 2 times as large" in found.sentence


def test_exactly_at_the_share_fails_and_below_it_passes(tmp_path: Path) -> None:
    three = reference(lambda step: 2.0 if step % 4 == 0 else 1.0)
    script = replace(SOUND, probed_steps=tuple(range(1, 13)), replays=three)

    assert finding(tmp_path / "1", script).outcome is Outcome.FAIL
    assert finding(tmp_path / "2", script, min_share=0.26).outcome is Outcome.PASS


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    script = replace(SOUND, replays=reference(1.25))

    assert finding(tmp_path / "1", script, tolerance=0.25 + 1e-9).outcome is Outcome.PASS
    assert finding(tmp_path / "2", script, tolerance=0.25 - 1e-9).outcome is Outcome.FAIL


def test_the_first_tensor_in_the_order_of_backward_is_named(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        return np.mean(locals_, axis=0) * np.array([2.0, 2.0, 1.0])[:, None]

    found = finding(tmp_path, replace(SOUND, final=final))

    assert found.outcome is Outcome.FAIL
    assert (
        "tensor 'body.bias' is used with 2 times the gradient that one device computes on the same "
        "items (the number of ranks, 2), the first in the order of backward of 2, while 1 tensor "
        "agree" in found.sentence
    )


def test_what_is_coupled_or_random_is_not_compared(tmp_path: Path) -> None:
    def other(script: FakeScript, step: int) -> np.ndarray:
        return np.random.default_rng(step).normal(size=(3, 64))

    coupled = replace(SOUND, replays={"union": FakeReplay(gradient=other)})
    random = replace(coupled, drawn=lambda rank, step: (RandomSource.PYTHON,))
    found = finding(tmp_path / "coupled", coupled)
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "batch-coupled-operation" in found.sentence
    assert not found.is_evidence_missing
    found = finding(tmp_path / "random", random)
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "random numbers" in found.sentence


def test_without_a_replay_it_says_why(tmp_path: Path) -> None:
    observed = finding(tmp_path / "observed", FakeScript())
    none = finding(tmp_path / "none", replace(SOUND, replays={}))
    failed = replace(REPLAYS["union"], num_steps=0, why_not="the loss is made by LBFGS")
    why = finding(tmp_path / "why", replace(SOUND, replays={"union": failed}))

    assert {f.outcome for f in (observed, none, why)} == {Outcome.NOT_APPLICABLE}
    assert not any(f.is_evidence_missing for f in (observed, none, why))
    assert "closer look" in observed.sentence
    assert none.sentence == "This needs a replay on one process (scaleproof check)."
    assert why.sentence == (
        "This needs a replay on one process (scaleproof check): the loss is made by LBFGS."
    )


def test_a_replay_that_broke_off_is_judged_as_far_as_it_came_and_says_so(tmp_path: Path) -> None:
    part = replace(REPLAYS["union"], num_steps=2, why_not="batches of unequal length")
    found = finding(tmp_path, replace(SOUND, replays={"union": part}))

    assert found.outcome is Outcome.PASS
    assert "At 2 compared steps" in found.sentence
    assert "Not replayed to its end: observed-seed0: batches of unequal length." in found.sentence
