"""Evidence of observed scripts: written, read back, and damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.errors import EvidenceError
from scaleproof.evidence.observations import PassRecord, ProbeRecord
from scaleproof.evidence.records import EVALUATION_TABLE, EvaluationRecord
from scaleproof.evidence.writer import RankWriter


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    study = build_observed(tmp_path)

    (run,) = study.runs_of(study.candidate)
    first, second = run.ranks
    assert study.is_script
    assert study.candidate.num_devices == 2
    assert study.request.num_epochs == 3
    assert len(first.observed_steps) == 18
    assert len(first.of(ProbeRecord)) == 3
    fed = [rank.bitmap(rank.of(PassRecord)[0].seen) for rank in (first, second)]
    assert len(fed[0] | fed[1]) == 48
    assert not fed[0] & fed[1]


def test_a_table_of_steps_that_is_missing_is_refused(tmp_path: Path) -> None:
    build_observed(tmp_path)
    path = tmp_path / "observed-seed0" / "rank-00000.jsonl"
    path.write_text(path.read_text().replace('"first_step":1,"table"', '"first_step":9,"table"'))

    from scaleproof.evidence.study import load_study

    study = load_study(tmp_path)
    with pytest.raises(EvidenceError, match="from 9 on after 0 steps"):
        _ = study.runs_of(study.candidate)[0].ranks[0].observed_steps


def evaluating(epochs_done_of: dict[int, tuple[int, ...]]) -> Any:
    """By rank: after how many epochs it reported predictions."""

    def more(rank: int, writer: RankWriter) -> None:
        for epochs_done in epochs_done_of.get(rank, ()):
            table = np.zeros(2, EVALUATION_TABLE)
            table["sample_id"] = 10 * rank + np.arange(2)
            ref = writer.array(f"evaluation-{epochs_done}", table)
            writer.record(EvaluationRecord(epochs_done=epochs_done, table=ref))

    return more


@pytest.mark.parametrize(
    ("reported", "last", "num_rows"),
    [
        ({0: (1, 2), 1: (1, 2)}, 2, 4),  # of three epochs
        ({0: (2, 3, 4), 1: (2, 3, 4)}, 4, 4),  # epochs counted from 1
        ({0: (1, 2, 3)}, 3, 2),  # gathered on rank 0
        ({0: (1, 2, 3), 1: (1, 2)}, 2, 4),
        ({}, 0, 0),
    ],
)
def test_the_final_evaluation_of_a_script_is_the_last_there_is(
    tmp_path: Path, reported: dict[int, tuple[int, ...]], last: int, num_rows: int
) -> None:
    study = build_observed(tmp_path, FakeScript(more=evaluating(reported)))
    (run,) = study.runs_of(study.candidate)

    assert run.status == "complete"
    assert run.final_epochs_done == last
    assert len(run.final_evaluation) == num_rows


def test_one_rank_needs_no_other(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=1, parallelism="none"))

    (run,) = study.runs_of(study.candidate)
    assert np.all(run.ranks[0].observed_steps["num_collectives"] == 0)
