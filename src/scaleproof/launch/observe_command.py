"""Runs a command of the user's and leaves the evidence of what its processes did."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import scaleproof
from scaleproof.errors import UsageError
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.records import SCHEMA_VERSION, Arm, StudyRequest
from scaleproof.evidence.troubles import processes_seen, write_command_end
from scaleproof.evidence.writer import write_json
from scaleproof.launch.device_kind import device_kind_here
from scaleproof.launch.script import ScriptRun, refuse_missing_program
from scaleproof.launch.study_folder import claim_folder
from scaleproof.launch.watch import Watch
from scaleproof.observe.replay.asked import CheckFacts

DEFAULT_TIMEOUT_S = 300.0
DEFAULT_EVERY = 100
ARM = Arm(name="observed", role="candidate", strategy="script", num_devices=0)
"""The one arm of an observed command; only the run can tell its number of devices."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedCommand:
    """What came of it. ``exit_code`` is the command's own, as a shell says it."""

    paths: StudyPaths
    exit_code: int
    hung: bool
    """It stood still and was ended: ``hang.json`` says who waited for whom."""
    num_observed: int
    """Processes that were seen training or joining a process group; 0 when none was."""


def observe_command(
    argv: Sequence[str],
    out: Path | None = None,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    every: int = DEFAULT_EVERY,
    pin: bool = False,
    profile: dict[str, Any] | None = None,
    command: tuple[str, ...] = (),
) -> ObservedCommand:
    """Run ``argv`` once, observed, into a new study folder.

    ``command`` is what the user typed, for the report. Raises ``UsageError`` for a command that
    can't be started and for a folder that is taken.
    """
    refuse_odd_arguments(argv, timeout_s, every)
    refuse_missing_program(argv)
    target = script_of(argv)
    paths = claim_folder(out, target)
    request = StudyRequest(
        schema_version=SCHEMA_VERSION,
        kind="script",
        target=target,
        arms=(ARM,),
        seeds=(0,),
        num_epochs=0,
        device_kind=device_kind_here(),
        share_device=False,
        profile=profile or {},
        command=command or ("scaleproof", "observe", "--", *argv),
        created_at_unix_s=time.time(),
        scaleproof_version=scaleproof.__version__,
    )
    write_json(paths.study, request)
    run = paths.run(ARM.name, 0)
    exit_code = run_observed(run, argv, timeout_s=timeout_s, every=every, pin=pin)
    write_command_end(run, exit_code)
    return ObservedCommand(
        paths=paths,
        exit_code=exit_code,
        hung=run.hang.exists(),
        num_observed=len(processes_seen(run)),
    )


def run_observed(
    paths: RunPaths,
    argv: Sequence[str],
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    every: int = DEFAULT_EVERY,
    pin: bool = False,
    cwd: Path | None = None,
    check: CheckFacts | None = None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run ``argv`` once, observed into ``paths``, and return its exit code as a shell says it.

    ``check``: what its processes are asked besides; ``variables``: of the environment, besides.
    When it hangs, ``paths.hang`` says so, and it was ended. Whatever ends this function, none of
    the command's processes is left that was still training.
    """
    run = ScriptRun(paths, argv, every=every, pin=pin, cwd=cwd, check=check, variables=variables)
    try:
        watch = Watch(run, timeout_s=timeout_s)
        with run.signals_passed_on():
            watch.until_ended()
    except BaseException:
        run.stop()
        raise
    assert run.exit_code is not None  # until_ended
    return run.exit_code


def refuse_odd_arguments(argv: Sequence[str], timeout_s: float, every: int) -> None:
    """Raise ``UsageError`` for a command or numbers that make no sense."""
    if not argv or not argv[0]:
        raise UsageError(
            "there is no command to observe. Write it after two dashes: "
            "scaleproof observe -- torchrun --nproc-per-node 2 train.py"
        )
    if not timeout_s > 0:
        raise UsageError(
            f"--timeout {timeout_s}: expected more than 0 seconds. Leave it out for "
            f"{DEFAULT_TIMEOUT_S:g}."
        )
    if every < 1:
        raise UsageError(
            f"--every {every}: expected 1 or more steps. Leave it out for {DEFAULT_EVERY}."
        )


def script_of(argv: Sequence[str]) -> str:
    """What the command runs, for its name: ``train.py`` of ``torchrun ... train.py --lr 1``."""
    for argument in argv:
        if Path(argument).suffix in (".py", ".sh"):
            return argument
    for flag, module in pairwise(argv):
        if flag == "-m":
            return module
    return argv[0]
