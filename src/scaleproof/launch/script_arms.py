"""Compares somebody's own script on one device and on N, or two of their commands.

The runs follow one another, each observed: a script can't be stopped between its epochs. Which
arm goes first alternates from seed to seed, so that neither always follows the other.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import scaleproof
from scaleproof.errors import UsageError
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.records import SCHEMA_VERSION, Arm, Manifest, StudyRequest
from scaleproof.evidence.study import Run, load_run
from scaleproof.evidence.writer import write_json
from scaleproof.launch.interrupts import Interrupts
from scaleproof.launch.observe_command import (
    DEFAULT_EVERY,
    refuse_odd_arguments,
    run_observed,
    script_of,
)
from scaleproof.launch.script_output import into_log, log_of, manifest_of
from scaleproof.strategies.devices import (
    DeviceKind,
    check_devices,
    default_device_kind,
    num_available,
)

SEED_PLACE = "{seed}"
"""What stands for the seed in the arguments of a script or a command."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptOptions:
    """What ``compare`` was asked of a script (``script`` and ``num_devices``), or of two commands
    (``baseline`` and ``candidate``, each a line as typed into a shell)."""

    script: str | None = None
    arguments: tuple[str, ...] = ()
    num_devices: int | None = None
    baseline: str | None = None
    candidate: str | None = None
    num_seeds: int = 1
    device_kind: DeviceKind | None = None
    share_device: bool = False
    timeout_s: float = 300.0
    command: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptPlan:
    """A study of scripts before it begins. ``commands``: by name of the arm, ``SEED_PLACE`` still
    in them."""

    request: StudyRequest
    commands: Mapping[str, tuple[str, ...]]
    timeout_s: float

    @property
    def has_seeds(self) -> bool:
        """Every arm is told its seed; otherwise repeats differ by what the script draws itself."""
        return all(any(SEED_PLACE in part for part in argv) for argv in self.commands.values())

    def argv(self, arm: Arm, seed: int) -> tuple[str, ...]:
        return tuple(part.replace(SEED_PLACE, str(seed)) for part in self.commands[arm.name])

    def runs(self) -> Iterator[tuple[Arm, int]]:
        """Arm and seed of every run, in the order in which they run."""
        for index, seed in enumerate(self.request.seeds):
            arms = self.request.arms
            for arm in arms if index % 2 == 0 else reversed(arms):
                yield arm, seed


class ScriptWatcher:
    """What ``conduct_scripts`` tells while it works. The base class tells nothing."""

    def run_begins(self, paths: RunPaths, number: int, num_runs: int) -> None:
        """Run ``number`` (from 1) of ``num_runs`` is being started."""

    def run_ended(self, run: Run, exit_code: int, elapsed_s: float) -> None:
        """A run came to its end, and its evidence can be used, whatever its exit code."""


class RunCommand(Protocol):
    """Runs a command to its end, observed, and returns its exit code as a shell says it."""

    def __call__(
        self, paths: RunPaths, argv: Sequence[str], /, *, timeout_s: float, pin: bool
    ) -> int: ...


def plan_scripts(options: ScriptOptions, profile: dict[str, Any]) -> ScriptPlan:
    """Check everything that can be checked before a process is started.

    Raises ``UsageError`` for what can't be.
    """
    if options.num_seeds < 1:
        raise UsageError(f"--seeds {options.num_seeds}: expected 1 or more.")
    kind = options.device_kind or default_device_kind()
    if options.script is not None:
        num_devices = 2 if options.num_devices is None else options.num_devices
        _check_script(options.script, num_devices)
        counts = (1, num_devices)
        commands = {
            f"script-{count}": _torchrun(options.script, options.arguments, count)
            for count in counts
        }
    else:
        commands, counts = _two_commands(options), (0, 0)
    check_devices(kind, max(1, *counts), share_device=options.share_device)
    for argv in commands.values():
        refuse_odd_arguments(argv, options.timeout_s, DEFAULT_EVERY)
    baseline, candidate = (
        Arm(name=name, role=role, strategy="script", num_devices=count)
        for name, role, count in zip(commands, ("baseline", "candidate"), counts, strict=True)
    )
    request = StudyRequest(
        schema_version=SCHEMA_VERSION,
        kind="script",
        target=options.script or script_of(commands["candidate"]),
        arms=(baseline, candidate),
        seeds=tuple(range(options.num_seeds)),
        num_epochs=0,
        device_kind=kind,
        share_device=options.share_device,
        profile=profile,
        command=options.command,
        created_at_unix_s=time.time(),
        scaleproof_version=scaleproof.__version__,
    )
    return ScriptPlan(request=request, commands=commands, timeout_s=options.timeout_s)


def conduct_scripts(
    study: StudyPaths,
    plan: ScriptPlan,
    watcher: ScriptWatcher,
    run_command: RunCommand = run_observed,
) -> None:
    """Run both arms for every seed and leave the evidence in the study folder.

    Raises ``RunError`` at the first run that fails, ``UsageError`` when a run turns out to be
    something else than was asked for, and ``KeyboardInterrupt`` after a run during which Ctrl-C
    was pressed, whatever the command made of it.
    """
    write_json(study.study, plan.request)
    runs = tuple(plan.runs())
    pin = plan.request.device_kind == "cpu"
    for number, (arm, seed) in enumerate(runs, start=1):
        paths = study.run(arm.name, seed)
        argv = into_log(plan.argv(arm, seed), log_of(paths), one_thread=pin)
        watcher.run_begins(paths, number, len(runs))
        started_s = time.monotonic()
        with Interrupts() as interrupts:
            exit_code = run_command(paths, argv, timeout_s=plan.timeout_s, pin=pin)
        if interrupts.is_seen:
            raise KeyboardInterrupt
        run = load_run(paths, arm, seed)
        _refuse_other_than_asked(run, manifest_of(run, exit_code), plan.request)
        watcher.run_ended(run, exit_code, time.monotonic() - started_s)


def _check_script(script: str, num_devices: int) -> None:
    path = Path(script).resolve()
    if not path.is_file():
        raise UsageError(
            f"there is no script {path} (from {script!r}). Name a file that exists; a recipe has "
            "its function after a colon, path/to/file.py:function."
        )
    if num_devices < 2:
        raise UsageError(
            f"--devices {num_devices}: a comparison needs 2 or more devices against one. Use "
            f"scaleproof observe -- {shlex.join(('python', script))} for a single run."
        )


def _torchrun(script: str, arguments: Sequence[str], num_ranks: int) -> tuple[str, ...]:
    """Both arms start alike, so that a script that reads its rank from the environment runs in
    both."""
    return (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(num_ranks), script, *arguments),
    )


def _two_commands(options: ScriptOptions) -> dict[str, tuple[str, ...]]:
    assert options.baseline is not None and options.candidate is not None
    if options.num_devices is not None:
        raise UsageError(
            f"--devices {options.num_devices} is for a recipe or a script: a command says itself "
            "how many it uses, as in torchrun --nproc-per-node 2 train.py."
        )
    return {
        "baseline": _split("--baseline", options.baseline),
        "candidate": _split("--candidate", options.candidate),
    }


def _split(option: str, line: str) -> tuple[str, ...]:
    """The words of a command as a shell would split it; nothing else that a shell does."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(
            f"{option} {line!r} can't be split into words: {error}. Close every quote."
        ) from error
    if not words:
        raise UsageError(f'{option} is empty. Write a command, like "python train.py".')
    if shutil.which(words[0]) is None:
        raise UsageError(
            f"{option}: there is no program {words[0]!r}. Commands are started without a shell: "
            "for variables write env NAME=VALUE python train.py, for anything else "
            "bash -c 'cd there && python train.py'."
        )
    return tuple(words)


def _refuse_other_than_asked(run: Run, manifest: Manifest, request: StudyRequest) -> None:
    """What only the run could tell: a comparison of anything else would mean nothing."""
    asked, got = request.device_kind, manifest.device_kind
    if got != asked:
        raise UsageError(
            f"{run.name} trained on {got}, expected {asked}. Add --device {got}, so that its ranks "
            f"get a device each, or make the script use {asked}."
        )
    wanted, num_ranks = run.arm.num_devices, manifest.num_ranks
    if wanted not in (0, num_ranks):
        raise UsageError(
            f"{run.name} trained with {num_ranks} ranks, expected {wanted}: the script was started "
            f"by torchrun --nproc-per-node {wanted} and starts ranks of its own. Compare two "
            "commands instead, with --baseline and --candidate."
        )
    found = num_available(asked)
    if num_ranks > found and not request.share_device:
        what = "CUDA devices" if asked == "cuda" else "processor cores (on CPU a device is a core)"
        raise UsageError(
            f"{run.name} trained with {num_ranks} ranks, and this machine has {found} {what}. Use "
            f"at most {found} ranks, or add --share-device: that tries soundness, not speed."
        )
