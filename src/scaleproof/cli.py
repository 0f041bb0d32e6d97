"""The command line: thin. It turns options into values, calls, prints, and maps errors to codes."""

import sys
import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer

from scaleproof.errors import EvidenceError, RunError, ScaleproofError, UsageError

if TYPE_CHECKING:
    from scaleproof.evidence.study import Study
    from scaleproof.launch.arms import Options
    from scaleproof.verdict.answers import Verdict
    from scaleproof.verdict.profile import Profile

Thresholds = dict[tuple[str, str], float]
"""Thresholds by check and field, as given on the command line."""

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130
EXIT_CODES = {UsageError: EXIT_USAGE, RunError: 4, EvidenceError: 5}

Format = Literal["terminal", "html", "json", "markdown", "junit"]

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


def _command(function: Callable[P, int]) -> Callable[P, int]:
    """Make a command of a function that returns its exit code; errors become codes too."""

    @wraps(function)
    def with_exit_code(*args: P.args, **kwargs: P.kwargs) -> int:
        raise typer.Exit(_exit_code_of(function, *args, **kwargs))

    app.command()(with_exit_code)
    return function


def _exit_code_of(function: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    try:
        return function(*args, **kwargs)
    except ScaleproofError as error:
        _say(str(error))
        return EXIT_CODES[type(error)]
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "pooch"):
            raise
        _say(
            f"this command trains, which needs {error.name}: pip install 'scaleproof[torch]'. "
            "judge, report and explain work without."
        )
        return EXIT_USAGE
    except Exception:  # noqa: BLE001 - the last resort: a bug is reported as one
        traceback.print_exc()
        _say("this is a bug of ours. Please report it with the lines above.")
        return EXIT_BUG


def _say(message: str) -> None:
    typer.echo(f"scaleproof: {message}", err=True)


Target = Annotated[
    str, typer.Argument(help="digits, cifar10, fraud, or your own path/to/file.py:function")
]
StudyFolder = Annotated[Path, typer.Argument(help="Folder of a study (it holds study.json)")]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="TOML file with margins, floors and what blocks")
]
MinTimeReduction = Annotated[
    float | None,
    typer.Option(help="Wanted reduction of time per epoch, 0.40 for 40 %", min=0.0, max=0.99),
]
MinAccuracy = Annotated[
    float | None, typer.Option(help="Floor of accuracy, 0.78 for 78 %", min=0.0, max=1.0)
]
MaxAccuracyDrop = Annotated[
    float | None,
    typer.Option(help="Margin below one device, 0.01 for 1 percentage point", min=0.0, max=1.0),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where the data set lies; otherwise it is downloaded")
]
StrategyName = Annotated[str, typer.Option(help="ddp or dp")]
Device = Annotated[
    Literal["cpu", "cuda"] | None,
    typer.Option(help="Default: cuda when there is one. On CPU a device is one pinned core"),
]
ShareDevice = Annotated[
    bool,
    typer.Option("--share-device", help="Let ranks share a device: tries soundness, not speed"),
]
Epochs = Annotated[int | None, typer.Option(help="Instead of the recipe's number of epochs")]
Out = Annotated[Path | None, typer.Option(help="Study folder; default scaleproof-studies/...")]
LearningRateRule = Annotated[
    Literal["none", "linear", "sqrt"] | None,
    typer.Option(help="Default: sqrt for Adam-like optimizers, linear for SGD"),
]
WarmupEpochs = Annotated[
    float, typer.Option(help="Epochs over which the scaled learning rate is approached")
]
Timeout = Annotated[float, typer.Option(help="Seconds after which a stuck collective is an error")]


@_command
def compare(
    target: Target,
    devices: Annotated[str, typer.Option(help="2, or 1,2: one device against that many")] = "2",
    seeds: Annotated[int | None, typer.Option(help="Pairs of runs; default: the recipe's")] = None,
    strategy: StrategyName = "ddp",
    device: Device = None,
    share_device: ShareDevice = False,
    epochs: Epochs = None,
    data_dir: DataDir = None,
    out: Out = None,
    learning_rate_rule: LearningRateRule = None,
    warmup_epochs: WarmupEpochs = 1.0,
    timeout: Timeout = 300.0,
    profile: ProfileFile = None,
    min_time_reduction: MinTimeReduction = None,
    min_accuracy: MinAccuracy = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
) -> int:
    """Train on one device and on N, in turns, and judge: adopt, reject or undecided."""
    from scaleproof.launch.arms import Options

    overrides = _overrides(min_time_reduction, min_accuracy, max_accuracy_drop)
    options = Options(
        target=target,
        strategy=strategy,
        num_devices=_num_devices(devices),
        with_baseline=True,
        device_kind=device,
        share_device=share_device,
        num_seeds=seeds,
        num_epochs=epochs,
        data_dir=data_dir,
        learning_rate_rule=learning_rate_rule,
        warmup_epochs=warmup_epochs,
        collective_timeout_s=timeout,
        command=tuple(sys.argv),
    )
    from scaleproof.verdict.verdict import exit_code

    return exit_code(_run_and_judge(options, out, profile, overrides))


@_command
def train(
    target: Target,
    strategy: StrategyName = "single",
    devices: Annotated[int, typer.Option(help="Number of devices")] = 1,
    seeds: Annotated[int, typer.Option(help="Number of runs")] = 1,
    device: Device = None,
    share_device: ShareDevice = False,
    epochs: Epochs = None,
    data_dir: DataDir = None,
    out: Out = None,
    learning_rate_rule: LearningRateRule = None,
    warmup_epochs: WarmupEpochs = 1.0,
    timeout: Timeout = 300.0,
    profile: ProfileFile = None,
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
        warmup_epochs=warmup_epochs,
        collective_timeout_s=timeout,
        command=tuple(sys.argv),
    )
    verdict = _run_and_judge(options, out, profile, {})
    return 1 if verdict.decision is Decision.REJECT else 0


@_command
def judge(
    study: StudyFolder,
    profile: ProfileFile = None,
    min_time_reduction: MinTimeReduction = None,
    min_accuracy: MinAccuracy = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
) -> int:
    """Judge a study again, from its evidence alone. Needs no torch."""
    from scaleproof.verdict.verdict import exit_code

    overrides = _overrides(min_time_reduction, min_accuracy, max_accuracy_drop)
    loaded, chosen = _load(study, profile, overrides)
    verdict = _print_verdict(loaded, chosen)
    return exit_code(verdict)


@_command
def report(
    study: StudyFolder,
    format: Annotated[Format, typer.Option(help="Which format")] = "terminal",  # noqa: A002
    out: Annotated[Path | None, typer.Option(help="File to write; default: print")] = None,
    profile: ProfileFile = None,
    min_time_reduction: MinTimeReduction = None,
    min_accuracy: MinAccuracy = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
) -> int:
    """Show a study in another format. Exit code 0 whatever the verdict is."""
    from scaleproof.evidence.writer import write_atomically
    from scaleproof.report.formats import render_text
    from scaleproof.report.summary import summarise
    from scaleproof.verdict.verdict import judge_study

    overrides = _overrides(min_time_reduction, min_accuracy, max_accuracy_drop)
    loaded, chosen = _load(study, profile, overrides)
    if format == "terminal" and out is None:
        _print_verdict(loaded, chosen)
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
    options: "Options",
    out: Path | None,
    profile_file: Path | None,
    overrides: "Thresholds",
) -> "Verdict":
    """Run a study with progress, print the verdict, and write the page beside the evidence."""
    import msgspec
    from rich.console import Console

    from scaleproof.evidence.study import load_study
    from scaleproof.evidence.writer import write_atomically
    from scaleproof.launch.arms import claim_folder, plan_study
    from scaleproof.launch.conduct import conduct
    from scaleproof.launch.progress import TerminalProgress
    from scaleproof.report.formats import render_text
    from scaleproof.report.summary import summarise
    from scaleproof.verdict.profile import to_dict

    plan = plan_study(options)
    profile = _choose_profile(plan.recipe.profile, profile_file, overrides)
    request = msgspec.structs.replace(plan.request, profile=to_dict(profile))
    paths = claim_folder(out, options.target)
    console = Console(stderr=True)
    console.print(f"Study: {paths.root}", highlight=False, markup=False)
    try:
        with TerminalProgress(console, num_seeds=len(request.seeds)) as progress:
            conduct(paths, request, plan.rounds, progress)
    except KeyboardInterrupt:
        _say(f"Interrupted. What was finished can be judged: scaleproof judge {paths.root}")
        raise
    study = load_study(paths.root)
    verdict = _print_verdict(study, profile)
    write_atomically(
        paths.report,
        render_text(summarise(study, verdict, confidence=profile.confidence), "html").encode(),
    )
    typer.echo(f"The whole report: {paths.report}")
    return verdict


def _load(
    folder: Path, profile_file: Path | None, overrides: "Thresholds"
) -> "tuple[Study, Profile]":
    """A study and the profile to judge it with: its own, changed by what is given now."""
    from scaleproof.evidence.study import load_study

    study = load_study(folder)
    return study, _choose_profile(study.request.profile, profile_file, overrides)


def _choose_profile(
    base: Mapping[str, Any], profile_file: Path | None, overrides: "Thresholds"
) -> "Profile":
    """``base``, with the file laid over it, and the options over both."""
    from scaleproof.verdict.profile import layered_profile, with_thresholds

    return with_thresholds(layered_profile(base, profile_file), overrides)


def _print_verdict(study: "Study", profile: "Profile") -> "Verdict":
    from rich.console import Console

    from scaleproof.report import terminal
    from scaleproof.report.summary import summarise
    from scaleproof.verdict.verdict import judge_study

    verdict = judge_study(study, profile)
    terminal.render(summarise(study, verdict, confidence=profile.confidence), Console())
    return verdict


def _num_devices(devices: str) -> int:
    """The candidate's number of devices from ``2`` or ``1,2``."""
    try:
        numbers = [int(part) for part in devices.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2 and numbers[0] == 1:
        numbers = numbers[1:]
    if len(numbers) != 1:
        raise UsageError(
            f"--devices {devices}: expected a number like 2, or 1 and that number, like 1,2. "
            "To compare several numbers with one, run compare once for each."
        )
    return numbers[0]


def _overrides(
    min_time_reduction: float | None,
    min_accuracy: float | None,
    max_accuracy_drop: float | None,
) -> "Thresholds":
    """Thresholds given as options, by check and field."""
    thresholds: Thresholds = {}
    if min_time_reduction is not None:
        thresholds["no-speed-up", "min_speed_up"] = 1 / (1 - min_time_reduction)
    if min_accuracy is not None:
        thresholds["accuracy-below-floor", "min_accuracy"] = min_accuracy
    if max_accuracy_drop is not None:
        thresholds["accuracy-drop", "max_drop"] = max_accuracy_drop
    return thresholds


def main() -> None:
    """Run the command line and exit with the documented code."""
    app()


if __name__ == "__main__":
    main()
