from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.replica_drift import ReplicaDrift
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import Moment, SnapshotRecord
from scaleproof.evidence.records import TensorKind
from scaleproof.verdict.run_check import run_check

PARAMETER, BUFFER, OPTIMIZER = TensorKind.PARAMETER, TensorKind.BUFFER, TensorKind.OPTIMIZER
SOUND = FakeScript().state
State = dict[tuple[TensorKind, str], np.ndarray]


def changed(alter: Callable[[int, int, Moment, State], None], **script: Any) -> FakeScript:
    def state(fake: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = SOUND(fake, rank, steps_done, moment)
        alter(rank, steps_done, moment, tensors)
        return tensors

    return FakeScript(state=state, **script)


def apart(
    when: Callable[[int, Moment], bool],
    *keys: tuple[TensorKind, str],
    factor: float = 1.5,
    **script: Any,
) -> FakeScript:
    """Rank 1 holds something else of ``keys`` whenever ``when(steps_done, moment)``."""

    def alter(rank: int, steps_done: int, moment: Moment, tensors: State) -> None:
        if rank == 1 and when(steps_done, moment):
            for key in keys or tensors:
                tensors[key] = tensors[key] * factor

    return changed(alter, **script)


def judge(path: Path, script: FakeScript, **thresholds: float) -> Judgement:
    check = ReplicaDrift(**thresholds)
    return check.judge(check.measure(build_observed(path, script)))


HEAD = (PARAMETER, "head.weight")


def test_equal_replicas_pass_whatever_their_buffers(tmp_path: Path) -> None:
    script = apart(lambda _steps, _moment: True, (BUFFER, "norm.running_mean"))
    finding = run_check(ReplicaDrift(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.PASS
    assert finding.sentence == "Replicas agree byte for byte (20 comparisons of tensors)."


def test_a_parameter_that_drifts_is_named_with_its_first_step(tmp_path: Path) -> None:
    judgement = judge(tmp_path, apart(lambda steps, _moment: steps >= 2, HEAD))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 1, after step 2: parameter 'head.weight' differs from rank 0 by "
        "3.3e-01 of its norm (tolerance 1e-06)."
    )
    assert ".module" in judgement.remedy


def test_weights_that_were_never_sent_differ_from_the_start(tmp_path: Path) -> None:
    judgement = judge(tmp_path, apart(lambda _s, _m: True, HEAD, parallelism="none"))

    assert judgement.outcome is Outcome.FAIL
    assert "rank 1, before the first step: parameter 'head.weight'" in judgement.sentence
    assert "broadcast" in judgement.remedy


def test_weights_sent_with_the_first_forward_pass(tmp_path: Path) -> None:
    judgement = judge(tmp_path, apart(lambda _s, moment: moment is Moment.START))

    assert judgement.outcome is Outcome.PASS


def test_weights_swapped_for_an_evaluation_pass(tmp_path: Path) -> None:
    judgement = judge(tmp_path, apart(lambda _s, moment: moment is Moment.EVALUATION))

    assert judgement.outcome is Outcome.PASS


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(lambda _s, moment: moment is Moment.STEP, id="equal at the end"),
        pytest.param(lambda steps, _m: steps not in (0, 3), id="equal at a step"),
    ],
)
def test_local_sgd_is_undecided(tmp_path: Path, when: Callable[[int, Moment], bool]) -> None:
    judgement = judge(tmp_path, apart(when, HEAD))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "they train apart and are made equal now and then" in judgement.sentence


def test_optimizer_state_alone_is_told_with_its_own_remedy(tmp_path: Path) -> None:
    script = apart(lambda steps, _m: steps > 0, (OPTIMIZER, "body.weight/exp_avg"))
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.FAIL
    assert "after step 1: optimizer state 'body.weight/exp_avg'" in judgement.sentence
    assert "loss scale" in judgement.remedy


def test_of_three_ranks_the_odd_one_is_named(tmp_path: Path) -> None:
    def change(rank: int, steps_done: int, _moment: Moment, tensors: State) -> None:
        if rank == 0 and steps_done:
            tensors[HEAD] = tensors[HEAD] * 2

    judgement = judge(tmp_path, changed(change, num_ranks=3, num_samples=72))

    assert "rank 0, after step 1" in judgement.sentence
    assert "differs from rank 1" in judgement.sentence


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    def change(rank: int, steps_done: int, _moment: Moment, tensors: State) -> None:
        tensors[HEAD] = np.full(16, 2.0 if rank == 0 or steps_done == 0 else 1.5)

    script = changed(change)

    assert judge(tmp_path / "at", script, tolerance=0.25).outcome is Outcome.PASS
    beyond = judge(tmp_path / "beyond", script, tolerance=float(np.nextafter(0.25, 0)))
    assert beyond.outcome is Outcome.FAIL


def test_ranks_with_parameters_of_their_own_hold_no_replicas(tmp_path: Path) -> None:
    def stage(rank: int, _steps: int, _moment: Moment, tensors: State) -> None:
        tensors[PARAMETER, f"stage{rank}.weight"] = tensors.pop(HEAD) * (rank + 1)

    def slices(rank: int, _steps: int, _moment: Moment, tensors: State) -> None:
        tensors[HEAD] = tensors[HEAD][: 4 + rank]

    for name, change in (("stage", stage), ("slices", slices)):
        judgement = judge(tmp_path / name, changed(change, parallelism="none"))

        assert judgement.outcome is Outcome.NOT_APPLICABLE
        assert "a part of the model" in judgement.sentence


def test_a_module_that_one_rank_has_besides_is_left_out(tmp_path: Path) -> None:
    def averaged(rank: int, _steps: int, _moment: Moment, tensors: State) -> None:
        if rank == 0:
            tensors[PARAMETER, "averaged.weight"] = np.ones(3)

    assert judge(tmp_path, changed(averaged)).outcome is Outcome.PASS


def test_shards_are_no_replicas(tmp_path: Path) -> None:
    def sharded(_rank: int, _steps: int, _moment: Moment, tensors: State) -> None:
        for key in [key for key in tensors if key[0] is not BUFFER]:
            del tensors[key]

    judgement = judge(tmp_path, changed(sharded, parallelism="fsdp2"))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert judgement.sentence == "The parameters are sharded: no rank holds a replica."


def without_end(rank: int, record: AnyRecord) -> AnyRecord | None:
    is_end = isinstance(record, SnapshotRecord) and record.moment is Moment.END
    return None if rank == 1 and is_end else record


def test_a_rank_without_its_last_state_is_undecided(tmp_path: Path) -> None:
    judgement = judge(tmp_path, FakeScript(change=without_end))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "observed-seed0, rank 1, at the end" in judgement.sentence


def test_without_any_digests_evidence_is_missing(tmp_path: Path) -> None:
    script = FakeScript(
        change=lambda _rank, record: None if isinstance(record, SnapshotRecord) else record
    )
    finding = run_check(ReplicaDrift(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert finding.is_evidence_missing


def test_the_end_is_one_moment_however_many_steps_came_before(tmp_path: Path) -> None:
    def later(rank: int, record: AnyRecord) -> AnyRecord:
        if rank == 1 and isinstance(record, SnapshotRecord) and record.moment is Moment.END:
            return msgspec.structs.replace(record, steps_done=record.steps_done + 1)
        return record

    script = apart(lambda _s, moment: moment is Moment.END, HEAD, change=later)
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.FAIL
    assert "rank 1, at the end (after step 19): parameter 'head.weight'" in judgement.sentence


def test_one_rank_has_no_replicas(tmp_path: Path) -> None:
    script = FakeScript(num_ranks=1, parallelism="none")
    finding = run_check(ReplicaDrift(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def with_teacher(
    values: Callable[[int, int], float],
    labels: Callable[[int], tuple[str, ...]] = lambda rank: ("Net (not trained).",),
    since: int = 2,
) -> FakeScript:
    """A module beside the trained one, ``values(rank, steps_done)``, known from a step on.
    ``labels``: of all such modules of a rank, which are alike."""

    def state(fake: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = dict(SOUND(fake, rank, steps_done, moment))
        if steps_done >= since:
            for label in labels(rank):
                tensors[PARAMETER, f"{label}weight"] = np.ones(8) * values(rank, steps_done)
        return tensors

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, SnapshotRecord) and record.steps_done >= since:
            return msgspec.structs.replace(record, beside=labels(rank))
        return record

    return FakeScript(state=state, change=change)


def test_a_teacher_that_all_ranks_update_alike_passes(tmp_path: Path) -> None:
    assert judge(tmp_path, with_teacher(lambda rank, steps: 1.0 + steps)).outcome is Outcome.PASS


def test_a_teacher_that_one_rank_updates_fails(tmp_path: Path) -> None:
    judgement = judge(tmp_path, with_teacher(lambda rank, steps: 1.0 + steps * (rank == 0)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith(
        "observed-seed0, rank 1, after step 2: parameter 'Net (not trained).weight' differs from "
        "rank 0 by "
    )
    assert "No optimizer trains this module" in judgement.remedy


def test_a_teacher_that_comes_close_by_itself_still_fails(tmp_path: Path) -> None:
    """An average of the trained model: what it began with fades."""
    script = with_teacher(lambda rank, steps: 1.0 + (rank if steps < 10 else 0))

    assert judge(tmp_path, script).outcome is Outcome.FAIL


def test_a_module_that_only_rank_0_has_is_not_compared(tmp_path: Path) -> None:
    script = with_teacher(
        lambda rank, steps: 1.0 + rank, lambda rank: ("Net (not trained).",) if rank == 0 else ()
    )

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_of_a_class_of_which_rank_0_has_more_none_is_compared(tmp_path: Path) -> None:
    both = ("Net (not trained).", "Net (not trained, 2).")
    script = with_teacher(
        lambda rank, steps: 1.0 + rank, lambda rank: both if rank == 0 else both[:1]
    )

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_drift_of_what_is_trained_is_told_first(tmp_path: Path) -> None:
    teacher = with_teacher(lambda rank, steps: 1.0 + rank)

    def state(fake: FakeScript, rank: int, steps_done: int, moment: Moment) -> State:
        tensors = teacher.state(fake, rank, steps_done, moment)
        if rank == 1 and steps_done >= 2:
            tensors[HEAD] = tensors[HEAD] * 1.001
        return tensors

    judgement = judge(tmp_path, FakeScript(state=state, change=teacher.change))

    assert "'head.weight' differs" in judgement.sentence
