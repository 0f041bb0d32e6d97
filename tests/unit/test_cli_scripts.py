"""The command line for scripts: observe, and compare of a script or of two commands."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from fake_runs import FakeRuns, predicting
from observed import FakeScript
from scaleproof import cli
from scaleproof.evidence.hangs import HangRecord
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.study import load_study
from scaleproof.evidence.writer import write_json
from scaleproof.launch import observe_command, script_arms

PYTHON = sys.executable
ONE = FakeScript(num_ranks=1, parallelism="none")
HERE = ("--device", "cpu", "--share-device")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``scaleproof ARGUMENTS``, in this process."""
    with pytest.raises(SystemExit) as exit_:
        cli.app(args=list(arguments))
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """What stands in for running commands, for ``compare`` and for ``observe``."""
    fake = FakeRuns(tmp_path / "made")
    conduct = partial(script_arms.conduct_scripts, run_command=fake)
    monkeypatch.setattr(script_arms, "conduct_scripts", conduct)
    monkeypatch.setattr(observe_command, "run_observed", fake)
    return fake


# compare


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare"], "nothing to compare was given"),
        (["compare", "digits", "extra"], "digits is a recipe and takes no arguments"),
        (["compare", "digits", "--", "--epochs", "3"], "--epochs 3 was given"),
        (["compare", "digits", "--baseline", "x", "--candidate", "y"], "expected one of them"),
        (["compare", "--baseline", "true"], "--baseline alone: a comparison needs --candidate"),
        (["compare", "--candidate", "true"], "--candidate alone: a comparison needs --baseline"),
        (["compare", "nowhere.py"], "there is no script"),
        (["compare", "{script}", "--strategy", "ddp"], "--strategy ddp is for recipes"),
        (["compare", "{script}", "--epochs", "3"], "--epochs 3 is for recipes"),
        (["compare", "{script}", "--data-dir", "d"], "--data-dir d is for recipes"),
        (["compare", "{script}", "--learning-rate-rule", "sqrt"], "--learning-rate-rule sqrt is"),
        (["compare", "{script}", "--warmup-epochs", "1"], "--warmup-epochs 1.0 is for recipes"),
        (["compare", "{script}", "--devices", "1"], "--devices 1: a comparison needs 2 or more"),
        (["compare", "{script}", "--devices", "two"], "--devices two: expected a number"),
        (["compare", "{script}", "--seeds", "0"], "--seeds 0: expected 1 or more"),
        (
            ["compare", "--baseline", "true", "--candidate", "true", "--epochs", "3"],
            "--epochs 3 is for recipes",
        ),
        (
            ["compare", "--baseline", "true", "--candidate", "true", "--devices", "2"],
            "--devices 2 is for a recipe or a script",
        ),
        (["observe"], "there is no command to observe"),
        (["observe", "--timeout", "0", "--", "true"], "--timeout 0.0: expected more than 0"),
        (["observe", "--every", "0", "--", "true"], "--every 0: expected 1 or more"),
        (["observe", "--profile", "nowhere.toml", "--", "true"], "can't read the profile"),
    ],
)
def test_impossible_requests_are_explained(
    capsys, script: str, tmp_path: Path, monkeypatch, arguments: list[str], expected: str
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *(argument.format(script=script) for argument in arguments))
    assert expected in " ".join(err.split())
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert not (tmp_path / "scaleproof-studies").exists()


def test_a_script_is_compared_on_one_and_on_two_devices(
    capsys, runs: FakeRuns, script: str, tmp_path: Path
):
    runs.scripts = {"script-1": ONE, "script-2": FakeScript(step_time_s=0.04)}
    study = tmp_path / "study"
    code, out, err = run(
        capsys,
        *("compare", script, "--devices", "1,2", "--seeds", "2", *HERE, "--out", str(study)),
        *("--max-accuracy-drop", "0.02", "--", "--epochs", "3", "--seed", "{seed}"),
    )
    assert code in (1, 3), err  # no quality was reported
    assert [argv[-4:] for _, argv in runs.commands[1:3]] == [
        ["--epochs", "3", "--seed", "0"],
        ["--epochs", "3", "--seed", "1"],
    ]
    assert out.split()[0] in ("REJECT", "UNDECIDED")
    assert (study / "report.html").exists()
    assert "Run 4 of 4: script-1-seed1" in err
    assert "is told its seed" not in err
    assert load_study(study).request.profile["checks"]["accuracy-drop"] == {"max_drop": 0.02}
    assert run(capsys, "judge", str(study))[0] == code


def test_seeds_that_no_argument_takes_are_said_to_be_repeats(
    capsys, runs: FakeRuns, tmp_path: Path
):
    runs.scripts = {"baseline": ONE, "candidate": FakeScript()}
    commands = ("--baseline", f"{sys.executable} train.py", "--candidate", "true {seed}")
    code, _, err = run(
        capsys, "compare", *commands, "--seeds", "2", *HERE, "--out", str(tmp_path / "study")
    )
    assert code in (1, 3), err
    assert "not every arm is told its seed" in err


def test_a_run_that_fails_ends_the_comparison(capsys, runs: FakeRuns, script: str, tmp_path: Path):
    runs.exit_code = 1
    code, out, err = run(capsys, "compare", script, *HERE, "--out", str(tmp_path / "study"))
    assert (code, out) == (4, "")
    assert "script-1-seed0 ended with exit code 1, and no training was seen" in err
    assert len(runs.commands) == 1


def test_ctrl_c_says_what_can_be_judged(capsys, runs: FakeRuns, script: str, tmp_path: Path):
    runs.scripts, runs.then = {"script-1": ONE}, press_ctrl_c
    study = tmp_path / "study"
    code, _, err = run(capsys, "compare", script, *HERE, "--out", str(study))
    assert code == 130
    assert f"scaleproof judge {study}" in err
    assert run(capsys, "judge", str(study))[0] == 3


def press_ctrl_c(paths: RunPaths) -> None:
    """The command answers it in its own way, and ends well."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


# observe


def all_different(rank: int) -> RankOutcome:
    return RankOutcome(status="error", epoch=0, step=1, phase="training", error_type="ValueError")


def test_a_sound_command_exits_with_0_and_its_stdout_is_its_own(
    capsys, runs: FakeRuns, tmp_path: Path
):
    runs.scripts = {"observed": FakeScript(more=predicting(0.9))}
    study = tmp_path / "study"
    code, out, err = run(
        capsys, "observe", "--out", str(study), "--", PYTHON, "train.py", "--out", "x"
    )
    assert out == ""
    verdict = err.split()[0]
    assert (verdict, code) in (("SOUND", 0), ("UNDECIDED", 3)), err
    assert runs.commands == [("observed-seed0", [PYTHON, "train.py", "--out", "x"])]
    assert f"The whole report: {study / 'report.html'}" in " ".join(err.split())


def test_the_dashes_may_be_left_out_and_only_the_first_ones_are_ours(capsys, runs: FakeRuns):
    runs.scripts = {"observed": ONE}
    for arguments, expected in (
        ([PYTHON, "a.py", "--out", "x"], [PYTHON, "a.py", "--out", "x"]),
        (["--", PYTHON, "a.py", "--", "b"], [PYTHON, "a.py", "--", "b"]),
    ):
        runs.commands.clear()
        study = runs.made.parent / f"study-{len(arguments)}"
        run(capsys, "observe", "--out", str(study), *arguments)
        assert runs.commands[0][1] == expected


def test_a_fault_exits_with_1(capsys, runs: FakeRuns, tmp_path: Path):
    drifted = FakeScript(
        state=lambda script, rank, steps_done, moment: {
            key: values + rank
            for key, values in FakeScript().state(script, rank, steps_done, moment).items()
        }
    )
    runs.scripts = {"observed": drifted}
    code, out, err = run(capsys, "observe", "--out", str(tmp_path / "study"), "--", PYTHON)
    assert (code, out) == (1, "")
    assert err.startswith("NOT SOUND")
    assert "replica-drift" in err


@pytest.mark.parametrize("exit_code", [7, 134, 143])
def test_a_command_that_failed_keeps_its_exit_code(
    capsys, runs: FakeRuns, tmp_path: Path, exit_code: int
):
    runs.scripts, runs.exit_code = {"observed": FakeScript(outcome=all_different)}, exit_code
    code, _, err = run(capsys, "observe", "--out", str(tmp_path / "study"), "--", PYTHON)
    assert code == exit_code
    assert "ValueError" in err


def test_a_hang_exits_with_4(capsys, runs: FakeRuns, tmp_path: Path):
    def hang(paths: RunPaths) -> None:
        shutil.rmtree(paths.root)
        paths.root.mkdir()
        write_json(paths.hang, HangRecord(timeout_s=6.0, num_ranks=2, ranks=()))

    runs.scripts, runs.then, runs.exit_code = {"observed": FakeScript()}, hang, 143
    assert run(capsys, "observe", "--out", str(tmp_path / "study"), "--", PYTHON)[0] == 4


def test_ctrl_c_exits_with_130_after_the_verdict(capsys, runs: FakeRuns, tmp_path: Path):
    runs.scripts, runs.then = {"observed": ONE}, press_ctrl_c
    code, _, err = run(capsys, "observe", "--out", str(tmp_path / "study"), "--", PYTHON)
    assert code == 130
    assert "The whole report" in err


def test_evidence_that_cannot_be_read_does_not_hide_the_commands_own_failure(
    capsys, runs: FakeRuns, tmp_path: Path
):
    def spoil(paths: RunPaths) -> None:
        paths.manifest.write_text("{")

    runs.scripts, runs.then = {"observed": ONE}, spoil
    for exit_code, expected in ((0, 5), (7, 7)):
        runs.exit_code = exit_code
        out = str(tmp_path / f"study-{exit_code}")
        code, _, err = run(capsys, "observe", "--out", out, "--", "true")
        assert code == expected
        assert "manifest.json" in err
        shutil.rmtree(runs.made)


def test_what_kept_a_training_from_being_seen_is_no_all_is_well(
    capsys, runs: FakeRuns, tmp_path: Path
):
    def trouble(paths: RunPaths) -> None:
        paths.processes.mkdir(parents=True)
        paths.trouble(7).write_text('{"what": "process", "why": "torch 1.4 is too old"}\n')

    runs.then = trouble
    code, _, err = run(capsys, "observe", "--out", str(tmp_path / "study"), "--", "true")
    assert code == 3
    assert "torch 1.4 is too old" in err


@pytest.mark.parametrize(
    ("exit_code", "headline"),
    [
        (0, "NO TRAINING  No process was seen to import torch."),
        (3, "FAILED  The command ended with exit code 3 before any training was seen."),
    ],
)
def test_a_real_command_without_training_is_left_as_it_was(
    tmp_path: Path, exit_code: int, headline: str
):
    script = tmp_path / "says.py"
    script.write_text(
        f"import sys\nprint('mine', sys.argv[1:])\nprint('too', file=sys.stderr)\n"
        f"sys.exit({exit_code})\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "scaleproof.cli", "observe", "--", sys.executable, "says.py", "--x"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == exit_code
    assert result.stdout == "mine ['--x']\n"
    assert result.stderr.startswith("too\n")
    assert headline in result.stderr
    assert list(tmp_path.glob("scaleproof-studies/says-*/report.html"))


def test_a_command_that_does_not_exist(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-m", "scaleproof.cli", "observe", "--", "torchrn", "train.py"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "can't start torchrn: there is no such command" in result.stderr
    assert "Traceback" not in result.stderr
