"""Real scripts, checked on two ranks: where nothing is wrong, one process that is fed what both
were fed computes the gradients that they used. What can't be replayed is said; the rest stands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from observing import Observed, check
from scaleproof.checks.check import Outcome
from scaleproof.checks.replayed import ComparedStep, compared_steps
from scaleproof.evidence.close_ups import ReplayEnd
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run, load_study
from scaleproof.verdict.answers import Answer
from scaleproof.verdict.profile import profile_from_dict
from scaleproof.verdict.verdict import judge_study

pytestmark = pytest.mark.distributed

SCRIPTS = Path(__file__).parent / "checked"

AGREES = 1e-5
"""Distance between the gradient that was used and the replayed one, relative to it: rounding."""


def checked(tmp_path: Path, name: str, *options: str) -> Observed:
    return check(tmp_path, SCRIPTS / name, options=("--steps", "0", *options), cwd=tmp_path)


def run_of(observed: Observed) -> Run:
    (run,) = observed.study.runs.values()
    return run


def ends_of(observed: Observed) -> dict[str, ReplayEnd]:
    return {name: replay.end for name, replay in replays_of(run_of(observed)).items()}


def assert_agrees(observed: Observed, num_steps: int, reference: str) -> Sequence[ComparedStep]:
    ends = ends_of(observed)
    assert {end.why_not for end in ends.values()} == {""}, str(observed)
    assert {end.num_steps for end in ends.values()} == {num_steps}, str(observed)
    steps = list(compared_steps(run_of(observed)))
    assert len(steps) == num_steps
    for step in steps:
        assert (step.why_not, step.reference) == ("", reference)
        assert step.error < AGREES, f"step {step.step}: {step.error:.1e}\n{observed}"
        assert not step.off
    assert not observed.failed, str(observed)
    assert observed.is_sound is Answer.YES, str(observed)
    assert observed.returncode == 0
    assert f"Replayed {num_steps} of {num_steps} steps on one process" in observed.stdout
    assert not list(observed.study.paths.root.rglob("*.bin")), "material was left behind"
    return steps


def test_augmentation_in_workers_batch_norm_and_dropout(tmp_path: Path) -> None:
    """Its schedule is as long as its loader on each rank, which the replay believes in too."""
    observed = checked(tmp_path, "augmented_images.py")
    steps = assert_agrees(observed, 9, "union")
    assert [sum(step.num_samples or ()) for step in steps] == [32, 32, 20] * 3
    replay = replays_of(run_of(observed))["union"].run.ranks[0]
    rank = run_of(observed).ranks[0]
    rates = rank.observed_steps["learning_rate"]
    assert replay.observed_steps["learning_rate"].tolist() == rates.tolist()
    assert len(set(rates.tolist())) > 5


def test_padded_microbatches_without_sync_and_clipped(tmp_path: Path) -> None:
    observed = checked(tmp_path, "padded_microbatches.py")
    steps = assert_agrees(observed, 6, "whole-step")
    assert {step.num_backwards for step in steps} == {3}
    assert set(ends_of(observed)) == {"union", "reordered", "whole-step"}


def test_two_optimizers_with_scaled_gradients_and_noise(tmp_path: Path) -> None:
    steps = assert_agrees(checked(tmp_path, "scaled_gan.py"), 18, "union")
    assert {step.optimizer for step in steps} == {0, 1}
    assert not any(step.is_random for step in steps)


def test_a_stream_without_a_batch_size_in_spawned_ranks(tmp_path: Path) -> None:
    assert_agrees(checked(tmp_path, "spawned_stream.py"), 16, "union")


def test_sharded_and_clipped(tmp_path: Path) -> None:
    observed = checked(tmp_path, "sharded.py")
    steps = assert_agrees(observed, 8, "union")
    assert [sum(step.num_samples or ()) for step in steps] == [12, 12, 12, 4] * 2


# what can't be replayed


def assert_rest_stands(observed: Observed) -> None:
    """Nothing is found, and enough was looked at without a replay to say so."""
    assert not observed.failed, str(observed)
    assert observed.is_sound is Answer.YES, str(observed)
    for name in ("unsynced-gradients", "replica-drift", "clipped-before-reduction"):
        assert observed.finding(name).outcome.value == "pass", str(observed)
    assert observed.finding("misscaled-gradients").outcome.value == "not-applicable", str(observed)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("searching.py", "LBFGS evaluates the loss as often in a step as it likes"),
        ("batches_by_hand.py", "no DataLoader was seen to hand out batches while it trained"),
    ],
)
def test_what_can_not_be_replayed_is_said(tmp_path: Path, script: str, why: str) -> None:
    observed = checked(tmp_path, script)
    (end,) = ends_of(observed).values()
    assert (end.num_steps, why in end.why_not) == (0, True)
    assert f"Not replayed on one process: {why}" in words(observed.stdout)
    assert_rest_stands(observed)


def test_a_script_that_refuses_one_process(tmp_path: Path) -> None:
    observed = checked(tmp_path, "never_alone.py")
    for end in ends_of(observed).values():
        assert end.num_steps == 0
        assert "on one process it fails" in end.why_not
    assert_rest_stands(observed)
    assert "give me at least two ranks" in words(observed.stdout)


def test_random_numbers_that_can_not_be_drawn_again(tmp_path: Path) -> None:
    """Mixup by numpy: one process mixes otherwise than the ranks, which is no fault."""
    observed = checked(tmp_path, "mixup.py")
    steps = list(compared_steps(run_of(observed)))
    assert len(steps) == 4
    assert all(step.is_random for step in steps)
    assert not observed.failed, str(observed)
    assert observed.is_sound is Answer.YES, str(observed)
    assert observed.finding("misscaled-gradients").outcome is not Outcome.PASS


# Ctrl-C


def test_ctrl_c_leaves_no_process_and_a_folder_that_can_be_judged(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    text = (SCRIPTS / "batches_by_hand.py").read_text()
    script.write_text(text.replace("range(8)", "range(10**6)").replace("step * 8", "step % 8 * 8"))
    study = tmp_path / "study"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scaleproof.cli", "check", str(script)),
            *("--steps", "0", "--out", str(study)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        deadline_s = time.monotonic() + 90
        while not list(study.glob("observed-seed0/material/rank-*.jsonl")) and not list(
            study.glob("observed-seed0/rank-00001/probe*")
        ):
            assert time.monotonic() < deadline_s, "no step was seen"
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 3
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    _, alive = psutil.wait_procs(started, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"scaleproof judge {study}" in words(err)
    judged = judge_study(load_study(study), profile_from_dict({}))
    assert judged.findings
    assert not list(study.rglob("*.bin"))
