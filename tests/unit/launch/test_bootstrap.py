"""What observing changes about a command that is started: nothing that it could notice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaleproof.errors import UsageError
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.troubles import processes_seen, read_troubles
from scaleproof.launch.environment import BOOTSTRAP, observed_environment
from scaleproof.launch.observe_command import (
    observe_command,
    refuse_odd_arguments,
    run_observed,
    script_of,
)

COMMAND = """
import sys
from pathlib import Path
from scaleproof.evidence.paths import RunPaths
from scaleproof.launch.observe_command import run_observed
sys.exit(run_observed(RunPaths(Path(sys.argv[1])), sys.argv[2:]))
"""
"""The supervisor as a process of its own, as the command line is one."""

FAKE_TORCH = "loaded = 1\n"

WRITES_ATTACHED = """
import json, os
def attach(paths, facts):
    import torch
    path = paths.root / f"attached-{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([facts.rank, facts.num_ranks, facts.every, torch.loaded]))
"""

RAISES = "def attach(paths, facts):\n    raise LookupError('no hooks today')\n"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with a torch that costs nothing to import, first on the path of the script."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "torch.py").write_text(FAKE_TORCH)
    return folder


def attach_by(code: str, library: Path) -> None:
    """Let the bootstrap find this ``attach`` instead of the real one."""
    module = f"""
import sys, types
module = types.ModuleType("scaleproof.launch.attach")
exec({code!r}, module.__dict__)
sys.modules["scaleproof.launch.attach"] = module
"""
    (library / "sitecustomize.py").write_text(module)


def started(
    script: str, paths: RunPaths, library: Path | None = None, **facts: str
) -> subprocess.CompletedProcess[str]:
    """``python -c script``, with the environment of an observed command."""
    environment = observed_environment(paths, 10, pin=False)
    if library is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(BOOTSTRAP), str(library)])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, **facts},
        capture_output=True,
        text=True,
        timeout=60,
    )


def supervised(
    paths: RunPaths, *argv: str, cwd: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(paths.root), *argv],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        input=stdin,
    )


# --- the bootstrap


def test_attaches_when_torch_has_been_imported(paths: RunPaths, library: Path) -> None:
    attach_by(WRITES_ATTACHED, library)
    result = started("import torch; print(torch.loaded)", paths, library, RANK="1", WORLD_SIZE="2")
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")
    (attached,) = paths.root.glob("attached-*.json")
    assert json.loads(attached.read_text()) == [1, 2, 10, 1]


def test_attaches_in_a_child_forked_before_torch(paths: RunPaths, library: Path) -> None:
    attach_by(WRITES_ATTACHED, library)
    script = """
import os
child = os.fork()
if child == 0:
    import torch
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = started(script, paths, library)
    assert (result.stdout, result.stderr) == ("7\n", "")
    assert len(list(paths.root.glob("attached-*.json"))) == 1


def test_leaves_a_process_without_torch_alone(paths: RunPaths, library: Path) -> None:
    attach_by(WRITES_ATTACHED, library)
    result = started("print('done')", paths, library)
    assert (result.returncode, result.stdout) == (0, "done\n")
    assert not paths.root.exists()


def test_a_script_sees_the_path_and_the_modules_it_would_see_without(
    paths: RunPaths, library: Path
) -> None:
    script = "import sys; print(sys.path, sorted(m for m in sys.modules if 'site' in m))"
    observed = started(script, paths, library)
    environment = {**os.environ, "PYTHONPATH": str(library)}
    alone = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert observed.stdout == alone.stdout


def test_the_sitecustomize_that_was_there_still_runs(paths: RunPaths, library: Path) -> None:
    (library / "sitecustomize.py").write_text("marker = 'mine'\nprint('set up')\n")
    result = started(
        "import sitecustomize as s; print(s.marker, s.__name__)",
        paths,
        library,
    )
    assert (result.stdout, result.stderr) == ("set up\nmine sitecustomize\n", "")


def test_a_sitecustomize_that_raises_is_reported_by_python_as_ever(
    paths: RunPaths, library: Path
) -> None:
    (library / "sitecustomize.py").write_text("raise ValueError('mine is broken')\n")
    observed = started("print('goes on')", paths, library)
    environment = {**os.environ, "PYTHONPATH": str(library)}
    alone = subprocess.run(
        [sys.executable, "-c", "print('goes on')"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "mine is broken" in alone.stderr
    assert (observed.stdout, observed.stderr) == (alone.stdout, alone.stderr)


def test_without_torch_the_import_fails_as_ever(paths: RunPaths, tmp_path: Path) -> None:
    environment = observed_environment(paths, 1, pin=False)
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; import torch"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert "ModuleNotFoundError: No module named 'torch'" in result.stderr
    assert "sitecustomize" not in result.stderr


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (RAISES, "LookupError: no hooks today"),
        ("import nonsense_that_is_missing", "No module named 'nonsense_that_is_missing'"),
    ],
)
def test_when_attaching_breaks_training_goes_on_and_the_reason_is_left(
    code: str, why: str, paths: RunPaths, library: Path
) -> None:
    if "raise" in code:
        attach_by(code, library)
    else:
        broken = library / "scaleproof" / "launch"
        broken.mkdir(parents=True)
        (library / "scaleproof" / "__init__.py").write_text("")
        (broken / "__init__.py").write_text("")
        (broken / "attach.py").write_text(code)
    result = started("import torch; print('trained')", paths, library)
    assert (result.returncode, result.stdout, result.stderr) == (0, "trained\n", "")
    (trouble,) = read_troubles(paths)
    assert trouble.what == "process"
    assert why in trouble.why


def test_an_isolated_python_is_not_observed_and_nothing_is_left(
    paths: RunPaths, library: Path
) -> None:
    assert run_observed(paths, [sys.executable, "-I", "-c", "pass"]) == 0
    assert processes_seen(paths) == ()


def test_the_bootstrap_is_written_in_the_python_of_2020() -> None:
    import ast

    source = (BOOTSTRAP / "sitecustomize.py").read_text()
    ast.parse(source, feature_version=(3, 9))
    assert [entry.name for entry in BOOTSTRAP.iterdir() if entry.name != "__pycache__"] == [
        "sitecustomize.py"
    ]


# --- the command


def test_output_exit_code_arguments_folder_and_input_are_the_scripts_own(
    paths: RunPaths, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "print(sys.argv, os.getcwd(), sys.stdin.read())\n"
        "print('to stderr', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    argv = [sys.executable, str(script), "--lr", "0.1", "-x=*"]
    observed = supervised(paths, *argv, cwd=tmp_path, stdin="typed")
    alone = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, input="typed")
    assert (observed.returncode, observed.stdout, observed.stderr) == (
        alone.returncode,
        alone.stdout,
        alone.stderr,
    )
    assert observed.returncode == 7


def test_a_command_that_is_not_python(paths: RunPaths) -> None:
    result = supervised(paths, "sh", "-c", "echo hello; exit 3")
    assert (result.returncode, result.stdout) == (3, "hello\n")
    assert processes_seen(paths) == ()


def test_a_signal_is_told_as_a_shell_does(paths: RunPaths) -> None:
    assert run_observed(paths, ["sh", "-c", "kill -9 $$"]) == 128 + 9


def test_a_script_that_changes_folder_and_arguments_is_still_observed(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_by(WRITES_ATTACHED, library)
    script = tmp_path / "moves.py"
    script.write_text(
        "import os, sys\nos.chdir('/')\nsys.argv = ['other']\nsys.path.insert(0, sys.argv[0])\n"
        "import torch\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(library))
    assert run_observed(RunPaths(Path("run")), [sys.executable, str(script)]) == 0
    assert len(list((tmp_path / "run").glob("attached-*.json"))) == 1


def test_gigabytes_of_output_pass_at_full_speed(paths: RunPaths) -> None:
    script = "import sys; b = bytes(1 << 20); [sys.stdout.buffer.write(b) for _ in range(2000)]"
    began_s = time.monotonic()
    with Path(os.devnull).open("wb") as nowhere:
        result = subprocess.run(
            [sys.executable, "-c", COMMAND, str(paths.root), sys.executable, "-c", script],
            stdout=nowhere,
            timeout=60,
        )
    assert result.returncode == 0
    assert time.monotonic() - began_s < 30
    assert sum(file.stat().st_size for file in paths.root.rglob("*") if file.is_file()) < 1 << 20


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 42), (signal.SIGTERM, 43)])
def test_the_script_itself_answers_ctrl_c_and_sigterm(
    signum: signal.Signals, code: int, paths: RunPaths, tmp_path: Path
) -> None:
    script = tmp_path / "answers.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(42))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(43))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(paths.root), sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if signum == signal.SIGINT:  # as a terminal does: everybody in the foreground gets it
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    process.communicate(timeout=20)
    assert process.returncode == code


@pytest.mark.parametrize(
    ("name", "expected"),
    [("no-such-program", "there is no such command"), ("./plain.py", "is not executable")],
)
def test_a_command_that_cant_be_started_says_why_and_makes_no_folder(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.py").write_text("pass\n")
    with pytest.raises(UsageError, match=expected):
        observe_command([name], tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_run_whose_command_is_missing_says_so(paths: RunPaths, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such command"):
        run_observed(paths, ["no-such-program"])
    with pytest.raises(UsageError, match="that is no folder"):
        run_observed(paths, ["true"], cwd=tmp_path / "nowhere")


def test_a_script_that_never_trains_leaves_a_study_that_says_so(tmp_path: Path) -> None:
    observed = observe_command([sys.executable, "-c", "pass"], tmp_path / "study")
    assert (observed.exit_code, observed.hung, observed.num_observed) == (0, False, 0)
    assert observed.paths.study.exists()


@pytest.mark.parametrize(
    ("argv", "timeout_s", "every", "expected"),
    [
        ([], 300.0, 100, "no command to observe"),
        (["python"], 0.0, 100, "--timeout 0"),
        (["python"], float("nan"), 100, "--timeout nan"),
        (["python"], 300.0, 0, "--every 0"),
    ],
)
def test_odd_arguments_are_refused(
    argv: list[str], timeout_s: float, every: int, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        refuse_odd_arguments(argv, timeout_s, every)


@pytest.mark.parametrize(
    ("line", "script"),
    [
        ("torchrun --nproc-per-node 2 train.py --lr 1", "train.py"),
        ("python -m torch.distributed.run src/train.py", "src/train.py"),
        ("python -m package.train", "package.train"),
        ("bash run.sh", "run.sh"),
        ("./a.out", "./a.out"),
    ],
)
def test_the_script_of_a_command(line: str, script: str) -> None:
    assert script_of(line.split()) == script
