"""Checks a script: runs it on N ranks with a close look, then again on one process that is fed what
all of them were fed, step by step."""

import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import scaleproof
from scaleproof.errors import EvidenceError, RunError, UsageError
from scaleproof.evidence.close_ups import ReplayEnd, ReplayName
from scaleproof.evidence.failures import describe_failure
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.records import SCHEMA_VERSION, CheckRequest, StudyRequest
from scaleproof.evidence.study import Run, load_run
from scaleproof.evidence.troubles import read_troubles
from scaleproof.evidence.writer import write_json
from scaleproof.launch.device_kind import device_kind_here
from scaleproof.launch.environment import world_of_one
from scaleproof.launch.interrupts import Interrupts
from scaleproof.launch.launchers import Launcher, launcher_of
from scaleproof.launch.needs_cuda import needs_cuda
from scaleproof.launch.observe_command import ARM, run_observed
from scaleproof.launch.replay_plan import UnreplayableError, plan_replay
from scaleproof.launch.script_output import into_log, last_lines, log_of, manifest_of
from scaleproof.observe.replay.asked import CheckFacts

DEFAULT_STEPS = 20

MAX_REPLAYED_STEPS = 20
"""A fault in the gradients shows in every step, or in the first few."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What ``check`` was asked. ``num_steps``: 0 runs the script to its own end."""

    script: str
    arguments: tuple[str, ...] = ()
    num_devices: int = 2
    num_steps: int = DEFAULT_STEPS
    launcher: Launcher = "auto"
    force_cpu: bool = False
    timeout_s: float = 300.0
    command: tuple[str, ...] = ()


class CheckWatcher:
    """What ``conduct_check`` tells while it works. The base class tells nothing."""

    def begins(self, paths: RunPaths, words: str) -> None:
        """A run is being started."""

    def ended(self, words: str) -> None:
        """It has ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """A check before it begins. ``ranks`` and ``alone``: the command lines of the run on N ranks
    and of its replays; ``variables``: for the replays."""

    options: CheckOptions
    request: StudyRequest
    ranks: tuple[str, ...]
    alone: tuple[str, ...]
    variables: Mapping[str, str]


def plan_check(options: CheckOptions, profile: dict[str, Any]) -> CheckPlan:
    """Check everything that can be checked before a process is started.

    Raises ``UsageError`` for what can't be.
    """
    source = _source_of(options.script)
    _refuse_odd_numbers(options)
    launcher = options.launcher if options.launcher != "auto" else launcher_of(source)
    script = (options.script, *options.arguments)
    alone = (sys.executable, *script)
    ranks = alone
    if launcher == "torchrun":
        ranks = (
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(options.num_devices), *script),
        )
    request = StudyRequest(
        schema_version=SCHEMA_VERSION,
        kind="script",
        target=options.script,
        arms=(ARM,),
        seeds=(0,),
        num_epochs=0,
        device_kind="cpu" if options.force_cpu else device_kind_here(),
        share_device=False,
        profile=profile,
        command=options.command,
        created_at_unix_s=time.time(),
        scaleproof_version=scaleproof.__version__,
        check=CheckRequest(
            num_steps=options.num_steps,
            num_devices=options.num_devices,
            forces_cpu=options.force_cpu,
        ),
    )
    return CheckPlan(
        options=options,
        request=request,
        ranks=ranks,
        alone=alone,
        variables=world_of_one(_free_port()) if launcher == "torchrun" else {},
    )


def conduct_check(
    study: StudyPaths,
    plan: CheckPlan,
    watcher: CheckWatcher,
    is_unexplained: Callable[[StudyPaths], bool] = lambda _: False,
) -> None:
    """Run, replay, and leave the evidence in the study folder.

    ``is_unexplained`` looks at it then: whether a replay of the last rank's items alone is wanted.

    Raises ``RunError`` when the script fails on N ranks, ``UsageError`` when it turns out to have
    one process only, and ``KeyboardInterrupt`` after a run
    during which Ctrl-C was pressed. A replay that fails is written down, and is no error.
    """
    write_json(study.study, plan.request)
    paths = study.run(ARM.name, 0)
    num_devices = plan.options.num_devices
    watcher.begins(paths, f"Running {plan.options.script} on {num_devices} ranks")
    try:
        run = _run_ranks(paths, plan)
        steps = max((len(rank.observed_steps) for rank in run.ranks), default=0)
        watcher.ended(f"{_counted(len(run.ranks), 'rank')}, {_counted(steps, 'step')}")
        _refuse_one_process(run, plan.options)
        num_steps = _replay(run, plan, watcher)
        if num_steps and is_unexplained(study):
            words = "Replaying the last rank's items alone: the joint replay differs"
            watcher.begins(run.paths.replay("last-rank"), words)
            _replay_all(run, plan, ["last-rank"], num_steps)
            watcher.ended("replayed")
    finally:
        shutil.rmtree(paths.material, ignore_errors=True)


def _run_ranks(paths: RunPaths, plan: CheckPlan) -> Run:
    options = plan.options
    with Interrupts() as interrupts:
        exit_code = run_observed(
            paths,
            into_log(plan.ranks, log_of(paths), one_thread=True),
            timeout_s=options.timeout_s,
            every=1,
            check=_facts(paths, options, replay=None),
        )
    if interrupts.is_seen:
        raise KeyboardInterrupt
    if not (paths.root.parent / "study.json").exists():
        raise RunError(
            f"{paths.root} was removed while {options.script} ran. If the script clears its "
            "working folder, name a study folder elsewhere with --out."
        )
    run = load_run(paths, ARM, 0)
    if not paths.hang.exists():  # a hang is found by its check, with all that is known
        try:
            manifest_of(run, exit_code)
        except RunError as error:
            output = f"{error}\n{last_lines(log_of(paths))}"
            raise RunError(f"{error}{_advice(output, options)}") from error
    return run


def _refuse_one_process(run: Run, options: CheckOptions) -> None:
    if len(run.ranks) == 1 and options.launcher == "auto":
        raise UsageError(
            f"{options.script} trained in one process, expected {options.num_devices}. If it "
            "starts its ranks itself, tell it in its arguments how many; if it is for torchrun, "
            "add --launcher torchrun; to check what one process does (nn.DataParallel, for one), "
            "add --launcher python."
        )


def _replay(run: Run, plan: CheckPlan, watcher: CheckWatcher) -> int:
    """The number of steps that replays were made of; 0 when none could be."""
    from scaleproof.observe.replay.plan import plan_file
    from scaleproof.observe.replay.stored import MaterialIndex

    num_kept = MAX_REPLAYED_STEPS
    if len(run.ranks) < 2 or not run.is_usable:
        return 0
    folder = run.paths.material
    try:
        todo = plan_replay(run, MaterialIndex(folder), num_kept)
    except (UnreplayableError, EvidenceError) as reason:
        _write_end(run.paths.replay("union"), "union", 0, num_kept, str(reason))
        watcher.ended(f"no replay: {reason}")
        return 0
    write_json(plan_file(folder), todo)
    names: list[ReplayName] = ["union", "reordered"]
    if todo.microbatches:
        names.append("whole-step")
    watcher.begins(
        run.paths.replay("union"), f"Replaying {_counted(len(todo.steps), 'step')} on one process"
    )
    _replay_all(run, plan, names, len(todo.steps))
    watcher.ended("replayed")
    return len(todo.steps)


def _replay_all(run: Run, plan: CheckPlan, names: Sequence[ReplayName], num_wanted: int) -> None:
    """Two at a time."""
    with Interrupts() as interrupts, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _replay_one(run, plan, name, num_wanted), names))
    if interrupts.is_seen:
        raise KeyboardInterrupt


def _replay_one(run: Run, plan: CheckPlan, name: ReplayName, num_wanted: int) -> None:
    paths = run.paths.replay(name)
    port = {"MASTER_PORT": str(_free_port())} if plan.variables else {}
    exit_code = run_observed(
        paths,
        into_log(plan.alone, log_of(paths), one_thread=True),
        timeout_s=plan.options.timeout_s,
        every=1,
        check=_facts(run.paths, plan.options, replay=name),
        variables={**plan.variables, **port},
    )
    replay = load_run(paths, run.arm, run.seed)
    num_steps = max((len(rank.observed_steps) for rank in replay.ranks), default=0)
    whys = [trouble.why for trouble in read_troubles(paths) if trouble.what == "replay"]
    why = whys[0] if whys else ""
    if whys:
        num_steps = max(num_steps - 1, 0)  # the last one may have been another
    elif num_steps < num_wanted:
        why = _why_it_ended(replay, exit_code, num_steps)
    _write_end(paths, name, num_steps, num_wanted, why)


def _why_it_ended(replay: Run, exit_code: int, num_steps: int) -> str:
    failure = describe_failure(replay)
    if failure is not None and not _is_told_by_output(replay):
        return f"on one process it fails: {failure.sentence.rstrip('.')}"
    lines = [line for line in last_lines(log_of(replay.paths)).splitlines() if line.strip()]
    if exit_code and lines:
        return f"on one process it fails: {lines[-1].strip()}"
    return f"on one process it ends after {num_steps} steps"


def _is_told_by_output(replay: Run) -> bool:
    """It ended by itself, and said why to the terminal alone."""
    return replay.first_failure is not None and (
        replay.first_failure[1].error_type == "ProcessEnded"
    )


def _write_end(paths: RunPaths, name: ReplayName, num_steps: int, wanted: int, why: str) -> None:
    write_json(
        paths.replay_end,
        ReplayEnd(
            schema_version=SCHEMA_VERSION,
            name=name,
            num_steps=num_steps,
            num_wanted=wanted,
            why_not=why,
        ),
    )


def _facts(paths: RunPaths, options: CheckOptions, *, replay: ReplayName | None) -> CheckFacts:
    return CheckFacts(
        replay=replay,
        material=str(paths.material.absolute()),
        num_steps=options.num_steps if replay is None else 0,
        num_kept=MAX_REPLAYED_STEPS,
        forced_devices=options.num_devices if options.force_cpu else 0,
    )


def _source_of(script: str) -> str:
    path = Path(script)
    if not path.is_file():
        raise UsageError(
            f"there is no script {path.resolve()} (from {script!r}). Name the file that you would "
            "give to torchrun; its arguments follow after two dashes."
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"can't read {path} as a Python script: {error}. Name a Python file, or use "
            "scaleproof observe -- COMMAND for anything else."
        ) from error


def _refuse_odd_numbers(options: CheckOptions) -> None:
    if options.num_devices < 2:
        raise UsageError(
            f"--devices {options.num_devices}: one device is what the others are checked against; "
            "expected 2 or more."
        )
    if options.num_steps < 0:
        raise UsageError(
            f"--steps {options.num_steps}: expected 1 or more, or 0 to run to the script's end."
        )
    if not options.timeout_s > 0:
        raise UsageError(f"--timeout {options.timeout_s}: expected more than 0 seconds.")


_ADVICE = (
    (
        ("EOFError: EOF when reading a line",),
        "It reads from the terminal, which a check does not have: give it its answers as "
        "arguments, after two dashes.",
    ),
    (
        ("the following arguments are required", "error: unrecognized arguments", "\nusage: "),
        "Give the script its arguments after two dashes: scaleproof check {script} -- --data ...",
    ),
    (
        ("no training was seen in it",),
        "Check a script that trains with an optimizer of torch.optim. One that starts its ranks "
        "itself needs --launcher python.",
    ),
)


def _advice(output: str, options: CheckOptions) -> str:
    """What to change in the command line, where the script's output tells."""
    if not options.force_cpu and needs_cuda(output):
        return (
            "\nIt needs CUDA or NCCL, which are not here. Add --force-cpu: what it asks of them is "
            "mapped to the CPU and gloo."
        )
    for signs, advice in _ADVICE:
        if any(sign in f"\n{output}" for sign in signs):
            return "\n" + advice.format(script=options.script)
    return ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
