from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.needs import SAMPLES
from scaleproof.checks.sample_coverage import SampleCoverage
from scaleproof.errors import EvidenceError
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter
from studies import FakeArm, build_study

NUM = 48
Feeding = Callable[[FakeArm, int, int, int], np.ndarray]


def judge(study: Study, **thresholds: float) -> Judgement:
    check = SampleCoverage(**thresholds)
    return check.judge(check.measure(study))


def fed_by(tmp_path: Path, feeding: Feeding, num_ranks: int = 2) -> Study:
    return build_study(tmp_path, candidate=FakeArm(num_ranks=num_ranks, fed=feeding))


def permuted(arm: FakeArm, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(arm.num_train_samples)


def test_every_sample_once_passes(tmp_path: Path) -> None:
    judgement = judge(build_study(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        "Each of the 48 training samples was fed exactly once an epoch, to one rank (6 runs)."
    )


def test_ranks_that_all_see_everything_fail_by_name(tmp_path: Path) -> None:
    """No sampler for ranks."""
    judgement = judge(fed_by(tmp_path, lambda arm, seed, _rank, epoch: permuted(arm, seed, epoch)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith(
        "ddp-2-seed0, epoch 1: 48 samples (100 %) were fed to more than one rank (by ranks 0 and "
        "1), for example 0, 1 and 2; in 5 epochs of this run"
    )
    assert "sampler" in judgement.remedy


def test_a_sampler_seed_per_rank_fails_with_holes_and_overlaps(tmp_path: Path) -> None:
    judgement = judge(
        fed_by(tmp_path, lambda arm, seed, rank, epoch: permuted(arm, seed + 9 * rank, epoch)[::2])
    )

    assert judgement.outcome is Outcome.FAIL
    assert "fed to more than one rank" in judgement.sentence
    assert "never fed" in judgement.sentence


def test_padding_fails_and_names_the_rank_and_the_epoch(tmp_path: Path) -> None:
    def feeding(arm: FakeArm, seed: int, rank: int, epoch: int) -> np.ndarray:
        mine = permuted(arm, seed, epoch)[rank::2]
        return np.append(mine, mine[:2]) if (rank, epoch) == (1, 3) else mine

    judgement = judge(fed_by(tmp_path, feeding))

    assert judgement.outcome is Outcome.FAIL
    assert "ddp-2-seed0, epoch 4: 2 samples (4.2 %) were fed twice or more (by rank 1)" in (
        judgement.sentence
    )


def test_a_dropped_tail_fails(tmp_path: Path) -> None:
    judgement = judge(
        fed_by(tmp_path, lambda arm, seed, rank, epoch: permuted(arm, seed, epoch)[:47][rank::2])
    )

    assert judgement.outcome is Outcome.FAIL
    assert "1 sample (2.1 %) was never fed" in judgement.sentence


def test_ids_outside_the_data_set_fail_whatever_is_allowed(tmp_path: Path) -> None:
    study = fed_by(
        tmp_path,
        lambda arm, seed, rank, epoch: np.append(permuted(arm, seed, epoch)[rank::2], 48 + rank),
    )
    judgement = judge(study, max_share=1.0)

    assert judgement.outcome is Outcome.FAIL
    assert "ids are outside the data set (by ranks 0 and 1), for example 48 and 49" in (
        judgement.sentence
    )


def test_a_share_exactly_as_allowed_passes(tmp_path: Path) -> None:
    study = fed_by(
        tmp_path, lambda arm, seed, rank, epoch: permuted(arm, seed, epoch)[:42][rank::2]
    )

    at = judge(study, max_share=6 / 48)
    assert at.outcome is Outcome.PASS
    assert "12.5 % that max_share allows" in at.sentence
    assert judge(study, max_share=6 / 48 - 1e-9).outcome is Outcome.FAIL


def test_a_baseline_that_skips_samples_is_no_measure(tmp_path: Path) -> None:
    study = build_study(
        tmp_path,
        baseline=FakeArm(fed=lambda arm, seed, _rank, epoch: permuted(arm, seed, epoch)[:24]),
    )
    judgement = judge(study)

    assert judgement.outcome is Outcome.UNDECIDED
    assert "The baseline is no measure: single-1-seed0, epoch 1: 24 samples (50 %)" in (
        judgement.sentence
    )


def test_a_missing_record_is_undecided(tmp_path: Path) -> None:
    build_study(tmp_path)
    records = tmp_path / "ddp-2-seed1" / "rank-00001.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    is_first = [line for line in lines if '"type":"samples","epoch":2' in line]
    assert len(is_first) == 1
    records.write_text("".join(line for line in lines if line not in is_first))
    judgement = judge(load_study(tmp_path))

    # The other rank's samples alone cover half of the epoch, which must not read as "never fed".
    assert judgement.outcome is Outcome.UNDECIDED
    assert "ddp-2-seed1, rank 1, epoch 3" in judgement.sentence


def test_no_sample_records_at_all_is_an_unmet_need(tmp_path: Path) -> None:
    build_study(tmp_path)
    for records in tmp_path.glob("ddp-2-seed*/rank-*.jsonl"):
        lines = records.read_text().splitlines(keepends=True)
        records.write_text("".join(line for line in lines if '"type":"samples"' not in line))

    assert not SAMPLES.is_met(load_study(tmp_path))
    assert SAMPLES.kind == "evidence"


@pytest.mark.parametrize(
    ("cut", "words"),
    [(slice(0, 298), "2 samples (0.7 %) were not scored"), (None, "1 sample (0.3 %) was scored")],
)
def test_an_evaluation_that_is_padded_or_cut_fails(
    tmp_path: Path, cut: slice | None, words: str
) -> None:
    study = build_study(tmp_path)
    run = study.runs["ddp-2", 0]
    rank = run.ranks[0]
    table = rank.evaluation_table(rank.evaluations[-1])
    table = table[:148] if cut else np.append(table, table[:1])
    writer = RankWriter(RunPaths(tmp_path / "ddp-2-seed0"), 0)
    record = type(rank.evaluations[-1])(epochs_done=5, table=writer.array("changed", table))
    lines = run.paths.records(0).read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"type":"evaluation","epochs_done":5' not in line]
    run.paths.records(0).write_text("".join(kept))
    writer.record(record)
    writer.close()
    judgement = judge(load_study(tmp_path))

    assert judgement.outcome is Outcome.FAIL
    assert words in judgement.sentence


def test_a_record_that_contradicts_its_bitmaps_is_refused(tmp_path: Path) -> None:
    build_study(tmp_path)
    records = tmp_path / "ddp-2-seed1" / "rank-00001.jsonl"
    records.write_text(records.read_text().replace('"num_fed":24', '"num_fed":25'))

    with pytest.raises(EvidenceError, match="25 samples fed, 24 different ids, 0 of them"):
        judge(load_study(tmp_path))
