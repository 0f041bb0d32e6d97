"""Commands about somebody's own scripts."""

from functools import partial
from typing import TYPE_CHECKING

from scaleproof import cli_options as opt
from scaleproof.cli_app import EXIT_CODES, EXIT_INTERRUPTED, EXIT_UNDECIDED, as_typed, command
from scaleproof.cli_show import choose_profile, judge_and_report, say, told, was_training_seen
from scaleproof.errors import EvidenceError, RunError

if TYPE_CHECKING:
    from scaleproof.evidence.paths import StudyPaths
    from scaleproof.verdict.answers import Verdict


@partial(command, options_first=True)
def observe(
    argv: opt.ObservedCommandLine = None,
    out: opt.Out = None,
    timeout: opt.HangTimeout = 300.0,
    every: opt.Every = 100,
    profile: opt.ProfileFile = None,
) -> int:
    """Record what every rank of a command really does, then judge whether it is sound.

    scaleproof observe -- torchrun --nproc-per-node 2 train.py --epochs 3

    The command's output stays its own: what this says comes after it, on stderr. Exit code: the
    command's own when it failed, and its own, 0 included, when nothing was trained; otherwise
    0 sound, 1 not sound, 3 undecided, 4 it hung.
    """
    from scaleproof.launch.interrupts import Interrupts
    from scaleproof.launch.observe_command import observe_command
    from scaleproof.verdict.profile import to_dict

    chosen = choose_profile({}, profile, {})
    with Interrupts() as interrupts:
        observed = observe_command(
            argv or (),
            out,
            timeout_s=timeout,
            every=every,
            profile=to_dict(chosen),
            command=as_typed(),
        )
    own_code = EXIT_INTERRUPTED if interrupts.is_seen else observed.exit_code
    try:
        study, verdict = judge_and_report(observed.paths, chosen, err=True)
    except EvidenceError as error:
        say(str(error))
        return own_code or EXIT_CODES[EvidenceError]
    if observed.hung and not interrupts.is_seen:
        return EXIT_CODES[RunError]
    if own_code or not was_training_seen(study):
        return own_code
    return _exit_code_of(verdict)


@command
def check(
    script: opt.CheckedScript,
    arguments: opt.CheckedArguments = None,
    devices: opt.CheckedDevices = 2,
    steps: opt.Steps = 20,
    launcher: opt.LauncherName = "auto",
    force_cpu: opt.ForceCpu = False,
    out: opt.Out = None,
    timeout: opt.HangTimeout = 300.0,
    profile: opt.ProfileFile = None,
) -> int:
    """Find silent faults in a script before it gets its GPUs: N ranks against one process.

    scaleproof check train.py --devices 2 -- --lr 0.1

    Runs the script on N ranks for some steps, then again on one process that is fed what all of
    them were fed, and compares the gradients. Dropout is switched off meanwhile.

    Exit code: 0 sound, 1 not sound, 3 undecided, 4 the script failed.
    """
    from rich.console import Console

    from scaleproof.launch.check_command import CheckOptions, conduct_check, plan_check
    from scaleproof.launch.check_progress import CheckProgress
    from scaleproof.launch.study_folder import claim_folder
    from scaleproof.verdict.profile import to_dict

    chosen = choose_profile({}, profile, {})
    options = CheckOptions(
        script=script,
        arguments=tuple(arguments or ()),
        num_devices=devices,
        num_steps=steps,
        launcher=launcher,
        force_cpu=force_cpu,
        timeout_s=timeout,
        command=as_typed(),
    )
    plan = plan_check(options, to_dict(chosen))
    paths = claim_folder(out, script)
    console = Console(stderr=True)
    with told(paths, console), CheckProgress(console) as progress:
        conduct_check(paths, plan, progress, _is_unexplained)
    study, verdict = judge_and_report(paths, chosen)
    if any(run.hang is not None for run in study.runs.values()):
        return EXIT_CODES[RunError]
    return _exit_code_of(verdict)


def _is_unexplained(paths: "StudyPaths") -> bool:
    from scaleproof.checks.rank_dependent_gradients import is_unexplained
    from scaleproof.evidence.study import load_study

    return is_unexplained(load_study(paths.root))


def _exit_code_of(verdict: "Verdict") -> int:
    """Of a script alone."""
    from scaleproof.verdict.answers import Answer
    from scaleproof.verdict.verdict import soundness

    return {Answer.YES: 0, Answer.NO: 1}.get(soundness(verdict), EXIT_UNDECIDED)
