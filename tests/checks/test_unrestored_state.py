from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.unrestored_state import UnrestoredState
from scaleproof.evidence.checkpoints import CheckpointRecord, OptimizerState, StateCounts
from scaleproof.evidence.observations import ResumeRecord
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check


def counts(optimizers: int = 0, schedulers: int = 0, scalers: int = 0) -> StateCounts:
    return StateCounts(optimizers=optimizers, schedulers=schedulers, scalers=scalers)


ADAM = OptimizerState(num_tensors=4, num_steps=500, learning_rate=0.01)
LOST = CheckpointRecord(
    file="last.pt",
    where="train.py:22",
    held=counts(1, 1),
    restored=counts(),
    in_use=counts(1, 1),
    saved=(ADAM,),
    trained=msgspec.structs.replace(ADAM, num_steps=None),
    model_share=1.0,
)
RESTORED = msgspec.structs.replace(LOST, restored=counts(1, 1))


def finding(path: Path, *records: CheckpointRecord, **thresholds: float) -> Finding:
    """All ranks leave ``records``; those with an optimizer restored leave its ``ResumeRecord``."""
    return by_rank(path, lambda rank: records, **thresholds)


def by_rank(path: Path, records_of: Any, **thresholds: float) -> Finding:
    def more(rank: int, writer: RankWriter) -> None:
        for record in records_of(rank):
            writer.record(record)
            if record.restored.optimizers:
                writer.record(ResumeRecord(what="optimizer", steps_done=0, steps_before=500))

    study = build_observed(path, FakeScript(more=more))
    return run_check(UnrestoredState(**thresholds), study, blocks=True)


def changed(**changes: Any) -> CheckpointRecord:
    return msgspec.structs.replace(LOST, **changes)


def test_state_that_is_put_back_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, RESTORED)

    assert found.outcome is Outcome.PASS
    assert found.sentence == "The optimizer's state was restored on 2 ranks."


def test_a_model_without_its_optimizer_fails_and_names_file_and_line(tmp_path: Path) -> None:
    found = finding(tmp_path, LOST)

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, ranks 0 and 1: training goes on with the model of 'last.pt' (read at "
        "train.py:22), and the state of the optimizer and scheduler in it (of 500 steps) was not "
        "restored."
    )
    assert "load_state_dict" in found.remedy


@pytest.mark.parametrize(
    ("restored", "held", "in_use", "word"),
    [
        (counts(1, 0), counts(1, 1), counts(1, 1), "scheduler"),
        (counts(1, 1), counts(1, 1, 1), counts(1, 1, 1), "gradient scaler"),
        (counts(1, 1), counts(2, 1), counts(2, 1), "optimizer in it (of 500 steps) was not"),
    ],
)
def test_a_part_that_is_left_out_is_named(
    tmp_path: Path, restored: StateCounts, held: StateCounts, in_use: StateCounts, word: str
) -> None:
    found = finding(tmp_path, changed(restored=restored, held=held, in_use=in_use))

    assert found.outcome is Outcome.FAIL
    assert f"the state of the {word}" in found.sentence


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(changed(model_share=0.0), id="read to evaluate, or for a teacher"),
        pytest.param(changed(model_share=0.9), id="a new head"),
        pytest.param(
            changed(restored=counts(1, 0), in_use=counts(1, 0)), id="no scheduler any more"
        ),
        pytest.param(
            changed(trained=OptimizerState(num_tensors=2, num_steps=None, learning_rate=0.01)),
            id="an optimizer of other tensors",
        ),
        pytest.param(changed(held=counts(0, 1), in_use=counts(1, 0), saved=()), id="nothing held"),
    ],
)
def test_what_is_no_resume_passes(tmp_path: Path, record: CheckpointRecord) -> None:
    assert finding(tmp_path, record).outcome is Outcome.PASS


def test_another_learning_rate_leaves_it_open(tmp_path: Path) -> None:
    trained = OptimizerState(num_tensors=4, num_steps=None, learning_rate=0.001)
    found = finding(tmp_path, changed(trained=trained))

    assert found.outcome is Outcome.UNDECIDED
    assert "a learning rate of 0.01, and training has one of 0.001 now" in found.sentence


def test_exactly_at_the_share_fails(tmp_path: Path) -> None:
    record = changed(model_share=0.75)

    assert finding(tmp_path / "at", record, min_share=0.75).outcome is Outcome.FAIL
    above = float(np.nextafter(0.75, 1))
    assert finding(tmp_path / "above", record, min_share=above).outcome is Outcome.PASS


def test_a_rank_that_did_not_restore_is_named(tmp_path: Path) -> None:
    """Rank 0 alone reads the file; the wrapper sends its model along."""
    found = by_rank(tmp_path, lambda rank: [RESTORED] if rank == 0 else [])

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0: rank 1 went on without the optimizer's state, which rank 0 loaded."
    )


def test_a_resume_in_the_middle_of_training_is_another_thing(tmp_path: Path) -> None:
    def more(rank: int, writer: RankWriter) -> None:
        if rank == 0:
            writer.record(ResumeRecord(what="optimizer", steps_done=5, steps_before=3))

    found = run_check(
        UnrestoredState(), build_observed(tmp_path, FakeScript(more=more)), blocks=True
    )

    assert found.outcome is Outcome.PASS


def test_a_script_that_loads_nothing_is_not_asked(tmp_path: Path) -> None:
    found = finding(tmp_path)

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert not found.is_evidence_missing
