from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import NAMES, FakeScript, build_observed
from scaleproof.checks.check import PAGE_SECTIONS, Outcome
from scaleproof.checks.unsynced_gradients import UnsyncedGradients
from scaleproof.errors import EvidenceError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import (
    Moment,
    OptimizerRecord,
    ProbeRecord,
)
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Study, load_study
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

Gradients = list[np.ndarray]


def finding(study: Study, **thresholds: float) -> Finding:
    return run_check(UnsyncedGradients(**thresholds), study, blocks=True)


def drifting(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> dict[Any, Any]:
    """Parameters that move apart, as they do when gradients are not shared."""
    return {
        key: values + rank * steps_done / 10 if key[0] is TensorKind.PARAMETER else values
        for key, values in FakeScript().state(script, rank, steps_done, moment).items()
    }


def own(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    return locals_[rank]


def own_of(*names: str, since: int = 1) -> Callable[..., np.ndarray]:
    """The mean, but for some tensors the rank's own gradient."""

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        used = np.mean(locals_, axis=0)
        for name in names if step >= since else ():
            used[NAMES.index(name)] = locals_[rank][NAMES.index(name)]
        return used

    return final


def changed(**by_kind: Any) -> Callable[[int, AnyRecord], AnyRecord]:
    """``ProcessRecord={"parallelism": "none"}`` changes every such record."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        fields = by_kind.get(type(record).__name__)
        return record if fields is None else msgspec.structs.replace(record, **fields)

    return change


def test_shared_gradients_pass(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path))

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "All ranks used the same gradients, and every rank's counted in them: 3 tensors, "
        "3 probed steps."
    )


def test_a_forward_past_the_wrapper_is_one_finding_with_the_weights_seen(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=own, state=drifting)))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, from step 1 on: ranks use different gradients for 3 of 3 tensors of SGD "
        "of train.py:41 ('body.weight', 'body.bias' and 'head.weight'), up to 150 % apart. In "
        "rank 0's at step 1 the ranks count 1.00 and 0.00 (expected 0.50 each)."
    )
    assert ".module" in found.remedy


def test_a_parameter_added_after_wrapping_is_named_with_its_first_step(tmp_path: Path) -> None:
    script = FakeScript(final=own_of("head.weight", since=2), state=drifting)
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.FAIL
    assert "from step 2 on: ranks use different gradients for 1 of 3 tensors" in found.sentence
    assert "('head.weight')" in found.sentence
    assert "last parameter is added" in found.remedy


def test_no_sync_that_is_off_by_one_fails_though_no_weights_explain_it(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        # earlier microbatches stay the rank's own, the last one is averaged
        early = [np.random.default_rng([7, r, step]).normal(size=locals_[r].shape) for r in (0, 1)]
        late = np.mean([locals_[r] - early[r] for r in (0, 1)], axis=0)
        return early[rank] + late

    def accumulate(rank: int, table: np.ndarray) -> None:
        table["num_backwards"] = 4

    found = finding(
        build_observed(tmp_path, FakeScript(final=final, state=drifting, steps=accumulate))
    )

    assert found.outcome is Outcome.FAIL
    assert "No weighted sum of the ranks' gradients explains rank 0's." in found.sentence
    assert "no_sync" in found.remedy


def test_ranks_that_share_in_groups_only_are_named_by_group(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_[:2] if rank < 2 else locals_[2:], axis=0)

    found = finding(build_observed(tmp_path, FakeScript(num_ranks=4, final=final, state=drifting)))

    assert found.outcome is Outcome.FAIL
    assert "Only these share theirs: ranks 0 and 1; 2 and 3." in found.sentence
    assert "count 0.50, 0.50, 0.00 and 0.00 (expected 0.25 each)" in found.sentence


def test_a_rank_whose_gradient_counts_nowhere_is_named(tmp_path: Path) -> None:
    script = FakeScript(final=lambda script, rank, step, locals_: locals_[0])
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.FAIL
    assert "step 1: the gradient that rank 0 used" in found.sentence
    assert "leaves out rank 1" in found.sentence


def test_a_rank_without_samples_may_count_for_nothing(tmp_path: Path) -> None:
    def joined(rank: int, table: np.ndarray) -> None:
        table["num_samples"] = 0 if rank == 1 else 4

    script = FakeScript(final=lambda script, rank, step, locals_: locals_[0], steps=joined)

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_without_a_process_group_each_trains_alone(tmp_path: Path) -> None:
    alone = changed(ProcessRecord={"rank_source": "environment", "parallelism": "none"})
    apart = FakeScript(final=own, state=drifting, change=alone)
    alike = FakeScript(
        local=lambda script, rank, step: FakeScript().local(script, 0, step), change=alone
    )

    for index, script in enumerate((apart, alike)):
        found = finding(build_observed(tmp_path / str(index), script))
        assert found.outcome is Outcome.FAIL
        assert "o process group was made" in found.sentence
        assert "init_process_group" in found.remedy


def test_shared_by_other_means_than_a_process_group_passes(tmp_path: Path) -> None:
    alone = changed(ProcessRecord={"rank_source": "environment", "parallelism": "none"})

    assert finding(build_observed(tmp_path, FakeScript(change=alone))).outcome is Outcome.PASS


def test_a_hand_written_loop_is_told_to_average(tmp_path: Path) -> None:
    script = FakeScript(final=own, state=drifting, parallelism="none")

    assert "after the last backward" in finding(build_observed(tmp_path, script)).remedy


def test_gradients_that_are_alike_on_all_ranks_tell_nothing(tmp_path: Path) -> None:
    script = FakeScript(local=lambda script, rank, step: FakeScript().local(script, 0, step))
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "at none of 3 probed steps" in found.sentence
    assert "overlapping-samples" in found.remedy


def test_no_step_probed_on_all_ranks_is_undecided(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        is_other = isinstance(record, ProbeRecord) and (record.step == 1) != (rank == 0)
        return None if is_other else record

    found = finding(build_observed(tmp_path, FakeScript(change=change)))

    assert found.outcome is Outcome.UNDECIDED
    assert "No step was probed on all ranks" in found.sentence


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        used = np.zeros_like(locals_[0])
        used[:, 0] = 3.0
        used[:, 1] = 4.0
        if rank == 1:
            used[0, :2] = [4.0, 3.0]  # sqrt(2) away, of norm 5
        return used

    study = build_observed(tmp_path, FakeScript(final=final, state=drifting))
    distance = 2**0.5 / 5

    assert finding(study, tolerance=distance).outcome is not Outcome.FAIL
    assert finding(study, tolerance=float(np.nextafter(distance, 0))).outcome is Outcome.FAIL


def test_rounding_passes(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        noise = np.random.default_rng([rank, step]).normal(size=locals_[0].shape)
        return np.mean(locals_, axis=0) * (1 + 1e-5 * noise)

    found = finding(build_observed(tmp_path, FakeScript(final=final)))

    assert found.outcome is Outcome.PASS


def test_a_gradient_that_only_some_ranks_have_is_not_shared(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        if rank == 1:
            gradient[2] = np.nan  # the head was not used on this rank
        return gradient

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        used = np.mean(locals_, axis=0)
        used[2] = locals_[rank][2]
        return used

    found = finding(build_observed(tmp_path, FakeScript(local=local, final=final, state=drifting)))

    assert found.outcome is Outcome.FAIL
    assert "1 of 3 tensors of SGD of train.py:41 ('head.weight'), up to 100 % apart" in (
        found.sentence
    )


def test_tensors_without_a_gradient_anywhere_are_no_fault(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        gradient[1] = np.nan
        return gradient

    found = finding(build_observed(tmp_path, FakeScript(local=local)))

    assert found.outcome is Outcome.PASS
    assert "2 tensors" in found.sentence


def test_parameters_that_are_averaged_later_are_undecided(tmp_path: Path) -> None:
    def averaged(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> dict[Any, Any]:
        return drifting(script, 0 if moment is Moment.END else rank, steps_done, moment)

    found = finding(build_observed(tmp_path, FakeScript(final=own, state=averaged)))

    assert found.outcome is Outcome.UNDECIDED
    assert "local SGD" in found.sentence


def test_parameters_that_did_not_move_yet_are_not_averaged(tmp_path: Path) -> None:
    """A warm-up from a learning rate of 0 leaves the parameters equal for a step."""

    def warm_up(rank: int, table: np.ndarray) -> None:
        table["learning_rate"][:1] = 0

    def late(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> dict[Any, Any]:
        if steps_done <= 1:
            return FakeScript().state(script, rank, 0, moment)
        return drifting(script, rank, steps_done, moment)

    script = FakeScript(final=own, state=late, steps=warm_up)

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def unlike_from_the_start(
    script: FakeScript, rank: int, steps_done: int, moment: Moment
) -> dict[Any, Any]:
    return drifting(script, rank, steps_done + 1, moment)


def test_parts_of_one_model_with_the_same_names_are_undecided_without_a_wrapper(
    tmp_path: Path,
) -> None:
    stages = FakeScript(final=own, state=unlike_from_the_start, parallelism="none")
    wrapped = FakeScript(final=own, state=unlike_from_the_start, parallelism="ddp")

    found = finding(build_observed(tmp_path / "stages", stages))
    assert found.outcome is Outcome.UNDECIDED
    assert "pipeline" in found.sentence
    assert finding(build_observed(tmp_path / "ddp", wrapped)).outcome is Outcome.FAIL


def stage_names(rank: int, record: AnyRecord) -> AnyRecord:
    if isinstance(record, OptimizerRecord):
        owned = tuple(
            msgspec.structs.replace(t, name=f"stage{rank}.{t.name}") for t in record.owned
        )
        return msgspec.structs.replace(record, owned=owned)
    return changed(ProcessRecord={"parallelism": "none"})(rank, record)


def test_ranks_with_different_parameters_are_not_compared(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=own, change=stage_names)))

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "parts of one model" in found.sentence


def test_tensors_are_matched_by_name_in_whatever_order(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if rank == 1 and isinstance(record, OptimizerRecord):
            return msgspec.structs.replace(record, owned=record.owned[::-1])
        return record

    def reverse(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        return gradient[::-1] if rank == 1 else gradient

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        used = (locals_[0] + locals_[1][::-1]) / 2
        return used[::-1] if rank == 1 else used

    script = FakeScript(local=reverse, final=final, change=change)

    assert finding(build_observed(tmp_path / "by-name", script)).outcome is Outcome.PASS
    by_row = FakeScript(local=reverse, final=final, state=drifting)
    assert finding(build_observed(tmp_path / "by-row", by_row)).outcome is Outcome.FAIL


def sharded(rank: int, record: AnyRecord) -> AnyRecord:
    if isinstance(record, OptimizerRecord):
        owned = tuple(msgspec.structs.replace(t, is_sharded=True) for t in record.owned)
        return msgspec.structs.replace(record, owned=owned)
    return record


def shard(used: np.ndarray, rank: int, num_ranks: int) -> np.ndarray:
    mine = np.full_like(used, np.nan)
    size = used.shape[1] // num_ranks
    mine[:, rank * size : (rank + 1) * size] = used[:, rank * size : (rank + 1) * size]
    return mine


@pytest.mark.parametrize("is_shared", [True, False])
def test_shards_are_judged_by_their_weights(tmp_path: Path, is_shared: bool) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return shard(np.mean(locals_, axis=0) if is_shared else locals_[rank], rank, 2)

    found = finding(
        build_observed(tmp_path, FakeScript(parallelism="fsdp2", final=final, change=sharded))
    )

    assert found.outcome is (Outcome.PASS if is_shared else Outcome.FAIL)
    assert is_shared or "leaves out rank" in found.sentence


def test_a_multiple_of_the_shared_gradient_is_shared(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * (1 + rank)

    assert finding(build_observed(tmp_path, FakeScript(final=final))).outcome is Outcome.PASS


def test_one_rank_and_missing_probes(tmp_path: Path) -> None:
    one = finding(build_observed(tmp_path / "one", FakeScript(num_ranks=1)))
    none = finding(build_observed(tmp_path / "none", FakeScript(probed_steps=())))

    assert one.outcome is none.outcome is Outcome.NOT_APPLICABLE
    assert not one.is_evidence_missing
    assert none.is_evidence_missing


def test_a_probe_of_other_tensors_than_are_owned_is_refused(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            return msgspec.structs.replace(record, owned=record.owned[:1])
        return record

    study = build_observed(tmp_path, FakeScript(change=change))
    with pytest.raises(EvidenceError, match="is of 3 tensors, and optimizer 0 owns 1"):
        finding(load_study(study.paths.root))


def test_an_impossible_loss_scale_is_refused(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(change=changed(ProbeRecord={"grad_scale": 0.0})))
    with pytest.raises(EvidenceError, match="loss scale of 0"):
        finding(study)


@pytest.mark.parametrize("gradient", [np.nan, 0.0])
def test_an_optimizer_without_gradients_is_sent_to_the_check_that_tells_why(
    tmp_path: Path, gradient: float
) -> None:
    script = FakeScript(
        local=lambda script, rank, step: np.full((3, 64), gradient),
        final=lambda script, rank, step, locals_: locals_[rank],
    )
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "had no gradient at any" in found.sentence
    assert "frozen-parameters" in found.remedy


def test_its_page_has_all_sections() -> None:
    page = UnsyncedGradients.__doc__ or ""
    assert [section for section in PAGE_SECTIONS if section not in page] == []
