from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.identical_augmentation import IdenticalAugmentation
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import LoaderRecord, PassRecord, RandomSource
from scaleproof.verdict.run_check import run_check

TORCH, NUMPY = RandomSource.TORCH, RandomSource.NUMPY


def judge(path: Path, script: FakeScript) -> Judgement:
    check = IdenticalAugmentation()
    return check.judge(check.measure(build_observed(path, script)))


def drawing(
    fields_of: Callable[[int, PassRecord], dict[str, Any]], *, num_workers: int = 0, **script: Any
) -> FakeScript:
    """``fields_of(rank, pass)``: what is other in a rank's training passes."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, LoaderRecord):
            return msgspec.structs.replace(record, num_workers=num_workers)
        if isinstance(record, PassRecord) and record.use == "training":
            return msgspec.structs.replace(record, **fields_of(rank, record))
        return record

    return FakeScript(change=change, **script)


def states(rank: int, this: PassRecord, *shared: RandomSource) -> dict[RandomSource, str]:
    return {
        source: f"{source} {this.number}" + ("" if source in shared else f" {rank}")
        for source in RandomSource
    }


def test_a_script_that_draws_nothing_passes(tmp_path: Path) -> None:
    finding = run_check(IdenticalAugmentation(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_ranks_that_draw_from_the_same_state_fail(tmp_path: Path) -> None:
    script = drawing(
        lambda rank, this: {
            "drawn": (TORCH, NUMPY),
            "random_states": states(rank, this, TORCH, NUMPY),
        }
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, epoch 1: the loader of train.py:30 began with the same torch and numpy "
        "states in it on ranks 0 and 1: each of these ranks augments with the same random numbers, "
        "here and 2 times more."
    )
    assert "seed + rank" in judgement.remedy


def test_only_a_source_that_is_drawn_from_counts(tmp_path: Path) -> None:
    script = drawing(
        lambda rank, this: {"drawn": (NUMPY,), "random_states": states(rank, this, TORCH)}
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.PASS
    assert "in 3 of 3 training passes" in judgement.sentence


def test_equal_states_that_nothing_draws_from_pass(tmp_path: Path) -> None:
    script = drawing(lambda rank, this: {"random_states": states(rank, this, *RandomSource)})

    assert judge(tmp_path, script).outcome is Outcome.PASS


def test_the_states_of_workers_are_told_as_theirs(tmp_path: Path) -> None:
    script = drawing(
        lambda rank, this: {"drawn": (TORCH,), "random_states": states(rank, this, TORCH)},
        num_workers=2,
    )

    assert "torch states in its workers" in judge(tmp_path, script).sentence


@pytest.mark.parametrize(
    ("seed", "outcome"), [(lambda rank: 7, Outcome.FAIL), (lambda rank: rank, Outcome.PASS)]
)
def test_workers_are_judged_by_their_base_seed_where_their_states_are_unknown(
    tmp_path: Path, seed: Callable[[int], int], outcome: Outcome
) -> None:
    script = drawing(
        lambda rank, this: {
            "drawn": (NUMPY,),
            "base_seed": seed(rank),
            "random_states": states(rank, this, *([] if outcome is Outcome.FAIL else [NUMPY])),
        },
        num_workers=2,
    )

    assert judge(tmp_path, script).outcome is outcome


def test_two_of_three_ranks_are_named(tmp_path: Path) -> None:
    script = drawing(
        lambda rank, this: {
            "drawn": (TORCH,),
            "random_states": states(min(rank, 1), this),
        },
        num_ranks=3,
        num_samples=72,
    )

    assert "on ranks 1 and 2" in judge(tmp_path, script).sentence


def test_ranks_fed_the_same_samples_are_left_out(tmp_path: Path) -> None:
    script = drawing(
        lambda rank, this: {"drawn": (TORCH,), "random_states": states(rank, this, TORCH)},
        fed=lambda _script, _rank, epoch: np.roll(np.arange(24), epoch),
    )

    assert judge(tmp_path, script).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("base_seed", [None, 7])
def test_fetching_that_was_not_seen_is_undecided_where_states_are_equal(
    tmp_path: Path, base_seed: int | None
) -> None:
    script = drawing(
        lambda rank, this: {
            "is_fetch_seen": False,
            "base_seed": base_seed,
            "random_states": states(rank, this, TORCH),
        }
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.UNDECIDED
    assert ("base seeds" if base_seed else "torch states") in judgement.sentence


@pytest.mark.parametrize("is_one_seed", [True, False])
def test_unseen_workers_are_counted_once_a_rank(tmp_path: Path, is_one_seed: bool) -> None:
    script = drawing(
        lambda rank, this: {
            "is_fetch_seen": False,
            "base_seed": 7 if is_one_seed else 7 + rank,
            "random_states": states(rank, this),
        },
        num_workers=2,
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is (Outcome.UNDECIDED if is_one_seed else Outcome.PASS)
    assert ("in its workers on ranks 0 and 1, and" in judgement.sentence) is is_one_seed


def test_fetching_that_was_not_seen_passes_where_all_states_differ(tmp_path: Path) -> None:
    assert judge(tmp_path, drawing(lambda _rank, _this: {"is_fetch_seen": False})).outcome is (
        Outcome.PASS
    )


def test_one_rank_is_not_asked(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=1, parallelism="none"))
    finding = run_check(IdenticalAugmentation(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing
