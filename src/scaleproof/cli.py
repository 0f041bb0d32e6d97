"""The command line: thin. It turns options into values, calls, prints, and maps errors to codes."""

import sys
import traceback
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from scaleproof import cli_options as opt
from scaleproof.cli_show import (
    choose_profile,
    judge_and_report,
    print_verdict,
    say,
    told,
    was_training_seen,
)
from scaleproof.errors import EvidenceError, RunError, ScaleproofError, UsageError

if TYPE_CHECKING:
    from scaleproof.evidence.study import Study
    from scaleproof.launch.arms import Options
    from scaleproof.launch.script_arms import ScriptOptions
    from scaleproof.verdict.answers import Verdict
    from scaleproof.verdict.profile import Profile

EXIT_USAGE, EXIT_UNDECIDED, EXIT_BUG, EXIT_INTERRUPTED = 2, 3, 70, 130
EXIT_CODES = {UsageError: EXIT_USAGE, RunError: 4, EvidenceError: 5}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Does training on N devices run faster than on one, does it learn just as well, is it "
    "sound - and if not, why, and what to change?",
    epilog="Exit codes: 0 adopt, 1 reject, 2 wrong usage, 3 undecided, 4 a run failed, "
    "5 the evidence can't be read, 70 a bug of ours, 130 interrupted.",
)

P = ParamSpec("P")


def _command(function: Callable[P, int], *, options_first: bool = False) -> Callable[P, int]:
    """Make a command of a function that returns its exit code; errors become codes too.

    ``options_first``: what follows the first argument is not for us.
    """

    @wraps(function)
    def with_exit_code(*args: P.args, **kwargs: P.kwargs) -> int:
        raise typer.Exit(_exit_code_of(function, *args, **kwargs))

    app.command(context_settings={"allow_interspersed_args": not options_first})(with_exit_code)
    return function


def _as_typed() -> tuple[str, ...]:
    """The command line, to be shown and typed again."""
    return ("scaleproof", *sys.argv[1:])


def _exit_code_of(function: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    try:
        return function(*args, **kwargs)
    except ScaleproofError as error:
        say(str(error))
        return EXIT_CODES[type(error)]
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "pooch"):
            raise
        say(
            f"this command trains, which needs {error.name}: pip install 'scaleproof[torch]'. "
            "judge, report and explain work without."
        )
        return EXIT_USAGE
    except Exception:  # noqa: BLE001 - the last resort: a bug is reported as one
        traceback.print_exc()
        say("this is a bug of ours. Please report it with the lines above.")
        return EXIT_BUG


@_command
def compare(
    target: opt.ComparedTarget = None,
    arguments: opt.ScriptArguments = None,
    baseline: opt.Baseline = None,
    candidate: opt.Candidate = None,
    devices: opt.Devices = None,
    seeds: opt.ComparedSeeds = None,
    strategy: opt.ComparedStrategyName = None,
    device: opt.Device = None,
    share_device: opt.ShareDevice = False,
    epochs: opt.Epochs = None,
    data_dir: opt.DataDir = None,
    out: opt.Out = None,
    learning_rate_rule: opt.LearningRateRule = None,
    warmup_epochs: opt.WarmupEpochs = None,
    timeout: opt.Timeout = 300.0,
    profile: opt.ProfileFile = None,
    min_time_reduction: opt.MinTimeReduction = None,
    min_accuracy: opt.MinAccuracy = None,
    max_accuracy_drop: opt.MaxAccuracyDrop = None,
) -> int:
    """Train on one device and on N, in turns, and judge: adopt, reject or undecided.

    A recipe: scaleproof compare digits --devices 2

    A script: scaleproof compare train.py --devices 1,2 -- --epochs 3

    Two commands: scaleproof compare --baseline "python train.py" --candidate "torchrun ..."
    """
    from scaleproof.verdict.verdict import exit_code

    overrides = opt.thresholds_from(min_time_reduction, min_accuracy, max_accuracy_drop)
    opt.refuse_mixed_targets(target, arguments, baseline, candidate)
    if target is None or opt.is_script(target):
        opt.refuse_options_of_recipes(
            {
                "--strategy": strategy,
                "--epochs": epochs,
                "--data-dir": data_dir,
                "--learning-rate-rule": learning_rate_rule,
                "--warmup-epochs": warmup_epochs,
            }
        )
        from scaleproof.launch.script_arms import ScriptOptions

        scripts = ScriptOptions(
            script=target,
            arguments=tuple(arguments or ()),
            num_devices=None if devices is None else opt.devices_from(devices),
            baseline=baseline,
            candidate=candidate,
            num_seeds=1 if seeds is None else seeds,
            device_kind=device,
            share_device=share_device,
            timeout_s=timeout,
            command=_as_typed(),
        )
        return exit_code(_compare_scripts(scripts, out, profile, overrides))
    from scaleproof.launch.arms import Options

    options = Options(
        target=target,
        strategy=strategy or opt.DEFAULT_STRATEGY,
        num_devices=opt.devices_from(devices or opt.DEFAULT_DEVICES),
        with_baseline=True,
        device_kind=device,
        share_device=share_device,
        num_seeds=seeds,
        num_epochs=epochs,
        data_dir=data_dir,
        learning_rate_rule=learning_rate_rule,
        warmup_epochs=opt.DEFAULT_WARMUP_EPOCHS if warmup_epochs is None else warmup_epochs,
        collective_timeout_s=timeout,
        command=_as_typed(),
    )
    return exit_code(_run_and_judge(options, out, profile, overrides))


@partial(_command, options_first=True)
def observe(
    command: opt.ObservedCommandLine = None,
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
    from scaleproof.verdict.answers import Answer
    from scaleproof.verdict.profile import to_dict
    from scaleproof.verdict.verdict import soundness

    chosen = choose_profile({}, profile, {})
    with Interrupts() as interrupts:
        observed = observe_command(
            command or (),
            out,
            timeout_s=timeout,
            every=every,
            profile=to_dict(chosen),
            command=_as_typed(),
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
    return {Answer.YES: 0, Answer.NO: 1}.get(soundness(verdict), EXIT_UNDECIDED)


@_command
def train(
    target: opt.Target,
    strategy: opt.StrategyName = "single",
    devices: Annotated[int, typer.Option(help="Number of devices")] = 1,
    seeds: Annotated[int, typer.Option(help="Number of runs")] = 1,
    device: opt.Device = None,
    share_device: opt.ShareDevice = False,
    epochs: opt.Epochs = None,
    data_dir: opt.DataDir = None,
    out: opt.Out = None,
    learning_rate_rule: opt.LearningRateRule = None,
    warmup_epochs: opt.WarmupEpochs = None,
    timeout: opt.Timeout = 300.0,
    profile: opt.ProfileFile = None,
) -> int:
    """Train one arm alone and report whether it was sound. Exit code 1 when it was not."""
    from scaleproof.launch.arms import Options
    from scaleproof.verdict.answers import Decision

    options = Options(
        target=target,
        strategy=strategy,
        num_devices=devices,
        with_baseline=False,
        device_kind=device,
        share_device=share_device,
        num_seeds=seeds,
        num_epochs=epochs,
        data_dir=data_dir,
        learning_rate_rule=learning_rate_rule,
        warmup_epochs=opt.DEFAULT_WARMUP_EPOCHS if warmup_epochs is None else warmup_epochs,
        collective_timeout_s=timeout,
        command=_as_typed(),
    )
    verdict = _run_and_judge(options, out, profile, {})
    return 1 if verdict.decision is Decision.REJECT else 0


@_command
def judge(
    study: opt.StudyFolder,
    profile: opt.ProfileFile = None,
    min_time_reduction: opt.MinTimeReduction = None,
    min_accuracy: opt.MinAccuracy = None,
    max_accuracy_drop: opt.MaxAccuracyDrop = None,
) -> int:
    """Judge a study again, from its evidence alone. Needs no torch."""
    from scaleproof.verdict.verdict import exit_code

    overrides = opt.thresholds_from(min_time_reduction, min_accuracy, max_accuracy_drop)
    loaded, chosen = _load(study, profile, overrides)
    verdict = print_verdict(loaded, chosen)
    return exit_code(verdict)


@_command
def report(
    study: opt.StudyFolder,
    format: Annotated[opt.Format, typer.Option(help="Which format")] = "terminal",  # noqa: A002
    out: Annotated[Path | None, typer.Option(help="File to write; default: print")] = None,
    profile: opt.ProfileFile = None,
    min_time_reduction: opt.MinTimeReduction = None,
    min_accuracy: opt.MinAccuracy = None,
    max_accuracy_drop: opt.MaxAccuracyDrop = None,
) -> int:
    """Show a study in another format. Exit code 0 whatever the verdict is."""
    from scaleproof.evidence.writer import write_atomically
    from scaleproof.report.formats import render_text
    from scaleproof.report.summary import summarise
    from scaleproof.verdict.verdict import judge_study

    overrides = opt.thresholds_from(min_time_reduction, min_accuracy, max_accuracy_drop)
    loaded, chosen = _load(study, profile, overrides)
    if format == "terminal" and out is None:
        print_verdict(loaded, chosen)
        return 0
    text = render_text(
        summarise(loaded, judge_study(loaded, chosen), confidence=chosen.confidence), format
    )
    if out is None:
        typer.echo(text)
    else:
        write_atomically(out, text.encode())
    return 0


@_command
def explain(
    name: Annotated[str | None, typer.Argument(help="Name of a check; none lists them")] = None,
) -> int:
    """Print the page of a check: what it looks for, how it decides, how to fix it."""
    from scaleproof.checks.all_checks import ALL_CHECKS, page_of

    if name is None:
        for check in ALL_CHECKS:
            typer.echo(f"{check.name:<24} {(check.__doc__ or '').strip().splitlines()[0]}")
    else:
        typer.echo(page_of(name))
    return 0


def _run_and_judge(
    options: "Options", out: Path | None, profile_file: Path | None, overrides: opt.Thresholds
) -> "Verdict":
    """Train the recipe of a study with progress, then judge it."""
    import msgspec
    from rich.console import Console

    from scaleproof.launch.arms import claim_folder, plan_study
    from scaleproof.launch.conduct import conduct
    from scaleproof.launch.progress import TerminalProgress
    from scaleproof.verdict.profile import to_dict

    plan = plan_study(options)
    profile = choose_profile(plan.recipe.profile, profile_file, overrides)
    request = msgspec.structs.replace(plan.request, profile=to_dict(profile))
    paths = claim_folder(out, options.target)
    console = Console(stderr=True)
    with told(paths, console), TerminalProgress(console, len(request.seeds)) as progress:
        conduct(paths, request, plan.rounds, progress)
    return judge_and_report(paths, profile)[1]


def _compare_scripts(
    options: "ScriptOptions", out: Path | None, profile_file: Path | None, overrides: opt.Thresholds
) -> "Verdict":
    """Run the arms of a study of scripts with progress, then judge it."""
    from rich.console import Console

    from scaleproof.launch.arms import claim_folder
    from scaleproof.launch.script_arms import conduct_scripts, plan_scripts
    from scaleproof.launch.script_progress import ScriptProgress
    from scaleproof.verdict.profile import to_dict

    profile = choose_profile({}, profile_file, overrides)
    plan = plan_scripts(options, to_dict(profile))
    if len(plan.request.seeds) > 1 and not plan.has_seeds:
        say(
            "not every arm is told its seed: its runs differ only by what the script itself draws, "
            "and are the very same where it fixes its seed. Write {seed} into its arguments."
        )
    paths = claim_folder(out, plan.request.target)
    console = Console(stderr=True)
    with told(paths, console), ScriptProgress(console) as progress:
        conduct_scripts(paths, plan, progress)
    return judge_and_report(paths, profile)[1]


def _load(
    folder: Path, profile_file: Path | None, overrides: opt.Thresholds
) -> "tuple[Study, Profile]":
    """A study and the profile to judge it with: its own, changed by what is given now."""
    from scaleproof.evidence.study import load_study

    study = load_study(folder)
    return study, choose_profile(study.request.profile, profile_file, overrides)


def main() -> None:
    """Run the command line and exit with the documented code."""
    app()


if __name__ == "__main__":
    main()
