from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import PAGE_SECTIONS, Outcome
from scaleproof.checks.frozen_parameters import FrozenParameters
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import (
    Moment,
    OptimizerRecord,
    OwnedTensor,
    ProbeRecord,
    SnapshotRecord,
)
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

Change = Callable[[int, AnyRecord], AnyRecord | None]
HEAD = OwnedTensor(
    name="new_head.weight", numel=8, requires_grad=True, is_sharded=False, has_gradient=True
)


def finding(study: Study, **thresholds: Any) -> Finding:
    return run_check(FrozenParameters(**thresholds), study, blocks=True)


def stuck(*names: str) -> Callable[..., dict[Any, Any]]:
    """Training state in which some parameters never change."""

    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> dict[Any, Any]:
        moving = FakeScript().state(script, rank, steps_done, moment)
        begin = FakeScript().state(script, rank, 0, moment)
        is_stuck = {(TensorKind.PARAMETER, name) for name in names}
        return {key: (begin if key in is_stuck else moving)[key] for key in moving}

    return state


def owned(*names: str, on: tuple[int, ...] = (0, 1), **fields: Any) -> Change:
    """Changes what is recorded of some owned tensors."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if not isinstance(record, OptimizerRecord) or rank not in on:
            return record
        tensors = tuple(
            msgspec.structs.replace(t, **fields) if t.name in names else t for t in record.owned
        )
        return msgspec.structs.replace(record, owned=tensors)

    return change


def unowned(*tensors: OwnedTensor) -> Change:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            return msgspec.structs.replace(record, unowned=tensors)
        return record

    return change


def without_gradient(*names: str, on: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        if rank in on:
            for name in names:
                gradient[script.names.index(name)] = np.nan
        return gradient

    return {
        "local": local,
        "final": lambda script, rank, step, locals_: locals_[rank],
        "change": owned(*names, on=on, has_gradient=False),
        "state": lambda script, rank, steps_done, moment: (
            stuck(*names) if rank in on else FakeScript().state
        )(script, rank, steps_done, moment),
    }


def test_parameters_that_change_pass(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path))

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "3 trainable parameters got gradients and changed, and no parameter with a gradient is "
        "without an optimizer."
    )


def test_a_parameter_with_a_gradient_that_never_changes_is_named(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(state=stuck("head.weight"))))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, rank 0: 1 of 3 parameters of SGD of train.py:41 ('head.weight') had a "
        "gradient and never changed in 18 steps. The same on 1 other rank over all runs."
    )


def rates(*of_rows: tuple[float | None, float | None]) -> Change:
    """The learning rate of every owned tensor at the first step and at the end."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if not isinstance(record, OptimizerRecord):
            return record
        is_end = record.moment == "end"
        tensors = zip(record.owned, of_rows, strict=True)
        return msgspec.structs.replace(
            record,
            owned=tuple(msgspec.structs.replace(t, learning_rate=r[is_end]) for t, r in tensors),
        )

    return change


def test_a_group_with_a_learning_rate_of_0_rests(tmp_path: Path) -> None:
    change = rates((0.1, 0.0), (0.1, 0.0), (0.0, 0.0))
    script = FakeScript(state=stuck("head.weight"), change=change)
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "2 trainable parameters got gradients and changed, and no parameter with a gradient is "
        "without an optimizer. At a learning rate of 0, 1 parameter never changed: head.weight."
    )


def test_a_first_group_that_rests_does_not_hide_what_is_stuck_in_another(tmp_path: Path) -> None:
    """The table of steps has the first group's learning rate."""

    def at_0(rank: int, table: np.ndarray) -> None:
        table["learning_rate"] = 0

    change = rates((0.0, 0.0), (0.1, 0.1), (0.1, 0.1))
    resting = FakeScript(state=stuck("body.weight"), change=change, steps=at_0)
    both = FakeScript(state=stuck("body.weight", "head.weight"), change=change, steps=at_0)

    assert finding(build_observed(tmp_path / "resting", resting)).outcome is Outcome.PASS
    found = finding(build_observed(tmp_path / "both", both))
    assert found.outcome is Outcome.FAIL
    assert "1 of 3 parameters of SGD of train.py:41 ('head.weight')" in found.sentence


@pytest.mark.parametrize(
    "of_rows",
    [
        ((0.1, 0.1), (0.1, 0.1), (0.0, 0.1)),
        ((0.1, 0.1), (0.1, 0.1), (0.1, 0.0)),
        ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
        ((None, None), (None, None), (None, None)),
    ],
)
def test_a_rate_of_0_now_and_then_or_of_a_schedule_explains_nothing(
    tmp_path: Path, of_rows: Any
) -> None:
    script = FakeScript(state=stuck("head.weight"), change=rates(*of_rows))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_frozen_on_purpose_passes(tmp_path: Path) -> None:
    script = FakeScript(
        state=stuck("body.weight", "body.bias"),
        change=owned("body.weight", "body.bias", requires_grad=False),
    )
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.PASS
    assert "1 trainable parameter got" in found.sentence


def test_an_optimizer_of_other_tensors_than_the_model_trains_fails_with_its_line(
    tmp_path: Path,
) -> None:
    names = FakeScript().names
    without = without_gradient(*names)

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        changed = without["change"](rank, record)
        if isinstance(changed, OptimizerRecord):
            return msgspec.structs.replace(changed, num_strangers=3)
        return changed

    found = finding(build_observed(tmp_path, FakeScript(**{**without, "change": change})))

    assert found.outcome is Outcome.FAIL
    assert "none of the 3 parameters that SGD of train.py:41 owns got a gradient" in found.sentence
    assert "3 are in no module that ran forward" in found.sentence
    assert "Build the optimizer last" in found.remedy


def test_an_unused_branch_passes_and_is_counted(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(**without_gradient("head.weight"))))

    assert found.outcome is Outcome.PASS
    assert found.sentence.startswith("2 trainable parameters got gradients and changed")
    assert "1 parameter never got a gradient: head.weight" in found.sentence


def test_a_branch_that_one_rank_alone_never_uses_fails(tmp_path: Path) -> None:
    script = FakeScript(**without_gradient("head.weight", on=(1,)))
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.FAIL
    assert "rank 1: 1 parameter of SGD of train.py:41 (head.weight) never got a gradient" in (
        found.sentence
    )


def test_a_forgotten_head_is_named(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(change=unowned(HEAD))))

    assert found.outcome is Outcome.FAIL
    assert (
        "1 parameter ('new_head.weight'), 25.0 % of the numbers that have a gradient, belongs "
        in (found.sentence)
    )
    assert "SGD of train.py:41" in found.sentence


def test_unowned_without_a_gradient_or_frozen_is_ignored(tmp_path: Path) -> None:
    idle = msgspec.structs.replace(HEAD, has_gradient=False)
    frozen = msgspec.structs.replace(HEAD, requires_grad=False)
    found = finding(build_observed(tmp_path, FakeScript(change=unowned(idle, frozen))))

    assert found.outcome is Outcome.PASS


def test_exactly_at_the_share_it_is_forgotten_and_above_a_part_on_purpose(tmp_path: Path) -> None:
    half = msgspec.structs.replace(HEAD, numel=24)
    study = build_observed(tmp_path, FakeScript(change=unowned(half)))

    assert finding(study, max_share=0.5).outcome is Outcome.FAIL
    found = finding(study, max_share=0.499)
    assert found.outcome is Outcome.UNDECIDED
    assert "requires_grad_(False)" in found.remedy


def second_optimizer(owned_: tuple[OwnedTensor, ...]) -> Callable[[int, RankWriter], None]:
    def more(rank: int, writer: RankWriter) -> None:
        writer.record(
            OptimizerRecord(
                optimizer=1,
                steps_done=18,
                moment="end",
                kind="Adam",
                where="train.py:42",
                owned=owned_,
                unowned=(),
                num_strangers=0,
            )
        )

    return more


def alternating(rank: int, table: np.ndarray) -> None:
    table["optimizer"][1::2] = 1


def test_what_another_optimizer_owns_is_not_forgotten(tmp_path: Path) -> None:
    script = FakeScript(change=unowned(HEAD), more=second_optimizer((HEAD,)), steps=alternating)
    study = build_observed(tmp_path, script)

    # the second optimizer's record stands below its "unowned": the helper changes written ones only
    assert finding(study).outcome is Outcome.PASS


def rarely(rank: int, table: np.ndarray) -> None:
    table["optimizer"][5] = 1


def test_too_few_steps_are_undecided_and_exactly_enough_are_not(tmp_path: Path) -> None:
    def steps(num: int) -> Callable[[int, np.ndarray], None]:
        def warm(rank: int, table: np.ndarray) -> None:
            table["learning_rate"] = 0
            table["learning_rate"][:num] = 0.1

        return warm

    script = {n: FakeScript(state=stuck("head.weight"), steps=steps(n)) for n in (0, 1, 2)}

    none = finding(build_observed(tmp_path / "0", script[0]))
    assert none.outcome is Outcome.UNDECIDED
    assert "made 0 steps with a learning rate above 0" in none.sentence
    assert finding(build_observed(tmp_path / "1", script[1])).outcome is Outcome.UNDECIDED
    assert finding(build_observed(tmp_path / "2", script[2])).outcome is Outcome.FAIL


def test_a_gan_whose_second_optimizer_steps_once_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(more=second_optimizer((HEAD,)), steps=rarely)
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "Adam of train.py:42 made 1 step" in found.sentence


def test_a_gradient_that_is_zero_does_not_move_a_parameter(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        gradient[2] = 0
        return gradient

    script = FakeScript(local=local, state=stuck("head.weight"))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def zeros(*rows: int, on: tuple[int, ...] = (0, 1), from_step: int = 1) -> FakeScript:
    """Gradients of some tensors that are exactly 0."""

    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        if rank in on and step >= from_step:
            gradient[list(rows)] = 0
        return gradient

    return FakeScript(local=local)


def test_an_optimizer_all_of_whose_gradients_are_0_fails(tmp_path: Path) -> None:
    """``cross_entropy`` over one output: the logarithm of 1."""
    found = finding(build_observed(tmp_path, zeros(0, 1, 2)))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, rank 0: the gradients of 3 of 3 parameters of SGD of train.py:41 "
        "('body.weight', 'body.bias' and 'head.weight') were exactly 0 at each of 3 probed steps, "
        "on all ranks: the loss does not change with them. The same on 1 other rank over all runs."
    )
    assert "a softmax over one class" in found.remedy


def test_gradients_of_0_of_most_numbers_are_undecided_and_of_few_counted(tmp_path: Path) -> None:
    few = finding(build_observed(tmp_path / "few", zeros(2)))
    study = build_observed(tmp_path / "most", zeros(1, 2))

    assert few.outcome is Outcome.PASS
    assert few.sentence.startswith("2 trainable parameters got gradients and changed")
    assert "of 1 parameter was exactly 0 at every probed step: head.weight" in few.sentence
    assert finding(study).outcome is Outcome.UNDECIDED
    assert finding(study, max_share=2 / 3).outcome is Outcome.PASS


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(zeros(0, 1, 2, on=(1,)), id="on one rank"),
        pytest.param(zeros(0, 1, 2, from_step=2), id="after a step"),
    ],
)
def test_gradients_that_are_0_now_and_then_or_on_one_rank_pass(
    tmp_path: Path, script: FakeScript
) -> None:
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.PASS
    assert "exactly 0" not in found.sentence


def test_of_gradients_of_0_only_those_count_that_are_so_on_all_ranks(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        return zeros(*([1, 2] if rank else [2])).local(script, rank, step)

    script = FakeScript(local=local, final=lambda script, rank, step, locals_: locals_[rank])
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.PASS
    assert "of 1 parameter was exactly 0 at every probed step: head.weight" in found.sentence


def test_a_single_probe_of_0_says_nothing(tmp_path: Path) -> None:
    """What is initialised to 0 keeps the gradients behind it at 0 for one step."""
    script = replace(zeros(0, 1, 2), probed_steps=(1,))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_names_that_change_stand_for_the_same_rows(tmp_path: Path) -> None:
    """A second model gives the parameters of the first one a prefix."""

    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        if isinstance(record, OptimizerRecord) and record.moment == "first-step":
            owned_ = tuple(msgspec.structs.replace(t, name=f"Net.{t.name}") for t in record.owned)
            return msgspec.structs.replace(record, owned=owned_)
        return owned(*FakeScript().names, has_gradient=False)(rank, record)

    found = finding(build_observed(tmp_path, FakeScript(change=change)))

    assert found.outcome is Outcome.PASS
    assert found.sentence.startswith("3 trainable parameters got gradients and changed")


def test_one_rank_is_judged_too(tmp_path: Path) -> None:
    sound = finding(build_observed(tmp_path / "sound", FakeScript(num_ranks=1)))
    bad = FakeScript(num_ranks=1, state=stuck("head.weight"))

    assert sound.outcome is Outcome.PASS
    assert finding(build_observed(tmp_path / "bad", bad)).outcome is Outcome.FAIL


def test_shards_without_snapshots_are_judged_by_their_gradients(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, SnapshotRecord) else record

    found = finding(build_observed(tmp_path, FakeScript(change=change)))

    assert found.outcome is Outcome.PASS
    assert "whether they changed is not recorded" in found.sentence


def test_without_probes_the_gradients_at_the_first_step_tell(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, ProbeRecord) else record

    found = finding(build_observed(tmp_path, FakeScript(change=change, state=stuck("body.bias"))))

    assert found.outcome is Outcome.FAIL
    assert "'body.bias'" in found.sentence


def test_records_of_optimizers_are_needed(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        return None if isinstance(record, OptimizerRecord | ProbeRecord) else record

    found = finding(build_observed(tmp_path, FakeScript(change=change)))

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert found.is_evidence_missing


def test_its_page_has_all_sections() -> None:
    page = FrozenParameters.__doc__ or ""
    assert [section for section in PAGE_SECTIONS if section not in page] == []
