from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.overlapping_samples import OverlappingSamples
from scaleproof.checks.unlike_model_parallel_inputs import UnlikeModelParallelInputs
from scaleproof.checks.unsynced_gradients import UnsyncedGradients
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import Moment, PassRecord, ProbeRecord, ProcessRecord
from scaleproof.verdict.run_check import run_check

Change = Callable[[int, AnyRecord], AnyRecord]
replace = msgspec.structs.replace


def peers(*groups: tuple[int, ...], inputs: Callable[[int, int], str] | None = None) -> Change:
    """Each group holds one model. ``inputs``: a digest, given (rank, step); by default that of the
    rank's group."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        group = next((group for group in groups if rank in group), ())
        if isinstance(record, ProcessRecord):
            return replace(record, model_peers=group)
        if isinstance(record, ProbeRecord):
            digest = f"{group} {record.step}" if inputs is None else inputs(rank, record.step)
            return replace(record, inputs_digest=digest)
        return record

    return change


def same(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(script.num_samples)


def by_group_of_two(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    return same(script, rank, epoch)[rank // 2 :: script.num_ranks // 2]


def own(rank: int, step: int) -> str:
    return f"{rank} {step}"


def judge(path: Path, change: Change, **script: Any) -> Judgement:
    check = UnlikeModelParallelInputs()
    study = build_observed(path, FakeScript(change=change, **script))
    return check.judge(check.measure(study))


def test_one_model_on_two_ranks_that_are_fed_the_same_passes(tmp_path: Path) -> None:
    script = FakeScript(change=peers((0, 1)), fed=same)
    found = run_check(UnlikeModelParallelInputs(), build_observed(tmp_path, script), blocks=True)

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "Ranks that hold parts of one model were given the same inputs, at 3 probed steps."
    )


def test_ranks_without_a_model_in_common_are_not_compared(tmp_path: Path) -> None:
    found = run_check(UnlikeModelParallelInputs(), build_observed(tmp_path), blocks=True)

    assert found.outcome is Outcome.NOT_APPLICABLE


def test_different_samples_fail(tmp_path: Path) -> None:
    judgement = judge(tmp_path, peers((0, 1), inputs=own))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, from step 1 on: ranks 0 and 1 hold parts of one model and were given "
        "different inputs at 3 of 3 probed steps: the loader of train.py:30 hands them different "
        "samples."
    )
    assert 'rank=mesh["dp"]' in judgement.remedy


def test_different_samples_in_one_of_two_groups_fail(tmp_path: Path) -> None:
    def inputs(rank: int, step: int) -> str:
        return own(rank, step) if rank > 1 else f"first {step}"

    judgement = judge(tmp_path, peers((0, 1), (2, 3), inputs=inputs), num_ranks=4)

    assert judgement.outcome is Outcome.FAIL
    assert "ranks 2 and 3 hold" in judgement.sentence


def test_batches_divided_after_loading_pass(tmp_path: Path) -> None:
    judgement = judge(tmp_path, peers((0, 1), inputs=own), fed=same)

    assert judgement.outcome is Outcome.PASS
    assert "parts of the same samples" in judgement.sentence


def test_the_same_samples_augmented_by_each_rank_fail(tmp_path: Path) -> None:
    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        return next(digests) + ids.astype(np.uint64)

    digests = iter(np.arange(1, 10**6, dtype=np.uint64) * np.uint64(10**9))
    judgement = judge(tmp_path, peers((0, 1), inputs=own), fed=same, contents=contents)

    assert judgement.outcome is Outcome.FAIL
    assert "which each rank augments for itself" in judgement.sentence


def test_inputs_of_unknown_items_are_undecided(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        record = peers((0, 1), inputs=own)(rank, record)
        if isinstance(record, PassRecord):
            return replace(record, has_ids=False, order_digest="")
        return record

    judgement = judge(tmp_path, change)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "nothing tells whether they are parts of the same samples" in judgement.sentence


def test_inputs_that_nobody_saw_are_undecided(tmp_path: Path) -> None:
    judgement = judge(tmp_path, peers((0, 1), inputs=lambda rank, step: ""), fed=same)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "at no probed step" in judgement.sentence


def test_one_model_on_all_ranks_shares_samples_and_no_gradients(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(change=peers((0, 1)), fed=same, local=alike))
    overlap = run_check(OverlappingSamples(), study, blocks=True)
    unsynced = run_check(UnsyncedGradients(), study, blocks=True)

    assert overlap.outcome is Outcome.NOT_APPLICABLE
    assert "parts of one copy of the model" in overlap.sentence
    assert unsynced.outcome is Outcome.NOT_APPLICABLE
    assert "no gradients to average" in unsynced.sentence


def test_without_a_model_in_common_the_same_samples_are_a_fault(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(fed=same, local=alike))

    assert run_check(OverlappingSamples(), study, blocks=True).outcome is Outcome.FAIL
    assert run_check(UnsyncedGradients(), study, blocks=True).outcome is Outcome.UNDECIDED


def test_one_rank_of_each_model_is_compared(tmp_path: Path) -> None:
    script = FakeScript(num_ranks=4, change=peers((0, 1), (2, 3)), fed=by_group_of_two)
    found = run_check(OverlappingSamples(), build_observed(tmp_path, script), blocks=True)

    assert found.outcome is Outcome.PASS
    assert "Without 2 ranks that only hold other parts" in found.sentence


def test_models_that_are_fed_the_same_share_samples(tmp_path: Path) -> None:
    script = FakeScript(num_ranks=4, change=peers((0, 1), (2, 3)), fed=same)
    found = run_check(OverlappingSamples(), build_observed(tmp_path, script), blocks=True)

    assert found.outcome is Outcome.FAIL
    assert "ranks 0 and 2" in found.sentence


def test_what_each_rank_of_a_model_holds_whole_must_have_one_gradient(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: list[np.ndarray]) -> np.ndarray:
        return locals_[rank]

    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> dict[Any, Any]:
        sound = FakeScript().state(script, rank, steps_done, moment)
        return {key: values + rank * steps_done / 10 for key, values in sound.items()}

    script = FakeScript(change=peers((0, 1)), fed=same, final=final, state=state)
    study = build_observed(tmp_path, script)

    assert run_check(UnsyncedGradients(), study, blocks=True).outcome is Outcome.FAIL


def alike(script: FakeScript, rank: int, step: int) -> np.ndarray:
    return FakeScript().local(script, 0, step)
