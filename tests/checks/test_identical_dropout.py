from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.identical_dropout import IdenticalDropout
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.observations import ProbeRecord
from scaleproof.verdict.run_check import run_check


def judge(path: Path, script: FakeScript) -> Judgement:
    check = IdenticalDropout()
    return check.judge(check.measure(build_observed(path, script)))


def drawing(
    states_of: Callable[[int, int], tuple[str, ...]], *, inputs: str | None = None, **script: Any
) -> FakeScript:
    """``states_of(rank, step)``: before and after forward."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if not isinstance(record, ProbeRecord):
            return record
        return msgspec.structs.replace(
            record,
            forward_random_states=states_of(rank, record.step),
            inputs_digest=record.inputs_digest if inputs is None else inputs,
        )

    return FakeScript(change=change, **script)


def alike(_rank: int, step: int) -> tuple[str, ...]:
    return f"before {step}", f"after {step}"


def own(rank: int, step: int) -> tuple[str, ...]:
    return f"{rank} before {step}", f"{rank} after {step}"


def test_a_forward_that_draws_nothing_passes(tmp_path: Path) -> None:
    finding = run_check(IdenticalDropout(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS
    assert "draws no random numbers" in finding.sentence


def test_the_same_masks_on_both_ranks_fail(tmp_path: Path) -> None:
    judgement = judge(tmp_path, drawing(alike))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, step 1: ranks 0 and 1 began forward with the same random state, so their "
        "dropout masks are the same (in each of 3 probed steps)."
    )
    assert "seed + rank" in judgement.remedy


def test_masks_of_their_own_pass(tmp_path: Path) -> None:
    judgement = judge(tmp_path, drawing(own))

    assert judgement.outcome is Outcome.PASS
    assert "differ between ranks (3 probed steps)" in judgement.sentence


def test_exactly_one_step_of_its_own_is_enough_to_pass(tmp_path: Path) -> None:
    script = drawing(lambda rank, step: own(rank, step) if step == 3 else alike(rank, step))

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_two_of_three_ranks_are_named(tmp_path: Path) -> None:
    script = drawing(lambda rank, step: own(min(rank, 1), step), num_ranks=3, num_samples=72)

    assert "ranks 1 and 2 began forward" in judge(tmp_path, script).sentence


def test_ranks_with_the_same_inputs_are_parts_of_one_model(tmp_path: Path) -> None:
    assert judge(tmp_path, drawing(alike, inputs="same")).outcome is Outcome.PASS


def test_a_forward_that_was_never_seen_is_undecided(tmp_path: Path) -> None:
    judgement = judge(tmp_path, drawing(lambda _rank, _step: ()))

    assert judgement.outcome is Outcome.UNDECIDED


def test_without_probes_evidence_is_missing(tmp_path: Path) -> None:
    script = FakeScript(
        change=lambda _rank, record: None if isinstance(record, ProbeRecord) else record
    )
    finding = run_check(IdenticalDropout(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert finding.is_evidence_missing


def drawing_items(
    rows_of: Callable[[int, int], tuple[tuple[int, str], ...]], **script: Any
) -> FakeScript:
    """``rows_of(rank, step)``: what a step of 4 items drew outside of forward."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, CloseUpRecord):
            return msgspec.structs.replace(record, drawn_rows=rows_of(rank, record.step))
        if isinstance(record, ProbeRecord) and "inputs" in script:
            return msgspec.structs.replace(record, inputs_digest=script["inputs"])
        return record

    rest = {name: value for name, value in script.items() if name != "inputs"}
    return FakeScript(change=change, is_checked=True, **rest)


def test_the_same_noise_for_the_items_of_both_ranks_fails(tmp_path: Path) -> None:
    judgement = judge(tmp_path, drawing_items(lambda rank, step: ((4, f"noise {step}"),)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, step 1: ranks 0 and 1 drew the same random numbers for the items of their "
        "batches, noise for one (in each of 3 probed steps)."
    )


def test_noise_of_each_rank_passes(tmp_path: Path) -> None:
    judgement = judge(tmp_path, drawing_items(lambda rank, step: ((4, f"{rank} noise {step}"),)))

    assert judgement.outcome is Outcome.PASS
    assert "drawn for the items of a batch differ between ranks (3 probed steps)" in (
        judgement.sentence
    )


def test_two_views_of_each_item_count_as_items(tmp_path: Path) -> None:
    judgement = judge(tmp_path, drawing_items(lambda rank, step: ((8, f"noise {step}"),)))

    assert judgement.outcome is Outcome.FAIL


def test_what_is_drawn_for_the_whole_batch_may_be_shared(tmp_path: Path) -> None:
    script = drawing_items(lambda rank, step: ((2, f"size {step}"), (3, f"crop {step}")))

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_one_draw_of_each_ranks_own_is_enough(tmp_path: Path) -> None:
    script = drawing_items(lambda rank, step: ((4, f"time {step}"), (8, f"{rank} noise {step}")))

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_the_same_noise_now_and_then_passes(tmp_path: Path) -> None:
    def rows(rank: int, step: int) -> tuple[tuple[int, str], ...]:
        return ((4, f"{rank if step == 3 else 0} noise {step}"),)

    assert judge(tmp_path, drawing_items(rows)).outcome is Outcome.PASS


def test_the_same_noise_for_the_same_inputs_is_not_this_fault(tmp_path: Path) -> None:
    script = drawing_items(lambda rank, step: ((4, f"noise {step}"),), inputs="same")

    assert judge(tmp_path, script).outcome is Outcome.PASS
