"""Evidence of observed scripts: written, read back, and damaged."""

from pathlib import Path

import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.errors import EvidenceError
from scaleproof.evidence.observations import PassRecord, ProbeRecord


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


def test_one_rank_needs_no_other(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=1, parallelism="none"))

    (run,) = study.runs_of(study.candidate)
    assert np.all(run.ranks[0].observed_steps["num_collectives"] == 0)
