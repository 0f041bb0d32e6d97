"""However a study is damaged, cut or edited, the judge never says adopt, and no report breaks."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaleproof.errors import EvidenceError, UsageError
from scaleproof.evidence.records import EVALUATION_TABLE, STEP_TABLE, TensorKind
from scaleproof.evidence.study import load_study
from scaleproof.evidence.writer import digest_of
from scaleproof.report.formats import FORMATS, render_text
from scaleproof.report.summary import summarise
from scaleproof.verdict.answers import Decision, Verdict
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import judge_study
from studies import FakeArm, build_study, flip_share

CANDIDATE = "ddp-2"
PROFILE = Profile(checks={"accuracy-drop": {"max_drop": 0.03}, "recall-drop": {"max_drop": 0.15}})


def judge_and_report(root: Path, formats: tuple[str, ...] = FORMATS) -> Verdict:
    study = load_study(root)
    verdict = judge_study(study, PROFILE)
    summary = summarise(study, verdict)
    for name in formats:
        text = render_text(summary, name)
        assert "nan" not in re.findall(r"[a-z]+", text.lower()), name
    return verdict


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound") / "study"
    build_study(root)
    return root


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "study"))


def test_undamaged_it_is_adopted(copy: Path) -> None:
    assert judge_and_report(copy).decision is Decision.ADOPT


# --- damage: each takes the folder of the study


def records(root: Path, run: str, rank: int) -> Path:
    return root / run / f"rank-{rank:05d}.jsonl"


def without(pattern: str, *places: tuple[str, int]) -> Callable[[Path], None]:
    """Records that match are gone from the rank's file."""

    def damage(root: Path) -> None:
        for run, rank in places:
            path = records(root, run, rank)
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if not re.search(pattern, line)]
            assert len(kept) < len(lines), f"no record of {run} rank {rank} matches {pattern}"
            path.write_text("".join(kept))

    return damage


def twice(pattern: str, run: str, rank: int) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = records(root, run, rank)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line * (2 if re.search(pattern, line) else 1) for line in lines))

    return damage


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in root.glob(file):
            content = json.loads(path.read_text())
            assert changes.keys() <= content.keys()
            path.write_text(json.dumps(content | changes))

    return damage


def edited_candidate(**changes: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "study.json"
        content = json.loads(path.read_text())
        content["arms"][1].update(changes)
        path.write_text(json.dumps(content))

    return damage


def removed(*patterns: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for pattern in patterns:
            found = list(root.glob(pattern))
            assert found
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def renamed(old: str, new: str) -> Callable[[Path], None]:
    """A rank's files under another number."""

    def damage(root: Path) -> None:
        for path in sorted(root.glob(f"{CANDIDATE}-seed1/rank-{old}*")):
            path.rename(path.with_name(path.name.replace(old, new)))

    return damage


def copied_rank(root: Path) -> None:
    for path in sorted(root.glob(f"{CANDIDATE}-seed1/rank-00001*")):
        target = path.with_name(path.name.replace("00001", "00002"))
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def cut(root: Path) -> None:
    path = records(root, f"{CANDIDATE}-seed0", 1)
    path.write_bytes(path.read_bytes()[:-20])


def with_array(
    kind: str, change: Callable[[np.ndarray], np.ndarray], run: str = f"{CANDIDATE}-seed0"
) -> Callable[[Path], None]:
    """Arrays of rank 0 changed, with the digest in its record: whole files, odd content."""

    def damage(root: Path) -> None:
        path = records(root, run, 0)
        text = path.read_text()
        for array in sorted((root / run / "rank-00000").glob(f"{kind}-*.npy")):
            before = digest_of(array.read_bytes())
            np.save(array, change(np.load(array)))
            text = text.replace(before, digest_of(array.read_bytes()))
        path.write_text(text)

    return damage


def with_time(value: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = records(root, f"{CANDIDATE}-seed0", 1)
        path.write_text(
            re.sub(r'"train_time_s":[\d.]+', f'"train_time_s":{value}', path.read_text())
        )

    return damage


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for each in damages:
            each(root)

    return damage


ONE = (f"{CANDIDATE}-seed0", 1)
BOTH_RANKS = ((f"{CANDIDATE}-seed0", 0), (f"{CANDIDATE}-seed0", 1))
ALL = (*((f"{CANDIDATE}-seed{seed}", rank) for seed in range(3) for rank in range(2)),)
BASELINES = (*((f"single-1-seed{seed}", 0) for seed in range(3)),)
LAST_EVALUATION = r'"evaluation","epochs_done":5'

DAMAGES: dict[str, Callable[[Path], None]] = {
    "records-of-a-rank-gone": removed(f"{CANDIDATE}-seed0/rank-00001.jsonl"),
    "arrays-of-a-rank-gone": removed(f"{CANDIDATE}-seed0/rank-00001"),
    "every-file-of-a-rank-gone": removed(f"{CANDIDATE}-seed0/rank-00001*"),
    "outcome-gone": removed(f"{CANDIDATE}-seed0/rank-00001.outcome.json"),
    "manifest-gone": removed(f"{CANDIDATE}-seed0/manifest.json"),
    "a-run-gone": removed(f"{CANDIDATE}-seed0"),
    "two-runs-gone": removed(f"{CANDIDATE}-seed0", f"{CANDIDATE}-seed2"),
    "all-candidate-runs-gone": removed(f"{CANDIDATE}-seed*"),
    "all-baseline-runs-gone": removed("single-1-seed*"),
    "all-runs-gone": removed("*-seed*"),
    "evaluations-of-a-rank-gone": without('"evaluation"', ONE),
    "last-evaluation-of-a-rank-gone": without(LAST_EVALUATION, ONE),
    "last-evaluation-of-a-run-gone": without(LAST_EVALUATION, *BOTH_RANKS),
    "last-evaluation-of-all-gone": without(LAST_EVALUATION, *ALL, *BASELINES),
    "last-evaluation-of-a-baseline-gone": without(LAST_EVALUATION, BASELINES[0]),
    "an-epoch-of-a-rank-gone": without(r'"epoch","epoch":2', ONE),
    "last-epoch-of-a-rank-gone": without(r'"epoch","epoch":4', ONE),
    "last-epoch-of-a-run-gone": without(r'"epoch","epoch":4', *BOTH_RANKS),
    "an-epoch-of-a-baseline-gone": without(r'"epoch","epoch":2', BASELINES[0]),
    "samples-of-an-epoch-gone": without(r'"samples","epoch":2', ONE),
    "samples-of-all-gone": without('"samples"', *ALL),
    "last-state-of-a-rank-gone": without(r'"state","epochs_done":5', ONE),
    "last-states-gone": without(r'"state","epochs_done":5', *ALL),
    "states-of-all-gone": without('"state"', *ALL),
    "states-of-a-run-gone": without('"state"', *BOTH_RANKS),
    "epoch-twice": twice(r'"epoch","epoch":2', *ONE),
    "epoch-twice-in-baseline": twice(r'"epoch","epoch":2', *BASELINES[0]),
    "samples-twice": twice(r'"samples","epoch":2', *ONE),
    "evaluation-twice": twice(LAST_EVALUATION, *ONE),
    "state-twice": twice(r'"state","epochs_done":5', *ONE),
    "everything-twice": twice(".", *ONE),
    "last-line-cut": cut,
    "a-rank-too-many": copied_rank,
    "rank-1-called-rank-7": renamed("00001", "00007"),
    "manifest-of-one-rank": edited(f"{CANDIDATE}-seed*/manifest.json", num_ranks=1),
    "manifest-of-no-rank": both(
        edited(f"{CANDIDATE}-seed0/manifest.json", num_ranks=0),
        removed(f"{CANDIDATE}-seed0/rank-*"),
    ),
    "manifest-of-one-device": edited(f"{CANDIDATE}-seed*/manifest.json", num_devices=1),
    "manifest-of-another-strategy": edited(f"{CANDIDATE}-seed*/manifest.json", strategy="single"),
    "manifest-that-shared-a-device": edited(f"{CANDIDATE}-seed*/manifest.json", share_device=True),
    "another-batch-in-one-seed": edited(f"{CANDIDATE}-seed1/manifest.json", global_batch_size=4),
    "fewer-epochs-than-asked": edited("study.json", num_epochs=50),
    "manifests-of-more-epochs": edited("*-seed*/manifest.json", num_epochs=50),
    "no-seeds": edited("study.json", seeds=[]),
    "shared-device": edited("study.json", share_device=True),
    "candidate-of-one-device": edited_candidate(num_devices=1),
    "candidate-of-no-device": edited_candidate(num_devices=0),
    "candidate-of-minus-two-devices": edited_candidate(num_devices=-2),
    "made-at-no-time": edited("study.json", created_at_unix_s=1e300),
    "epoch-time-0": with_time("0.0"),
    "epoch-time-negative": with_time("-1.0"),
    "epoch-time-huge": with_time("1e308"),
    "empty-step-tables": with_array("steps", lambda _: np.zeros(0, STEP_TABLE)),
    "short-step-tables": with_array("steps", lambda table: table[:1]),
    "step-tables-of-two-dims": with_array("steps", lambda table: table[:, np.newaxis]),
    "empty-evaluation-tables": with_array("evaluation", lambda _: np.zeros(0, EVALUATION_TABLE)),
    "evaluation-tables-of-two-dims": with_array("evaluation", lambda table: table[:, np.newaxis]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_study_is_never_adopted(copy: Path, name: str) -> None:
    DAMAGES[name](copy)
    try:
        verdict = judge_and_report(copy, ("terminal", "json", "markdown", "junit"))
    except (EvidenceError, UsageError) as error:
        assert len(str(error)) > 30
        return
    assert verdict.decision is not Decision.ADOPT
    assert all(finding.outcome != "error" for finding in verdict.findings)


# --- odd studies, written whole


def good(**changes: Any) -> FakeArm:
    return FakeArm(num_ranks=2, epoch_time_s=0.55).with_(**changes)


def wrong_class(seed: int, targets: np.ndarray) -> np.ndarray:
    predictions = flip_share(targets, share=0.1, seed=seed)
    predictions[0] = 7
    return predictions


def one_class() -> np.ndarray:
    return np.zeros(300, np.int32)


def no_samples() -> np.ndarray:
    return np.zeros(0, np.int32)


def with_nan(seed: int, num_steps: int) -> np.ndarray:
    losses = 2.0 * np.exp(-np.arange(num_steps) / 20) + 0.2
    losses[-1] = np.nan if seed == 1 else losses[-1]
    return losses


ODD_STUDIES: dict[str, dict[str, Any]] = {
    "no-baseline": {"has_baseline": False},
    "one-seed": {"seeds": (0,)},
    "shared-device": {"share_device": True},
    "no-classes": {"class_names": ()},
    "nan-in-a-seed": {"candidate": good(step_losses=with_nan)},
    "nan-in-a-seed-of-the-baseline": {"baseline": FakeArm(step_losses=with_nan)},
    "nan-when-scored": {"candidate": good(evaluation_loss=lambda seed, done: float("nan"))},
    "a-class-that-is-none": {"candidate": good(predictions=wrong_class)},
    "a-class-that-is-none-in-the-baseline": {"baseline": FakeArm(predictions=wrong_class)},
    "one-class-only": {
        "baseline": FakeArm(targets=one_class),
        "candidate": good(targets=one_class),
    },
    "nothing-to-score": {
        "baseline": FakeArm(targets=no_samples),
        "candidate": good(targets=no_samples),
    },
    "other-samples-scored": {"candidate": good(targets=lambda: FakeArm().targets()[:200])},
    "other-samples-scored-unsaid": {
        "candidate": good(
            targets=lambda: FakeArm().targets()[:200], manifest={"num_evaluation_samples": 300}
        )
    },
    "other-labels": {"candidate": good(targets=lambda: FakeArm().targets()[::-1].copy())},
    "fewer-epochs": {"candidate": good(num_epochs=3)},
    "fewer-epochs-unsaid": {"candidate": good(num_epochs=3, manifest={"num_epochs": 5})},
    "fewer-samples": {"candidate": good(num_train_samples=24)},
    "fewer-samples-unsaid": {
        "candidate": good(num_train_samples=24, manifest={"num_train_samples": 48})
    },
    "no-epochs": {"baseline": FakeArm(num_epochs=0), "candidate": good(num_epochs=0)},
    "one-epoch": {"baseline": FakeArm(num_epochs=1), "candidate": good(num_epochs=1)},
    "two-epochs-of-one-seed": {
        "baseline": FakeArm(num_epochs=2),
        "candidate": good(num_epochs=2),
        "seeds": (0,),
    },
    "no-training-samples": {
        "baseline": FakeArm(num_train_samples=0),
        "candidate": good(num_train_samples=0),
    },
    "one-device-against-one": {"candidate": FakeArm(strategy="ddp")},
    "nothing-learned": {
        "baseline": FakeArm(evaluation_loss=lambda seed, done: 2.0),
        "candidate": good(evaluation_loss=lambda seed, done: 2.0),
    },
}


@pytest.mark.parametrize("name", ODD_STUDIES)
def test_an_odd_study_is_never_adopted(tmp_path: Path, name: str) -> None:
    try:
        build_study(tmp_path, **ODD_STUDIES[name])
        verdict = judge_and_report(tmp_path)
    except (EvidenceError, UsageError) as error:
        assert len(str(error)) > 30
        return
    assert verdict.decision is not Decision.ADOPT
    assert all(finding.outcome != "error" for finding in verdict.findings)
    texts = [verdict.headline, *(finding.sentence for finding in verdict.findings)]
    assert not any(re.search(r"\b(nan|inf)\b", text) for text in texts)


def test_sketches_without_a_distance_are_no_rounding(tmp_path: Path) -> None:
    """Replicas that differ in a last digit agree up to rounding; not when nobody knows how far."""

    def state(seed: int, rank: int, done: int) -> dict[tuple[TensorKind, str], np.ndarray]:
        return {(TensorKind.PARAMETER, "weight"): np.arange(1.0, 9.0) + 1e-12 * rank}

    build_study(tmp_path, candidate=good(state=state))
    assert judge_and_report(tmp_path, ()).decision is Decision.ADOPT
    with_array("state", lambda sketches: np.full_like(sketches, np.nan))(tmp_path)
    verdict = judge_and_report(tmp_path, ())
    assert verdict.decision is Decision.REJECT
    assert "has no finite distance from rank" in verdict.headline
