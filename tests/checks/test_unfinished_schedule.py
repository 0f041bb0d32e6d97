from pathlib import Path
from typing import Any

import msgspec
import pytest

from observed import TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.unfinished_schedule import UnfinishedSchedule
from scaleproof.evidence.observations import PassRecord
from scaleproof.evidence.records import CheckRequest
from scaleproof.evidence.schedules import ScheduleRecord
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter, write_json
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

STEPS = 60
"""Of three epochs over 160 items by two ranks, in batches of 4."""


def scheduled(**changes: Any) -> FakeScript:
    """A cosine over all steps, stepped once at each; ``changes`` are of the record."""
    script = {key: changes.pop(key) for key in ("change", "steps", "num_backwards", "num_ranks",
              "parallelism", "num_samples", "fed") if key in changes}  # fmt: skip
    record = ScheduleRecord(
        schedule=0,
        kind="CosineAnnealingLR",
        where="train.py:44",
        optimizer=0,
        num_planned=STEPS,
        plan_source="T_max",
        num_done=STEPS,
        num_calls=STEPS,
        num_moments=STEPS,
        num_optimizer_steps=STEPS,
        over_at_step=STEPS,
        is_decaying=True,
    )
    record = msgspec.structs.replace(record, **changes)

    def more(rank: int, writer: RankWriter) -> None:
        writer.record(record)

    return FakeScript(**{"num_samples": 160, "more": more} | script)


def judged(study: Study, **thresholds: float) -> Finding:
    return run_check(UnfinishedSchedule(**thresholds), study, blocks=True)


def finding(path: Path, script: FakeScript, **thresholds: float) -> Finding:
    return judged(build_observed(path, script), **thresholds)


SPLIT = {"num_planned": 2 * STEPS, "over_at_step": None}
TWICE = {"num_done": 2 * STEPS, "num_calls": 2 * STEPS, "over_at_step": STEPS // 2}


def test_a_schedule_that_ends_with_training_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, scheduled())

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "observed-seed0: the CosineAnnealingLR of train.py:44 came to its end with training: 60 of "
        "60 steps (T_max)."
    )


def test_a_length_from_before_the_split_fails_and_names_the_scheduler(tmp_path: Path) -> None:
    found = finding(tmp_path, scheduled(**SPLIT))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0: the CosineAnnealingLR of train.py:44 was made for 120 steps (T_max), and "
        "made 60 of them when training was over: 50 %, as if it were computed before the data was "
        "split over 2 ranks."
    )
    assert "as each rank iterates it" in found.remedy


def test_a_scheduler_stepped_once_for_each_rank_fails(tmp_path: Path) -> None:
    found = finding(tmp_path, scheduled(**TWICE))

    assert found.outcome is Outcome.FAIL
    assert "was over after 50 % of training: it is stepped 2 times at each" in found.sentence
    assert "once for each rank" in found.sentence


def test_so_does_one_that_accelerate_stops_at_its_end(tmp_path: Path) -> None:
    """A OneCycleLR can't be stepped beyond."""
    settings = {"num_calls": STEPS, "num_moments": STEPS // 2, "over_at_step": STEPS // 2}

    assert finding(tmp_path, scheduled(**settings)).outcome is Outcome.FAIL


def test_stepping_once_for_each_rank_through_as_long_a_plan_passes(tmp_path: Path) -> None:
    """Accelerate's idiom: the length of the loader before it is prepared."""
    settings = TWICE | {"num_planned": 2 * STEPS, "over_at_step": STEPS}

    assert finding(tmp_path, scheduled(**settings)).outcome is Outcome.PASS


def idle_from(step: int, rate: float = 0.0) -> Any:
    def steps(rank: int, table: Any) -> None:
        table["learning_rate"][step:] = rate

    return steps


SHORT = {"num_planned": STEPS // 2, "over_at_step": STEPS // 2}


def test_a_plan_that_is_divided_once_too_often_leaves_a_rate_of_0(tmp_path: Path) -> None:
    found = finding(tmp_path, scheduled(**SHORT, steps=idle_from(STEPS // 2)))

    assert found.outcome is Outcome.FAIL
    assert (
        "was over after 50 % of training, and all steps after that were made at a rate of 0: as if "
        "its length were divided by 2 once too often"
    ) in found.sentence


def test_a_short_plan_that_leaves_a_rate_or_is_another_share_passes(tmp_path: Path) -> None:
    floor = scheduled(**SHORT, steps=idle_from(STEPS // 2, rate=1e-5))
    assert finding(tmp_path / "floor", floor).outcome is Outcome.PASS
    other = scheduled(num_planned=50, over_at_step=50, steps=idle_from(50))
    assert finding(tmp_path / "other", other).outcome is Outcome.PASS


def test_exactly_at_the_tolerance(tmp_path: Path) -> None:
    script = scheduled(num_planned=80, num_done=40, over_at_step=None)

    assert finding(tmp_path / "at", script, tolerance=0.5).outcome is Outcome.PASS
    found = finding(tmp_path / "below", script, tolerance=0.499)
    assert found.outcome is Outcome.FAIL


@pytest.mark.parametrize("num_planned", [54, 66, 75, 90, 200, 600])
def test_other_shares_are_no_matter_of_ranks(tmp_path: Path, num_planned: int) -> None:
    script = scheduled(num_planned=num_planned, over_at_step=min(num_planned, STEPS))

    assert finding(tmp_path, script).outcome is Outcome.PASS


def test_batches_rounded_up_on_each_rank_are_allowed_for(tmp_path: Path) -> None:
    """5 batches are 3 on each of two ranks."""
    script = scheduled(
        num_planned=15, num_done=9, num_calls=9, num_moments=9, num_optimizer_steps=9,
        over_at_step=None, num_samples=24,
    )  # fmt: skip

    assert finding(tmp_path, script).outcome is Outcome.FAIL


def test_a_plan_in_batches_of_which_several_make_a_step_fails(tmp_path: Path) -> None:
    found = finding(tmp_path, scheduled(num_backwards=4, num_planned=4 * STEPS, over_at_step=None))

    assert found.outcome is Outcome.FAIL
    assert "computed in batches, 4 of which make a step" in found.sentence


def test_data_that_is_not_split_gives_no_reason(tmp_path: Path) -> None:
    script = scheduled(**SPLIT, fed=lambda script, rank, epoch: list_of(script))

    assert finding(tmp_path, script).outcome is Outcome.PASS


def list_of(script: FakeScript) -> Any:
    import numpy as np

    return np.arange(script.num_samples)


def test_a_warm_up_may_be_over_early(tmp_path: Path) -> None:
    assert finding(tmp_path, scheduled(**TWICE, is_decaying=False)).outcome is Outcome.PASS


def test_two_cosines_in_a_training_are_no_fault(tmp_path: Path) -> None:
    settings = {"num_planned": STEPS // 2, "over_at_step": STEPS // 2}

    assert finding(tmp_path, scheduled(**settings)).outcome is Outcome.PASS


def test_a_schedule_of_epochs_is_not_one_of_steps(tmp_path: Path) -> None:
    settings = {"num_planned": 6, "num_done": 3, "num_calls": 3, "num_moments": 3}

    assert finding(tmp_path, scheduled(**settings, over_at_step=None)).outcome is Outcome.PASS


def test_a_last_epoch_left_early_leaves_it_open(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, PassRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, is_whole=record.number < 2)
        return record

    assert finding(tmp_path, scheduled(**SPLIT, change=change)).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize(("baseline_planned", "outcome"), [(240, "pass"), (120, "fail")])
def test_a_plan_as_long_on_one_device_is_meant(
    tmp_path: Path, baseline_planned: int, outcome: str
) -> None:
    baseline = scheduled(
        num_ranks=1, parallelism="none", num_planned=baseline_planned, num_done=120, num_calls=120,
        num_moments=120, num_optimizer_steps=120, over_at_step=None,
    )  # fmt: skip
    study = build_observed(tmp_path, scheduled(**SPLIT), baseline=baseline)

    assert judged(study).outcome == outcome


@pytest.mark.parametrize(("num_steps", "outcome"), [(STEPS, "not-applicable"), (0, "fail")])
def test_a_run_that_was_ended_shows_no_end(tmp_path: Path, num_steps: int, outcome: str) -> None:
    study = build_observed(tmp_path, scheduled(**SPLIT))
    check = CheckRequest(num_steps=num_steps, num_devices=2, forces_cpu=False)
    write_json(study.paths.study, msgspec.structs.replace(study.request, check=check))

    assert judged(load_study(tmp_path)).outcome == outcome


def test_a_schedule_without_an_end_or_none_at_all_is_not_asked(tmp_path: Path) -> None:
    endless = scheduled(num_planned=None, plan_source="", over_at_step=None)
    for name, script in (("endless", endless), ("none", FakeScript())):
        found = finding(tmp_path / name, script)
        assert found.outcome is Outcome.NOT_APPLICABLE
        assert not found.is_evidence_missing
