import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.errors import EvidenceError
from scaleproof.evidence.consistency import COMPARABLE_KEYS
from scaleproof.evidence.records import EVALUATION_TABLE, RankOutcome
from scaleproof.evidence.study import load_study
from scaleproof.evidence.writer import digest_of
from studies import FakeArm, build_study


def ending(**status_by_rank: str) -> Callable[[int, int], RankOutcome | None]:
    def outcome(_seed: int, rank: int) -> RankOutcome | None:
        status = status_by_rank.get(f"rank{rank}", "ok")
        if status == "none":
            return None
        return RankOutcome(status=status, epoch=0, step=0, phase="ended")  # type: ignore[arg-type]

    return outcome


@pytest.mark.parametrize(
    ("outcomes", "status", "is_usable"),
    [
        ({}, "complete", True),
        ({"rank1": "diverged"}, "diverged", True),
        ({"rank1": "error"}, "failed", False),
        ({"rank0": "none", "rank1": "error"}, "failed", False),
        ({"rank1": "none"}, "unfinished", False),
        ({"rank0": "none", "rank1": "none"}, "unfinished", False),
    ],
)
def test_how_a_run_ended(
    tmp_path: Path, outcomes: dict[str, str], status: str, is_usable: bool
) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, outcome=ending(**outcomes)))
    run = study.runs["ddp-2", 0]

    assert run.status == status
    assert run.is_usable is is_usable
    assert len(study.runs_of(study.candidate)) == (3 if is_usable else 0)
    assert len(study.pairs) == (3 if is_usable else 0)
    assert len(study.unusable_runs) == (0 if is_usable else 3)


def test_a_run_that_never_began_is_missing(tmp_path: Path) -> None:
    build_study(tmp_path)
    shutil.rmtree(tmp_path / "ddp-2-seed1")
    study = load_study(tmp_path)

    assert study.runs["ddp-2", 1].status == "missing"
    assert [pair.seed for pair in study.pairs] == [0, 2]


def test_a_run_without_its_manifest_is_unfinished(tmp_path: Path) -> None:
    build_study(tmp_path)
    (tmp_path / "ddp-2-seed1" / "manifest.json").unlink()

    assert load_study(tmp_path).runs["ddp-2", 1].status == "unfinished"


def test_a_rank_without_any_file_makes_the_run_unfinished(tmp_path: Path) -> None:
    build_study(tmp_path)
    for path in (tmp_path / "ddp-2-seed1").glob("rank-00001*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    assert load_study(tmp_path).runs["ddp-2", 1].status == "unfinished"


@pytest.mark.parametrize("key", COMPARABLE_KEYS)
def test_every_key_that_must_agree_is_compared(tmp_path: Path, key: str) -> None:
    other = {"precision": "bf16", "device_kind": "cuda", "class_names": ("a", "b", "c")}
    sound = build_study(tmp_path / "sound", seeds=(0,)).runs["ddp-2", 0].manifest
    value = getattr(sound, key)
    changed = other.get(key, value + 1 if isinstance(value, int) else f"not {value}")
    study = build_study(
        tmp_path / "other", seeds=(0,), candidate=FakeArm(num_ranks=2, manifest={key: changed})
    )

    # What the study asked for is compared with that first.
    words = "is not a run of this study" if key in ("num_epochs", "device_kind") else "be compared"
    with pytest.raises(EvidenceError, match=rf"{words}: {key} is ") as caught:
        _ = study.pairs
    assert repr(value) in str(caught.value)
    assert repr(changed) in str(caught.value)


def test_the_loss_of_a_step_is_the_mean_over_the_samples_of_all_ranks(tmp_path: Path) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2), seeds=(0,))
    run = study.runs["ddp-2", 0]
    for rank, (loss, num_samples) in zip(run.ranks, ((1.0, 6), (4.0, 2)), strict=True):
        records = run.paths.records(rank.rank)
        for epoch in rank.epochs:
            table = rank.steps(epoch).copy()
            table["loss"], table["num_samples"] = loss, num_samples
            path = rank.folder / epoch.steps.file
            np.save(path, table)
            digest = digest_of(path.read_bytes())
            old = f'"{epoch.steps.file}","digest":"{epoch.steps.digest}"'
            new = f'"{epoch.steps.file}","digest":"{digest}"'
            records.write_text(records.read_text().replace(old, new))

    losses = load_study(tmp_path).runs["ddp-2", 0].step_losses
    assert losses.shape == (30,)
    assert losses == pytest.approx((1.0 * 6 + 4.0 * 2) / 8)


def test_an_epoch_takes_as_long_as_its_slowest_rank_and_counts_when_all_did_it(
    tmp_path: Path,
) -> None:
    build_study(tmp_path, seeds=(0,))
    records = tmp_path / "ddp-2-seed0" / "rank-00001.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    epochs = [line for line in lines if '"type":"epoch"' in line]
    slower = [
        line.replace('"train_time_s":0.', '"train_time_s":7.') if line in epochs[:-1] else line
        for line in lines
        if line != epochs[-1]
    ]
    records.write_text("".join(slower))
    times_s = load_study(tmp_path).runs["ddp-2", 0].epoch_times_s

    assert times_s.shape == (4,)
    assert (times_s > 7).all()


def test_an_evaluation_joins_the_ranks_by_sample(tmp_path: Path) -> None:
    run = build_study(tmp_path, seeds=(0,)).runs["ddp-2", 0]

    assert run.evaluated_epochs == (0, 1, 2, 3, 4, 5)
    assert run.final_evaluation["sample_id"].tolist() == list(range(300))
    assert (run.evaluation(0)["prediction"] == 0).all()
    with pytest.raises(EvidenceError, match=r"no evaluation after 9 epochs, only after \[0, 1"):
        run.evaluation(9)


def test_an_epoch_that_only_one_rank_evaluated_does_not_count(tmp_path: Path) -> None:
    build_study(tmp_path, seeds=(0,))
    records = tmp_path / "ddp-2-seed0" / "rank-00001.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(s for s in lines if '"evaluation","epochs_done":5' not in s))

    assert load_study(tmp_path).runs["ddp-2", 0].evaluated_epochs == (0, 1, 2, 3, 4)


def test_nothing_evaluated_is_an_empty_table(tmp_path: Path) -> None:
    build_study(tmp_path, seeds=(0,))
    for records in tmp_path.glob("*/*.jsonl"):
        records.write_text("")
    run = load_study(tmp_path).runs["ddp-2", 0]

    assert run.final_evaluation.dtype == EVALUATION_TABLE
    assert len(run.final_evaluation) == len(run.step_losses) == len(run.epoch_times_s) == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"role": "baseline"', '"role": "candidate"', "expected one candidate"),
        ('"role": "candidate"', '"role": "baseline"', "expected one candidate"),
        ('"name": "ddp-2"', '"name": "single-1"', "names an arm or a seed twice"),
        ('"name": "ddp-2"', '"name": "../ddp-2"', "is no folder name"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    build_study(tmp_path, seeds=(0,))
    path = tmp_path / "study.json"
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(EvidenceError, match=words):
        load_study(tmp_path)


def test_a_seed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"seeds \[1, 1\]"):
        build_study(tmp_path, seeds=(1, 1))
