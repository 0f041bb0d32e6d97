from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.buffer_drift import BufferDrift
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import (
    Moment,
    PassRecord,
    ProcessRecord,
    SnapshotRecord,
)
from scaleproof.evidence.records import TensorKind
from scaleproof.verdict.run_check import run_check

SOUND = FakeScript().state
MEAN = (TensorKind.BUFFER, "norm.running_mean")
CODEBOOK = (TensorKind.BUFFER, "codebook")
State = dict[tuple[TensorKind, str], np.ndarray]
Change = Callable[[int, AnyRecord], AnyRecord | None]


def apart(
    *moments: Moment, key: tuple[TensorKind, str] = MEAN, factor: float = 1.5
) -> Callable[[FakeScript, int, int, Moment], State]:
    """Rank 1 holds something else of one buffer at some moments."""

    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = SOUND(script, rank, steps_done, moment)
        tensors.setdefault(key, np.arange(1.0, 6.0))
        if rank == 1 and moment in moments:
            tensors[key] = tensors[key] * factor
        return tensors

    return state


def wrapper(
    *, broadcasts: bool | None, through: bool | None, only_rank_0_evaluates: bool = False
) -> Change:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        match record:
            case ProcessRecord():
                return msgspec.structs.replace(record, broadcasts_buffers=broadcasts)
            case SnapshotRecord(moment=Moment.EVALUATION):
                if only_rank_0_evaluates and rank:
                    return None
                return msgspec.structs.replace(record, through_wrapper=through)
            case PassRecord(use="evaluation") if only_rank_0_evaluates and rank:
                return None
            case _:
                return record

    return change


def judge(path: Path, script: FakeScript, **thresholds: float) -> Judgement:
    check = BufferDrift(**thresholds)
    return check.judge(check.measure(build_observed(path, script)))


EVALUATION_AND_END = (Moment.EVALUATION, Moment.END)


def test_equal_buffers_pass(tmp_path: Path) -> None:
    finding = run_check(BufferDrift(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS
    assert "(4 moments)" in finding.sentence


@pytest.mark.parametrize("parallelism", ["none", "fsdp2"])
def test_ranks_that_evaluate_with_their_own_where_nobody_broadcasts_fail(
    tmp_path: Path, parallelism: str
) -> None:
    script = FakeScript(
        parallelism=parallelism,
        state=apart(*EVALUATION_AND_END),
        change=wrapper(broadcasts=None, through=False),
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 1, evaluating after step 6: buffer 'norm.running_mean' differs from "
        "rank 0 by 3.3e-01 of its norm (tolerance 1e-06), and each rank evaluates with its own."
    )
    assert "SyncBatchNorm" in judgement.remedy


def test_ddp_that_does_not_broadcast_fails(tmp_path: Path) -> None:
    script = FakeScript(
        state=apart(*EVALUATION_AND_END), change=wrapper(broadcasts=False, through=True)
    )

    assert judge(tmp_path, script).outcome is Outcome.FAIL


def test_an_evaluation_past_the_wrapper_gets_no_broadcast(tmp_path: Path) -> None:
    script = FakeScript(
        state=apart(*EVALUATION_AND_END), change=wrapper(broadcasts=True, through=False)
    )

    assert judge(tmp_path, script).outcome is Outcome.FAIL


def test_ddp_that_broadcasts_with_the_forward_passes(tmp_path: Path) -> None:
    script = FakeScript(
        state=apart(*EVALUATION_AND_END), change=wrapper(broadcasts=True, through=True)
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.PASS
    assert "DDP sends rank 0's along" in judgement.sentence


def test_a_teachers_forward_in_the_middle_of_training_is_no_evaluation(tmp_path: Path) -> None:
    change = wrapper(broadcasts=True, through=False)

    def without_evaluations(rank: int, record: AnyRecord) -> AnyRecord | None:
        is_evaluation = isinstance(record, PassRecord) and record.use == "evaluation"
        return None if is_evaluation else change(rank, record)

    script = FakeScript(state=apart(*EVALUATION_AND_END), change=without_evaluations)

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_one_rank_that_evaluates_alone_uses_what_is_saved(tmp_path: Path) -> None:
    change = wrapper(broadcasts=None, through=False, only_rank_0_evaluates=True)
    statistics = FakeScript(parallelism="none", state=apart(*EVALUATION_AND_END), change=change)
    codebook = FakeScript(parallelism="none", state=apart(Moment.END, key=CODEBOOK), change=change)
    judgement = judge(tmp_path / "codebook", codebook)

    assert judge(tmp_path / "statistics", statistics).outcome is Outcome.PASS
    assert judgement.outcome is Outcome.FAIL
    assert "at the end after step 18: buffer 'codebook'" in judgement.sentence
    assert "before they are saved" in judgement.sentence


def test_an_unknown_wrapper_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(
        state=apart(*EVALUATION_AND_END), change=wrapper(broadcasts=None, through=None)
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "was not seen" in judgement.sentence


def test_buffers_that_differ_between_steps_only_pass(tmp_path: Path) -> None:
    script = FakeScript(parallelism="none", state=apart(Moment.START, Moment.STEP))

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    script = FakeScript(parallelism="none", state=apart(Moment.END, factor=0.75))

    assert judge(tmp_path / "at", script, tolerance=0.25).outcome is Outcome.PASS
    beyond = judge(tmp_path / "beyond", script, tolerance=float(np.nextafter(0.25, 0)))
    assert beyond.outcome is Outcome.FAIL


def test_caches_of_another_length_are_left_out(tmp_path: Path) -> None:
    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = SOUND(script, rank, steps_done, moment)
        tensors[TensorKind.BUFFER, "positions"] = np.arange(4.0 + rank)
        return tensors

    assert judge(tmp_path, FakeScript(parallelism="none", state=state)).outcome is Outcome.PASS


def test_a_model_without_buffers_has_none_to_drift(tmp_path: Path) -> None:
    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = SOUND(script, rank, steps_done, moment)
        del tensors[MEAN]
        return tensors

    judgement = judge(tmp_path, FakeScript(state=state))

    assert judgement.outcome is Outcome.NOT_APPLICABLE


def test_without_a_moment_to_compare_it_is_undecided(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        is_late = isinstance(record, SnapshotRecord) and record.moment in EVALUATION_AND_END
        return None if rank == 1 and is_late else record

    assert judge(tmp_path, FakeScript(change=change)).outcome is Outcome.UNDECIDED
