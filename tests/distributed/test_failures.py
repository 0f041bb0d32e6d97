"""Real runs that fail: the first rank that failed is named, nothing is lost, nobody is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests_of_runs import SMALL_RECIPES

ONE_ARM = ["train", "--devices", "2", "--strategy", "ddp", "--device", "cpu", "--share-device"]

pytestmark = pytest.mark.distributed


def scaleproof(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaleproof.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )


def processes_of(study: Path) -> list[psutil.Process]:
    """Processes that have the study folder on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(study) in command and "scaleproof" in command:
            found.append(process)
    return found


def train(recipe: str, study: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command, *rest = ONE_ARM
    return scaleproof(command, f"{SMALL_RECIPES}:{recipe}", *rest, "--out", str(study), *options)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "raises_on_rank_1",
            "rank 1 failed in epoch 1, step 3: ValueError: the third batch of rank 1 is bad.",
        ),
        ("raises_on_building", "failed while starting: TypeError: hidden_size must be an int."),
        ("killed_on_rank_1", "rank 1 failed in epoch 1, step 3: ProcessEnded"),
        ("mismatched_collective", "tensors of different sizes"),
        ("different_models", "other parameters on one rank than on another"),
    ],
)
def test_the_rank_that_failed_first_is_named_once(recipe: str, expected: str, tmp_path: Path):
    study = tmp_path / "study"
    result = train(recipe, study)
    assert result.returncode == 4, result.stderr
    assert result.stderr.count(expected) == 1, result.stderr
    assert "src/scaleproof" not in result.stderr  # no traceback of ours
    assert f"The evidence so far is in {study}" in result.stderr
    assert processes_of(study) == []
    judged = scaleproof("judge", str(study))
    assert judged.returncode == 4, judged.stdout + judged.stderr
    assert "failed" in judged.stdout


def test_the_users_own_frames_are_in_the_traceback(tmp_path: Path):
    result = train("raises_on_rank_1", tmp_path / "study")
    assert result.stderr.count("small_recipes.py") == 2  # forward and _raise
    assert result.stderr.count("Traceback") == 1


def test_a_stuck_collective_times_out_naming_rank_and_step(tmp_path: Path):
    result = train("stuck_on_rank_1", tmp_path / "study", "--timeout", "4")
    assert result.returncode == 4
    assert (
        "rank 0 waited in vain in a collective for another rank in epoch 1, step 3" in result.stderr
    )
    assert "Rank 1 never came: it was last seen in epoch 1, step 3" in result.stderr
    assert processes_of(tmp_path / "study") == []


def test_a_recipe_that_raises_on_loading_starts_nothing(tmp_path: Path):
    result = train("raises_on_loading", tmp_path / "study")
    assert result.returncode == 4
    assert "raised KeyError: 'no such column: label'" in result.stderr
    assert not (tmp_path / "study").exists()


def begin_slow_compare(study: Path) -> subprocess.Popen[str]:
    """A comparison that would last minutes, running until its second epoch has begun."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scaleproof.cli", "compare", f"{SMALL_RECIPES}:slow"),
            *("--device", "cpu", "--share-device", "--out", str(study)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (study / "ddp-2-seed0" / "rank-00001" / "steps-0001.npy").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_ends_everything_within_5_s_and_leaves_a_study(tmp_path: Path):
    study = tmp_path / "study"
    process = begin_slow_compare(study)
    assert len(processes_of(study)) >= 6  # the command, two agents, three ranks
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert processes_of(study) == []
    assert process.returncode == 130
    assert f"scaleproof judge {study}" in stderr
    assert "Traceback" not in stderr
    judged = scaleproof("judge", str(study))
    assert judged.returncode == 3, judged.stdout + judged.stderr
    assert "ddp-2-seed0" in judged.stdout


def test_nobody_is_left_when_the_command_itself_is_killed(tmp_path: Path):
    study = tmp_path / "study"
    process = begin_slow_compare(study)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while processes_of(study) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(study) == []
    assert scaleproof("judge", str(study)).returncode == 3


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_evidence_so_far_is_kept(tiny_disk: Path):
    study = tiny_disk / "study"
    result = train("sound", study, "--epochs", "200")
    assert result.returncode == 4
    assert "can't write" in result.stderr, result.stderr
    assert "No space left on device" in result.stderr
    assert "free some space, or name a folder on another disk with --out" in result.stderr
    assert "Traceback" not in result.stderr
    records = study / "ddp-2-seed0" / "rank-00000.jsonl"
    assert records.read_bytes().count(b'"type":"epoch"') > 1
    assert processes_of(study) == []


def test_much_output_of_a_recipe_goes_to_the_logs(tmp_path: Path):
    result = train("prints_a_lot", tmp_path / "study")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) < 20_000
    logs = list((tmp_path / "study").glob("*/logs/**/stdout.log"))
    assert sum(log.stat().st_size for log in logs) > 1_000_000
