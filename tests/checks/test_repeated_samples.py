from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.repeated_samples import RepeatedSamples
from scaleproof.evidence.observations import LoaderRecord, PassRecord, RandomSource
from scaleproof.evidence.study import Study
from scaleproof.verdict.run_check import run_check


def judge(study: Study, **thresholds: float) -> Judgement:
    check = RepeatedSamples(**thresholds)
    return check.judge(check.measure(study))


def stream(num_workers: int = 2, *, has_ids: bool = False, **of_pass: Any) -> Any:
    """Training reads a stream, with workers."""

    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, num_workers=num_workers, shards=None)
        if isinstance(record, PassRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, has_ids=has_ids, **of_pass)
        return record

    return change


def read_by(num_times: int) -> Any:
    """Each item of the rank's part comes so often."""
    return lambda script, rank, epoch: np.tile(np.arange(rank, script.num_samples, 2), num_times)


def test_a_stream_that_its_workers_divide_passes(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(change=stream())))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        "No worker reads what another of its rank does: at most 0 % of the items of a pass are "
        "like an earlier one (6 training passes, each of one rank)."
    )


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_that_all_read_all_of_it_fail(tmp_path: Path, num_workers: int) -> None:
    script = FakeScript(fed=read_by(num_workers), change=stream(num_workers))
    finding = run_check(RepeatedSamples(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.FAIL
    share = {2: "24 (50 %) of 48 items", 3: "48 (66.7 %) of 72 items"}[num_workers]
    assert finding.sentence == (
        f"observed-seed0, rank 0, training pass 1 over the loader of train.py:30: {share} equal "
        f"an earlier one, with {num_workers} workers reading the stream: each worker reads all of "
        "it; 5 more over all ranks and runs."
    )
    assert "get_worker_info" in finding.remedy


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(stream(1), id="one worker reads it twice"),
        pytest.param(stream(0), id="no worker"),
        pytest.param(stream(2, has_ids=True), id="drawn again by index"),
        pytest.param(stream(2, contents=None), id="no contents"),
    ],
)
def test_what_no_other_worker_can_have_brought_about_is_not_asked(
    tmp_path: Path, change: Any
) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(fed=read_by(2), change=change)))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "no stream with two workers" in judgement.sentence


def test_random_numbers_hide_what_is_the_same(tmp_path: Path) -> None:
    looks = iter(range(10**6))
    script = FakeScript(
        contents=lambda loader, ids: np.array([next(looks) for _ in ids], np.uint64),
        fed=read_by(2),
        change=stream(drawn=(RandomSource.TORCH,)),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "random numbers" in judgement.sentence


def test_random_numbers_that_change_nothing_hide_nothing(tmp_path: Path) -> None:
    script = FakeScript(fed=read_by(2), change=stream(drawn=(RandomSource.TORCH,)))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_a_stream_broken_off_may_have_begun_anew(tmp_path: Path) -> None:
    script = FakeScript(fed=read_by(2), change=stream(is_whole=False))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.UNDECIDED


def test_a_few_batches_of_a_stream_broken_off_say_nothing(tmp_path: Path) -> None:
    script = FakeScript(fed=read_by(2), num_samples=24, change=stream(is_whole=False))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("num_different", "num_times", "outcome"),
    [
        (24, 2, "fail"),
        (22, 2, "undecided"),  # 8 % of what each worker reads alike
        (5, 2, "pass"),  # most of it
        (16, 1, "pass"),  # a third of it, divided
    ],
)
def test_items_that_are_alike_by_nature(
    tmp_path: Path, num_different: int, num_times: int, outcome: str
) -> None:
    script = FakeScript(
        contents=lambda loader, ids: (ids // 2 % num_different).astype(np.uint64),
        fed=read_by(num_times),
        change=stream(),
    )

    assert judge(build_observed(tmp_path, script)).outcome == outcome


@pytest.mark.parametrize(("num_repeats", "outcome"), [(9, "undecided"), (2, "pass")])
def test_of_contents_that_were_partly_looked_at_fewer_repeats_show(
    tmp_path: Path, num_repeats: int, outcome: str
) -> None:
    """72 of 144 items: two workers that read the same would show 18 repeats."""
    script = FakeScript(
        num_samples=288,
        contents=lambda loader, ids: np.arange(72 - num_repeats, dtype=np.uint64),
        change=stream(num_content_repeats=num_repeats),
    )

    assert judge(build_observed(tmp_path, script)).outcome == outcome


def test_a_deviation_exactly_as_allowed_fails(tmp_path: Path) -> None:
    """21 of 24 items come twice: 21 of 45 are repeats."""
    script = FakeScript(
        fed=lambda script, rank, epoch: np.append(np.arange(24), np.arange(21)), change=stream()
    )
    study = build_observed(tmp_path, script)

    assert judge(study, max_deviation=0.5 - 21 / 45 + 1e-12).outcome is Outcome.FAIL
    assert judge(study, max_deviation=0.5 - 21 / 45 - 1e-9).outcome is Outcome.PASS
