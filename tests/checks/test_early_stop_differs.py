from pathlib import Path

import msgspec
import numpy as np

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.early_stop_differs import EarlyStopDiffers
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import EndRecord, PassRecord
from scaleproof.verdict.run_check import run_check


def judge(path: Path, script: FakeScript) -> Judgement:
    check = EarlyStopDiffers()
    return check.judge(check.measure(build_observed(path, script)))


def stopping(*, num_steps: int, num_epochs: int, is_whole: bool, last_pass: int = 1) -> FakeScript:
    """Rank 1 makes no passes after ``last_pass`` and leaves that one before its end or not."""

    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        if rank == 0:
            return record
        if isinstance(record, PassRecord):
            if record.number > last_pass:
                return None
            is_last = record.number == last_pass
            return msgspec.structs.replace(record, is_whole=is_whole or not is_last)
        if isinstance(record, EndRecord):
            return msgspec.structs.replace(record, steps_done=num_steps, epochs_begun=num_epochs)
        return record

    return FakeScript(change=change)


def test_ranks_that_end_together_pass(tmp_path: Path) -> None:
    finding = run_check(EarlyStopDiffers(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS
    assert finding.sentence == "All ranks trained to the same end (18 steps, 3 epochs)."


def test_a_rank_that_stops_an_epoch_earlier_is_named(tmp_path: Path) -> None:
    judgement = judge(tmp_path, stopping(num_steps=12, num_epochs=2, is_whole=True))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 1: it stopped after 12 steps in epoch 2, rank 0 went on to 18 in "
        "epoch 3."
    )
    assert "broadcast" in judgement.remedy


def test_a_rank_that_leaves_the_last_pass_one_step_early_fails(tmp_path: Path) -> None:
    judgement = judge(tmp_path, stopping(num_steps=17, num_epochs=3, is_whole=False, last_pass=2))

    assert judgement.outcome is Outcome.FAIL
    assert "rank 1: it stopped after 17 steps" in judgement.sentence


def uneven(_script: FakeScript, rank: int, _epoch: int) -> np.ndarray:
    return np.arange(20 if rank else 24)


def test_loaders_of_different_length_are_another_checks(tmp_path: Path) -> None:
    judgement = judge(tmp_path, FakeScript(fed=uneven))

    assert judgement.outcome is Outcome.PASS
    assert "see uneven-batches" in judgement.sentence


def test_stopping_by_more_than_the_loaders_differ_fails(tmp_path: Path) -> None:
    """Rank 1 has 5 batches an epoch, rank 0 has 6: 15 steps and 18, not 14."""

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if rank == 1 and isinstance(record, EndRecord):
            return msgspec.structs.replace(record, steps_done=14)
        return record

    assert judge(tmp_path / "15", FakeScript(fed=uneven)).outcome is Outcome.PASS
    assert judge(tmp_path / "14", FakeScript(fed=uneven, change=change)).outcome is Outcome.FAIL


def test_all_ranks_leaving_a_pass_at_the_same_step_pass(tmp_path: Path) -> None:
    def change(_rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, PassRecord):
            return msgspec.structs.replace(record, is_whole=False)
        return record

    assert judge(tmp_path, FakeScript(change=change)).outcome is Outcome.PASS


def test_a_scaler_that_skips_on_one_rank_is_named(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, EndRecord):
            return msgspec.structs.replace(record, num_skipped_steps=2 + rank)
        return record

    judgement = judge(tmp_path, FakeScript(num_ranks=2, change=change))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 1: its GradScaler skipped 3 steps, that of rank 0 skipped 2."
    )


def test_equal_skips_pass(tmp_path: Path) -> None:
    def change(_rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, EndRecord):
            return msgspec.structs.replace(record, num_skipped_steps=2)
        return record

    assert judge(tmp_path, FakeScript(change=change)).outcome is Outcome.PASS


def test_a_rank_without_an_end_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(
        change=lambda rank, record: None if rank and isinstance(record, EndRecord) else record
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "observed-seed0, rank 1" in judgement.sentence


def test_one_rank_can_not_stop_alone(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=1, parallelism="none"))
    finding = run_check(EarlyStopDiffers(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing
