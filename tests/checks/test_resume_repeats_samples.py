from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.resume_repeats_samples import ResumeRepeatsSamples
from scaleproof.evidence.observations import LoaderRecord, PassRecord, ResumeRecord
from scaleproof.evidence.study import Study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.run_check import run_check

STEPS_PER_EPOCH = 6
"""Of the default script: 48 items, 2 ranks, batches of 4."""


def judge(study: Study, **thresholds: float) -> Judgement:
    check = ResumeRepeatsSamples(**thresholds)
    return check.judge(check.measure(study))


def resumed(
    steps_before: int | None, *, what: Any = "optimizer", steps_done: int = 0
) -> Callable[[int, RankWriter], None]:
    def more(rank: int, writer: RankWriter) -> None:
        writer.record(ResumeRecord(what=what, steps_done=steps_done, steps_before=steps_before))

    return more


def sampler_epochs(first: int | None, *, advances: bool = True, **loader: Any) -> Any:
    """The sampler's epoch at each training pass, from ``first`` on."""

    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, **loader)
        if isinstance(record, PassRecord) and record.loader == TRAINING:
            epoch = None if first is None else first + advances * record.number
            return msgspec.structs.replace(record, sampler_epoch=epoch)
        return record

    return change


def shorter_first(number: int) -> Any:
    """The first pass leaves out what was fed before: it has ``number`` items a rank."""

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        order = np.random.default_rng(epoch).permutation(script.num_samples)[rank::2]
        return order[-number:] if epoch == 0 else order

    return fed


def test_a_sampler_that_goes_on_where_it_was_passes(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH), change=sampler_epochs(2))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        "observed-seed0: after 12 steps the data went on where it was (2 ranks over all runs)."
    )


def test_it_runs_as_a_check(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH), change=sampler_epochs(2))
    finding = run_check(ResumeRepeatsSamples(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_a_sampler_back_at_epoch_0_fails_and_says_what_was_done(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH), change=sampler_epochs(0))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 0: the state counts 12 steps, which are 2 whole epochs of 6 steps, "
        "but the sampler of the loader of train.py:30 goes on with epoch 0: orders that were fed "
        "before come again; the same on 1 other rank over all runs."
    )
    assert "set_epoch" in judgement.remedy


def test_set_epoch_that_is_never_called_is_the_fault_of_another_check(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH), change=sampler_epochs(0, advances=False))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "epoch 0, and stays there" in judgement.sentence
    assert ResumeRepeatsSamples.consequence_of == ("same-order-every-epoch",)


@pytest.mark.parametrize(("first", "outcome"), [(4, "pass"), (3, "pass"), (2, "fail")])
def test_epochs_counted_from_1_are_as_good_and_more_behind_is_not(
    tmp_path: Path, first: int, outcome: str
) -> None:
    script = FakeScript(more=resumed(4 * STEPS_PER_EPOCH), change=sampler_epochs(first))

    assert judge(build_observed(tmp_path, script)).outcome == outcome


def test_a_sampler_that_does_not_shuffle_repeats_nothing_by_its_epoch(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.arange(rank, script.num_samples, 2),
        more=resumed(2 * STEPS_PER_EPOCH),
        change=sampler_epochs(0),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_an_epoch_that_is_started_over_fails(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH + 3), change=sampler_epochs(2))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert (
        "the state counts 15 steps, 3 into an epoch of 6, but the first pass over the loader of "
        "train.py:30 made all 6 steps: 50 % of the epoch was fed twice"
    ) in judgement.sentence
    assert "skip_first_batches" in judgement.remedy


def test_an_epoch_that_is_read_on_passes(tmp_path: Path) -> None:
    script = FakeScript(
        fed=shorter_first(12), more=resumed(2 * STEPS_PER_EPOCH + 3), change=sampler_epochs(2)
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_reading_on_in_the_only_pass_is_told_by_what_the_loader_holds(tmp_path: Path) -> None:
    script = FakeScript(
        num_epochs=1,
        fed=shorter_first(20),  # 5 steps, and 7 are no multiple of it
        more=resumed(STEPS_PER_EPOCH + 1),
        change=sampler_epochs(1),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_an_only_pass_of_a_loader_that_does_not_say_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(
        num_epochs=1,
        fed=shorter_first(20),
        more=resumed(STEPS_PER_EPOCH + 1),
        change=sampler_epochs(None, shards=None, sampler="mine.ResumingSampler"),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.UNDECIDED


def test_a_state_exactly_as_far_into_an_epoch_as_allowed_passes(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH + 1), change=sampler_epochs(2))
    study = build_observed(tmp_path, script)

    assert judge(study, max_share=1 / 6).outcome is Outcome.PASS
    assert judge(study, max_share=1 / 6 - 1e-9).outcome is Outcome.FAIL


def test_a_pass_that_is_broken_off_leaves_it_open(tmp_path: Path) -> None:
    base = sampler_epochs(2)

    def change(rank: int, record: Any) -> Any:
        record = base(rank, record)
        if isinstance(record, PassRecord) and record.number == 0:
            return msgspec.structs.replace(record, is_whole=False)
        return record

    script = FakeScript(more=resumed(2 * STEPS_PER_EPOCH + 3), change=change)

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("steps_before", [None, 0])
def test_a_state_that_counts_no_steps_is_not_applicable(
    tmp_path: Path, steps_before: int | None
) -> None:
    """What Accelerate does to every optimizer: it loads its own empty state."""
    script = FakeScript(more=resumed(steps_before), change=sampler_epochs(0))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.NOT_APPLICABLE


def test_a_resume_within_the_process_counts(tmp_path: Path) -> None:
    """After 2 of its epochs the script goes on from a checkpoint of 4."""
    script = FakeScript(more=resumed(4 * STEPS_PER_EPOCH, steps_done=12), change=sampler_epochs(0))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "goes on with epoch 2" in judgement.sentence


def test_going_back_to_an_earlier_state_is_no_resume(tmp_path: Path) -> None:
    script = FakeScript(more=resumed(8, steps_done=12), change=sampler_epochs(0))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.NOT_APPLICABLE


def test_a_script_that_does_not_resume_is_not_asked(tmp_path: Path) -> None:
    finding = run_check(ResumeRepeatsSamples(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (1, ("made all 6 steps: 33.3 % of the epoch was fed twice",)),
        (
            2,
            (
                "made all 6 steps of the sampler's epoch 2: the rest (66.7 %) of the epoch that "
                "was begun was left out",
                "counted from 1, 33.3 % of it was fed twice",
            ),
        ),
        (3, ("sampler's epoch 3: the rest (66.7 %) of the epoch that was begun was left out",)),
    ],
)
def test_the_samplers_epoch_says_whether_the_rest_was_left_out(
    tmp_path: Path, first: int, words: tuple[str, ...]
) -> None:
    """2 steps into the second epoch, number 1 from 0."""
    script = FakeScript(more=resumed(STEPS_PER_EPOCH + 2), change=sampler_epochs(first))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert all(part in judgement.sentence for part in words)
    assert ("counted from 1" in judgement.sentence) is (first == 2)
    assert ("fed twice" in judgement.sentence) is (first < 3)


def test_a_fixed_order_has_no_other_epoch_to_go_on_with(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.arange(rank, script.num_samples, 2),
        more=resumed(STEPS_PER_EPOCH + 2),
        change=sampler_epochs(3),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "left out" not in judgement.sentence
