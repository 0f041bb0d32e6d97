"""What ``check`` refuses before it starts a process, and what it advises when a script fails."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scaleproof import cli
from scaleproof.errors import UsageError
from scaleproof.launch.check_command import CheckOptions, _advice, plan_check


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("import torch\n")
    return path


def test_torchrun_starts_as_many_ranks_as_asked_and_alone_it_is_its_world(script: Path) -> None:
    options = CheckOptions(script=str(script), arguments=("--lr", "0.1"), num_devices=3)
    plan = plan_check(options, {})
    assert plan.ranks[0] == sys.executable
    assert plan.ranks[plan.ranks.index("--nproc-per-node") + 1] == "3"
    assert plan.ranks[-3:] == (str(script), "--lr", "0.1")
    assert plan.alone == (sys.executable, str(script), "--lr", "0.1")
    assert (plan.variables["WORLD_SIZE"], plan.variables["RANK"]) == ("1", "0")
    assert plan.request.check is not None
    assert (plan.request.check.num_devices, plan.request.check.num_steps) == (3, 20)


def test_a_script_that_starts_its_ranks_is_only_started(script: Path) -> None:
    script.write_text("import torch.multiprocessing as mp\nmp.spawn(main, nprocs=2)\n")
    plan = plan_check(CheckOptions(script=str(script)), {})
    assert plan.ranks == plan.alone == (sys.executable, str(script))
    assert plan.variables == {}

    by_torchrun = plan_check(CheckOptions(script=str(script), launcher="torchrun"), {})
    assert "torch.distributed.run" in by_torchrun.ranks


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_devices": 1}, "--devices 1: one device is what the others are checked against"),
        ({"num_devices": 0}, "--devices 0"),
        ({"num_steps": -1}, "--steps -1: expected 1 or more, or 0"),
        ({"timeout_s": 0.0}, "--timeout 0.0: expected more than 0 seconds"),
        ({"timeout_s": -3.0}, "--timeout -3.0"),
        ({"timeout_s": float("nan")}, "--timeout nan"),
    ],
)
def test_odd_numbers_are_refused(script: Path, given: dict[str, float], expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        plan_check(replace(CheckOptions(script=str(script)), **given), {})
    assert expected in str(refused.value)


def test_a_script_to_its_own_end(script: Path) -> None:
    plan = plan_check(CheckOptions(script=str(script), num_steps=0), {})
    assert plan.request.check is not None
    assert plan.request.check.num_steps == 0


@pytest.mark.parametrize("name", ["nowhere.py", ".", ""])
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no script .*after two dashes"):
        plan_check(CheckOptions(script=name), {})


@pytest.mark.parametrize("content", [b"\x7fELF\x02\xff\xfe", "prix: 3 €".encode("iso8859-15")])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"can't read .* as a Python script.*scaleproof observe"):
        plan_check(CheckOptions(script=str(path)), {})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.py"], "there is no script"),
        (["{script}", "--devices", "1"], "--devices 1"),
        (["{script}", "--steps", "-1"], "--steps -1"),
        (["{script}", "--timeout", "0"], "--timeout 0.0"),
        (["{script}", "--launcher", "slurm"], "slurm"),
        (["{script}", "--profile", "nowhere.toml"], "can't read the profile"),
        ([], "Missing argument"),
    ],
)
def test_the_command_line_says_so_and_starts_nothing(
    capsys, script: Path, tmp_path: Path, monkeypatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.app(args=["check", *(argument.format(script=script) for argument in arguments)])
    captured = capsys.readouterr()
    assert expected in " ".join((captured.out + captured.err).split())
    assert exit_.value.code == 2
    assert "Traceback" not in captured.err
    assert not (tmp_path / "scaleproof-studies").exists()


OPTIONS = CheckOptions(script="train.py")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "usage: train.py [-h] --data DATA\n"
            "train.py: error: the following arguments are required: --data",
            "after two dashes: scaleproof check train.py -- --data",
        ),
        ("train.py: error: unrecognized arguments: --lr", "after two dashes"),
        ("Traceback\nEOFError: EOF when reading a line", "It reads from the terminal"),
        ("the command ended, and no training was seen in it", "torch.optim"),
        (
            "RuntimeError: Distributed package doesn't have NCCL built in",
            "Add --force-cpu: what it asks of them is mapped",
        ),
        ("AssertionError: Torch not compiled with CUDA enabled", "--force-cpu"),
        ("ValueError: Expected input batch_size (3) to match target batch_size (4).", ""),
        ("see the usage: of this tool", ""),
    ],
)
def test_advice(output: str, expected: str) -> None:
    advice = _advice(output, OPTIONS)
    assert expected in advice
    assert bool(advice) is bool(expected)


def test_what_was_forced_already_is_not_advised() -> None:
    output = "AssertionError: Torch not compiled with CUDA enabled"
    assert _advice(output, replace(OPTIONS, force_cpu=True)) == ""
