"""The command line: thin. It turns options into values, calls, prints, and maps errors to codes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaleproof import cli_options as opt
from scaleproof import cli_scripts
from scaleproof.cli_app import app, as_typed, command
from scaleproof.cli_show import (
    choose_profile,
    judge_and_report,
    print_verdict,
    say,
    told,
)

if TYPE_CHECKING:
    from scaleproof.evidence.study import Study
    from scaleproof.launch.arms import Options
    from scaleproof.launch.script_arms import ScriptOptions
    from scaleproof.verdict.answers import Verdict
    from scaleproof.verdict.profile import Profile

__all__ = ["app", "cli_scripts", "main"]


@command
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
            command=as_typed(),
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
        command=as_typed(),
    )
    return exit_code(_run_and_judge(options, out, profile, overrides))


@command
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
        command=as_typed(),
    )
    verdict = _run_and_judge(options, out, profile, {})
    return 1 if verdict.decision is Decision.REJECT else 0


@command
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


@command
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


@command
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

    from scaleproof.launch.arms import plan_study
    from scaleproof.launch.conduct import conduct
    from scaleproof.launch.progress import TerminalProgress
    from scaleproof.launch.study_folder import claim_folder
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

    from scaleproof.launch.script_arms import conduct_scripts, plan_scripts
    from scaleproof.launch.script_progress import ScriptProgress
    from scaleproof.launch.study_folder import claim_folder
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
