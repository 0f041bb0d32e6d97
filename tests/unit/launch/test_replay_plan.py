"""What replays have to do is told from what the ranks recorded; or why they can't."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from numpy.typing import NDArray

from observed import FakeScript, build_observed
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import LoaderRecord, OptimizerRecord, PassRecord
from scaleproof.evidence.study import Run
from scaleproof.launch.replay_plan import UnreplayableError, plan_replay
from scaleproof.observe.replay.material import MaterialWriter
from scaleproof.observe.replay.plan import ReplayPlan
from scaleproof.observe.replay.stored import MaterialIndex

SCRIPT = FakeScript(num_epochs=1, is_checked=True)
"""Six steps per rank, a batch each, of loader 0."""

NUM_KEPT = 20


def run_of(folder: Path, script: FakeScript = SCRIPT) -> Run:
    (run,) = build_observed(folder / "study", script).runs.values()
    return run


def material_of(
    folder: Path,
    num_batches: int = 6,
    *,
    ranks: Sequence[int] = (0, 1),
    loaders: Sequence[int] = (0,),
    max_bytes: int = 1 << 20,
) -> MaterialIndex:
    for rank in ranks:
        writer = MaterialWriter(folder / "material", rank, max_bytes=max_bytes)
        writer.length("train.py:30", num_batches)
        for loader in loaders:
            for ordinal in range(num_batches):
                batch = [("/0", torch.ones(2))]
                key = (loader, 0, ordinal)
                writer.batch(key, [ordinal], 2, batch, steps_done=ordinal)
        writer.close()
    return MaterialIndex(folder / "material")


def plan_of(
    folder: Path, script: FakeScript = SCRIPT, material: MaterialIndex | None = None
) -> ReplayPlan:
    given = material_of(folder) if material is None else material
    return plan_replay(run_of(folder, script), given, NUM_KEPT)


def table(**columns: Any) -> Callable[[int, NDArray[Any]], None]:
    def change(rank: int, steps: NDArray[Any]) -> None:
        for column, values in columns.items():
            steps[column] = values

    return change


def test_every_step_and_the_passes_that_were_trained_on(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert (plan.num_ranks, len(plan.steps), plan.training) == (2, 6, ((0, 0),))
    assert {(step.optimizer, step.num_backwards) for step in plan.steps} == {(0, 1)}
    assert plan.microbatches == ()
    assert not plan.is_shared


def test_no_more_steps_than_were_kept(tmp_path: Path) -> None:
    plan = plan_replay(run_of(tmp_path), material_of(tmp_path), 4)
    assert len(plan.steps) == 4


def test_steps_that_all_ranks_made(tmp_path: Path) -> None:
    def fed(script: FakeScript, rank: int, epoch: int) -> NDArray[Any]:
        whole = SCRIPT.fed(script, rank, epoch)
        return whole[:16] if rank == 1 else whole

    script = replace(SCRIPT, fed=fed)
    assert len(plan_of(tmp_path, script).steps) == 4


def test_steps_until_space_ran_out(tmp_path: Path) -> None:
    material = material_of(tmp_path, max_bytes=24)  # three batches of 8 bytes
    assert len(plan_of(tmp_path, material=material).steps) == 3


def test_no_space_for_a_single_step(tmp_path: Path) -> None:
    with pytest.raises(UnreplayableError, match="too large to keep"):
        plan_of(tmp_path, material=material_of(tmp_path, max_bytes=7))


# accumulation

ACCUMULATING = replace(SCRIPT, num_samples=16, num_backwards=3)
"""Two steps of three backwards."""


def test_accumulation_is_found(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ACCUMULATING)
    assert plan.microbatches == (
        ((0, 0, 0), (0, 0, 1), (0, 0, 2)),
        ((0, 0, 3), (0, 0, 4), (0, 0, 5)),
    )


def test_a_last_step_with_fewer_batches(tmp_path: Path) -> None:
    script = replace(ACCUMULATING, steps=table(num_backwards=[3, 1]))
    plan = plan_of(tmp_path, script, material_of(tmp_path, 4))
    assert plan.microbatches[1] == ((0, 0, 3),)


@pytest.mark.parametrize(("num_batches", "is_found"), [(5, False), (10, True), (11, False)])
def test_batches_that_loaders_were_asked_for_ahead(
    tmp_path: Path, num_batches: int, is_found: bool
) -> None:
    plan = plan_of(tmp_path, ACCUMULATING, material_of(tmp_path, num_batches))
    assert bool(plan.microbatches) is is_found


def test_two_backwards_on_one_batch_are_no_accumulation(tmp_path: Path) -> None:
    """A GAN's critic: once on the real batch, once on the fake one."""
    script = replace(SCRIPT, num_backwards=2)
    assert plan_of(tmp_path, script, material_of(tmp_path, 6)).microbatches == ()


def test_several_training_loaders_are_no_accumulation(tmp_path: Path) -> None:
    def also_trained(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, PassRecord):
            return msgspec.structs.replace(record, use="training")
        return record

    script = replace(ACCUMULATING, change=also_trained)
    plan = plan_of(tmp_path, script, material_of(tmp_path, 3, loaders=(0, 1)))
    assert plan.training == ((0, 0), (1, 0))
    assert plan.microbatches == ()


# what can't be replayed


def of_kind(kind: str) -> Callable[[int, AnyRecord], AnyRecord]:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            return msgspec.structs.replace(record, kind=kind)
        return record

    return change


def test_a_searching_optimizer(tmp_path: Path) -> None:
    with pytest.raises(UnreplayableError, match="LBFGS evaluates the loss as often"):
        plan_of(tmp_path, replace(SCRIPT, change=of_kind("LBFGS")))
    assert plan_of(tmp_path / "other", replace(SCRIPT, change=of_kind("AdamW"))).steps


def test_no_loader(tmp_path: Path) -> None:
    with pytest.raises(UnreplayableError, match="no DataLoader was seen to hand out batches"):
        plan_of(tmp_path, material=MaterialIndex(tmp_path / "nothing"))


def test_batches_that_were_only_evaluated_with_are_none_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UnreplayableError, match="no DataLoader was seen to hand out batches"):
        plan_of(tmp_path, material=material_of(tmp_path, loaders=(1,)))


def test_a_loader_on_rank_0_alone(tmp_path: Path) -> None:
    with pytest.raises(UnreplayableError, match=r"only ranks \[0\] of 2 draw batches"):
        plan_of(tmp_path, material=material_of(tmp_path, ranks=(0,)))


def test_a_rank_with_a_batch_less_is_replayed(tmp_path: Path) -> None:
    material_of(tmp_path, 5, ranks=(1,))
    material = material_of(tmp_path, 6, ranks=(0,))
    assert len(plan_of(tmp_path, material=material).steps) == 6


def test_loaders_used_in_another_order(tmp_path: Path) -> None:
    def elsewhere(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, LoaderRecord) and rank == 1:
            return msgspec.structs.replace(record, where="train.py:99")
        return record

    with pytest.raises(UnreplayableError, match="another order than each other"):
        plan_of(tmp_path, replace(SCRIPT, change=elsewhere))


def test_shards_of_one_tensor_are_shared(tmp_path: Path) -> None:
    def sharded(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            owned = [msgspec.structs.replace(t, is_sharded=True) for t in record.owned]
            return msgspec.structs.replace(record, owned=tuple(owned))
        return record

    assert plan_of(tmp_path, replace(SCRIPT, change=sharded)).is_shared
