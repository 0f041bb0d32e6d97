"""Comparing scripts: what is planned, in which order it runs, and which runs are refused."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_runs import FakeRuns, predicting
from observed import FakeScript
from scaleproof.errors import RunError, UsageError
from scaleproof.evidence.hangs import HangRecord
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.study import Run, load_study
from scaleproof.evidence.writer import write_json
from scaleproof.launch import script_arms
from scaleproof.launch.observe_command import run_observed
from scaleproof.launch.script_arms import (
    ScriptOptions,
    ScriptPlan,
    ScriptWatcher,
    conduct_scripts,
    plan_scripts,
)
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import judge_study

PYTHON = sys.executable
ONE, TWO = FakeScript(num_ranks=1, parallelism="none"), FakeScript(step_time_s=0.04)


def plan(*, profile: dict[str, Any] | None = None, **options: Any) -> ScriptPlan:
    defaults = {"device_kind": "cpu", "share_device": True}  # the machine may have one core
    return plan_scripts(ScriptOptions(**{**defaults, **options}), profile or {})


def two_commands(line: str = f"{PYTHON} train.py", **options: Any) -> ScriptPlan:
    return plan(baseline=line, candidate=f"{line} --more", **options)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)


def conduct(study: Path, plan: ScriptPlan, runs: FakeRuns, watcher: Any = None) -> None:
    conduct_scripts(StudyPaths(study), plan, watcher or ScriptWatcher(), runs)


# What is planned


def test_a_script_runs_through_torchrun_in_both_arms(script: str):
    planned = plan(script=script, arguments=("--lr", "0.1"), num_devices=2)
    baseline, candidate = planned.request.arms
    assert [baseline.name, baseline.role, baseline.num_devices] == ["script-1", "baseline", 1]
    assert [candidate.name, candidate.role, candidate.num_devices] == ["script-2", "candidate", 2]
    for arm, count in ((baseline, "1"), (candidate, "2")):
        argv = planned.argv(arm, 0)
        assert argv[:4] == (PYTHON, "-m", "torch.distributed.run", "--standalone")
        assert argv[4:] == ("--nproc-per-node", count, script, "--lr", "0.1")
    assert planned.request.kind == "script"
    assert planned.request.target == script


def test_two_commands_are_split_as_a_shell_would():
    planned = plan(
        baseline=f"{PYTHON} train.py --name 'a b'",
        candidate=f"{PYTHON} -m accelerate.commands.launch train.py",
        profile={"confidence": 0.9},
    )
    baseline, candidate = planned.request.arms
    assert planned.argv(baseline, 0) == (PYTHON, "train.py", "--name", "a b")
    assert [baseline.name, candidate.name] == ["baseline", "candidate"]
    assert baseline.num_devices == candidate.num_devices == 0  # only the runs can tell
    assert planned.request.target == "train.py"
    assert planned.request.profile == {"confidence": 0.9}


def test_the_seed_is_put_wherever_it_is_asked_for(script: str):
    planned = plan(script=script, arguments=("--seed={seed}", "--out", "runs/{seed}"), num_seeds=2)
    assert planned.argv(planned.request.arms[1], 1)[-3:] == ("--seed=1", "--out", "runs/1")
    assert planned.has_seeds
    assert not plan(script=script, num_seeds=2).has_seeds
    assert not plan(baseline=f"{PYTHON} a.py {{seed}}", candidate=f"{PYTHON} a.py").has_seeds


def test_which_arm_goes_first_alternates(script: str):
    planned = plan(script=script, num_seeds=3)
    order = [f"{arm.num_devices}@{seed}" for arm, seed in planned.runs()]
    assert order == ["1@0", "2@0", "2@1", "1@1", "1@2", "2@2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"script": "nowhere.py"}, f"there is no script {Path('nowhere.py').resolve()}"),
        ({"script": __file__, "num_devices": 1}, "--devices 1: a comparison needs 2 or more"),
        ({"script": __file__, "num_devices": 0}, "--devices 0: a comparison needs 2 or more"),
        ({"script": __file__, "num_seeds": 0}, "--seeds 0: expected 1 or more"),
        ({"script": __file__, "timeout_s": 0.0}, "--timeout 0.0: expected more than 0 seconds"),
        (
            {"script": __file__, "num_devices": 4096, "share_device": False},
            "--devices 4096: this machine has",
        ),
        ({"baseline": "", "candidate": "python a.py"}, "--baseline is empty"),
        ({"baseline": "true", "candidate": "python 'a.py"}, "--candidate \"python 'a.py\" can't"),
        ({"baseline": "LR=1 python a.py", "candidate": "true"}, "env NAME=VALUE python train.py"),
        ({"baseline": "true", "candidate": "torchrn a.py"}, "there is no program 'torchrn'"),
        ({"baseline": "true", "candidate": "true", "num_devices": 2}, "--devices 2 is for"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(options: Any, expected: str):
    with pytest.raises(UsageError) as refused:
        plan(**options)
    assert expected in str(refused.value)


# How it runs


def test_runs_alternate_are_pinned_on_cpu_and_write_into_their_logs(script: str, tmp_path: Path):
    runs = FakeRuns(tmp_path / "made", script_1=ONE, script_2=TWO)
    study = tmp_path / "study"
    conduct(study, plan(script=script, arguments=("{seed}",), num_seeds=2), runs)
    names = [name for name, _ in runs.commands]
    assert names == ["script-1-seed0", "script-2-seed0", "script-2-seed1", "script-1-seed1"]
    assert runs.pins == [True] * 4
    shell, _, line, log, *argv = runs.commands[2][1]
    assert shell == "/bin/sh"
    assert "OMP_NUM_THREADS" in line
    assert log == str(study / "script-2-seed1" / "logs" / "output.log")
    assert argv[-2:] == [script, "1"]


def test_on_cuda_nothing_is_pinned(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script_arms, "check_devices", lambda *_, **__: None)
    monkeypatch.setattr(script_arms, "num_available", lambda kind: 2)
    on_cuda = {"manifest": {"device_kind": "cuda"}}
    runs = FakeRuns(
        tmp_path / "made",
        script_1=FakeScript(num_ranks=1, **on_cuda),
        script_2=FakeScript(**on_cuda),
    )
    conduct(tmp_path / "study", plan(script=script, device_kind="cuda"), runs)
    assert runs.pins == [False, False]
    assert "OMP_NUM_THREADS" not in runs.commands[0][1][2]


@pytest.mark.parametrize(("step_time_s", "expected"), [(0.02, "yes"), (0.2, "no")])
def test_a_comparison_is_judged_from_what_the_runs_left(
    tmp_path: Path, step_time_s: float, expected: str
):
    runs = FakeRuns(
        tmp_path / "made",
        baseline=FakeScript(num_ranks=1, parallelism="none", more=predicting(0.9)),
        candidate=FakeScript(step_time_s=step_time_s, more=predicting(0.9)),
    )
    conduct(tmp_path / "study", two_commands(num_seeds=3, share_device=False), runs)
    study = load_study(tmp_path / "study")
    assert [arm.num_devices for arm in study.request.arms] == [1, 2]
    assert study.request.num_epochs == 3
    assert len(study.pairs) == 3
    answers = {a.question: a for a in judge_study(study, Profile()).answers}
    assert answers["faster"].answer == expected, answers["faster"]
    assert answers["as-good"].answer != "no", answers["as-good"]


def test_an_abort_after_training_does_not_end_the_comparison(script: str, tmp_path: Path):
    ended: list[tuple[str, int]] = []

    class Watcher(ScriptWatcher):
        def run_ended(self, run: Run, exit_code: int, elapsed_s: float) -> None:
            ended.append((run.name, exit_code))

    runs = FakeRuns(tmp_path / "made", script_1=ONE, script_2=TWO)
    runs.exit_code = 134
    conduct(tmp_path / "study", plan(script=script), runs, Watcher())
    assert ended == [("script-1-seed0", 134), ("script-2-seed0", 134)]


def test_ctrl_c_ends_the_comparison_whatever_the_script_makes_of_it(script: str, tmp_path: Path):
    """The script saves what it has and exits with 0, all evidence is there."""

    def press(paths: RunPaths) -> None:
        before = signal.signal(signal.SIGINT, lambda *_: None)
        os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, before)

    runs = FakeRuns(tmp_path / "made", script_1=ONE, script_2=TWO)
    runs.then = press
    with pytest.raises(KeyboardInterrupt):
        conduct(tmp_path / "study", plan(script=script), runs)
    assert [name for name, _ in runs.commands] == ["script-1-seed0"]


# Which runs are refused


def test_the_rank_that_failed_is_named_with_its_traceback(script: str, tmp_path: Path):
    def outcome(rank: int) -> RankOutcome:
        return RankOutcome(
            status="error",
            epoch=1,
            step=6,
            phase="training",
            error_type="ValueError",
            message="bad batch" if rank == 1 else "Connection closed by peer",
            traceback='File "train.py", line 7, in <module>' if rank == 1 else "",
            ended_at_unix_s=1.7e9 - rank,
        )

    runs = FakeRuns(tmp_path / "made", script_1=ONE, script_2=FakeScript(outcome=outcome))
    with pytest.raises(RunError) as failed:
        conduct(tmp_path / "study", plan(script=script, num_seeds=2), runs)
    assert "script-2-seed0: rank 1 failed in epoch 2, step 7: ValueError: bad batch." in str(
        failed.value
    )
    assert "line 7, in <module>" in str(failed.value)
    assert "output.log" in str(failed.value)
    assert len(runs.commands) == 2


@pytest.mark.parametrize(
    ("leave", "expected"),
    [
        (lambda paths: None, "no training was seen in it"),
        (
            lambda paths: (
                paths.processes.mkdir(parents=True),
                paths.trouble(7).write_text('{"what": "process", "why": "torch 1.4"}\n'),
            ),
            "its training could not be observed: torch 1.4.",
        ),
    ],
)
def test_a_run_that_left_no_evidence_is_explained_by_its_last_lines(
    script: str, tmp_path: Path, leave: Callable[[RunPaths], None], expected: str
):
    def then(paths: RunPaths) -> None:
        lines = [f"line {number}" for number in range(100_000)]
        (paths.logs / "output.log").write_text("\n".join(lines))
        leave(paths)

    runs = FakeRuns(tmp_path / "made")
    runs.then, runs.exit_code = then, 3
    with pytest.raises(RunError) as failed:
        conduct(tmp_path / "study", plan(script=script), runs)
    message = str(failed.value)
    assert "script-1-seed0 ended with exit code 3" in message
    assert expected in message
    assert "line 99999" in message
    assert "line 99979" not in message


def test_a_hang_says_who_waited_and_not_how_it_was_ended(script: str, tmp_path: Path):
    def hang(paths: RunPaths) -> None:
        (paths.logs / "output.log").write_text("Process 7 got signal: 15")
        write_json(paths.hang, HangRecord(timeout_s=6.0, num_ranks=2, ranks=()))

    runs = FakeRuns(tmp_path / "made")
    runs.then, runs.exit_code = hang, 143
    with pytest.raises(RunError) as failed:
        conduct(tmp_path / "study", plan(script=script), runs)
    assert "script-1-seed0: nothing moved for 6 s" in str(failed.value)
    assert "signal" not in str(failed.value)


def test_a_rank_that_vanished_is_named(script: str, tmp_path: Path):
    gone = FakeScript(
        outcome=lambda rank: (
            RankOutcome(status="ok", epoch=2, step=0, phase="ended") if rank == 0 else None
        )
    )
    runs = FakeRuns(tmp_path / "made", script_1=ONE, script_2=gone)
    with pytest.raises(RunError, match="rank 1 left no word of how it ended"):
        conduct(tmp_path / "study", plan(script=script), runs)


@pytest.mark.parametrize(
    ("script_1", "expected"),
    [
        (
            FakeScript(num_ranks=1, manifest={"device_kind": "cuda"}),
            "trained on cuda, expected cpu",
        ),
        (FakeScript(num_ranks=2), "script-1-seed0 trained with 2 ranks, expected 1"),
    ],
)
def test_a_run_of_something_else_is_refused(
    script: str, tmp_path: Path, script_1: FakeScript, expected: str
):
    runs = FakeRuns(tmp_path / "made", script_1=script_1, script_2=TWO)
    with pytest.raises(UsageError, match=expected):
        conduct(tmp_path / "study", plan(script=script), runs)


def test_ranks_that_share_a_device_unasked_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script_arms, "num_available", lambda kind: 1)
    runs = FakeRuns(tmp_path / "made", baseline=ONE, candidate=TWO)
    with pytest.raises(UsageError, match=r"candidate-seed0 trained with 2 ranks, and this machine"):
        conduct(tmp_path / "alone", two_commands(share_device=False), runs)
    conduct(tmp_path / "shared", two_commands(share_device=True), runs)


def test_a_real_command_keeps_its_output_to_itself_and_has_nothing_to_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    script = tmp_path / "no_training.py"
    script.write_text(
        "import os, sys\n"
        "print('threads', os.environ['OMP_NUM_THREADS'], 'read', repr(sys.stdin.read()))\n"
        "print('to stderr', sys.argv[1:], file=sys.stderr)\n"
        "sys.exit(5)\n"
    )
    planned = two_commands(f"{PYTHON} {script} 'a b' '$HOME' {{seed}}")
    with pytest.raises(RunError) as failed:
        conduct_scripts(StudyPaths(tmp_path / "study"), planned, ScriptWatcher(), run_observed)
    message = str(failed.value)
    assert "ended with exit code 5, and no training was seen in it" in message
    assert "read ''" in message
    assert "to stderr ['a b', '$HOME', '0']" in message
    log = (tmp_path / "study" / "baseline-seed0" / "logs" / "output.log").read_text()
    assert log.startswith("threads ")
    assert capfd.readouterr() == ("", "")
