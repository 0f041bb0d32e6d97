"""The options of the command line: their types and help, and what they come to as values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from scaleproof.errors import UsageError

Thresholds = dict[tuple[str, str], float]
"""Thresholds by check and field, as given on the command line."""

Format = Literal["terminal", "html", "json", "markdown", "junit"]

DeviceName = Literal["cpu", "cuda"]
LearningRateRuleName = Literal["none", "linear", "sqrt"]

Target = Annotated[
    str, typer.Argument(help="digits, cifar10, fraud, or your own path/to/file.py:function")
]
ComparedTarget = Annotated[
    str | None,
    typer.Argument(
        help="A recipe - digits, cifar10, fraud, path/to/file.py:function - or a script: train.py",
        show_default=False,
    ),
]
ScriptArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- ARGUMENTS]",
        help="Of the script; {seed} in them stands for 0, 1, ...",
        show_default=False,
    ),
]
ObservedCommandLine = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- COMMAND", help="As you would start it yourself", show_default=False),
]
Baseline = Annotated[
    str | None,
    typer.Option(help='Instead of a target: the command to compare with, "python train.py"'),
]
Candidate = Annotated[
    str | None,
    typer.Option(help='The command in question, "torchrun --nproc-per-node 2 train.py"'),
]
CheckedScript = Annotated[
    str, typer.Argument(help="The script, as you would give it to torchrun", show_default=False)
]
CheckedArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- ARGUMENTS]", help="Of the script", show_default=False),
]
CheckedDevices = Annotated[int, typer.Option(help="Number of ranks")]
Steps = Annotated[
    int, typer.Option(help="Optimizer steps after which it is ended; 0: at its own end")
]
LauncherName = Annotated[
    Literal["auto", "torchrun", "python"],
    typer.Option(help="python: the script starts its own processes; auto: guessed from its text"),
]
ForceCpu = Annotated[
    bool, typer.Option("--force-cpu", help="Map the CUDA and NCCL that it asks for to the CPU")
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
ComparedStrategyName = Annotated[str | None, typer.Option(help="ddp (the default) or dp; recipes")]
Devices = Annotated[
    str | None, typer.Option(help="2 (the default), or 1,2: one device against that many")
]
ComparedSeeds = Annotated[
    int | None,
    typer.Option(
        help="Pairs of runs; default: the recipe's, 1 for scripts. Without {seed} in its arguments "
        "a script's runs differ only by what it draws itself"
    ),
]
Device = Annotated[
    DeviceName | None,
    typer.Option(help="Default: cuda when there is one. On CPU a device is one pinned core"),
]
ShareDevice = Annotated[
    bool,
    typer.Option("--share-device", help="Let ranks share a device: tries soundness, not speed"),
]
Epochs = Annotated[int | None, typer.Option(help="Instead of the recipe's number of epochs")]
Out = Annotated[Path | None, typer.Option(help="Study folder; default scaleproof-studies/...")]
LearningRateRule = Annotated[
    LearningRateRuleName | None,
    typer.Option(help="Default: sqrt for Adam-like optimizers, linear for SGD"),
]
WarmupEpochs = Annotated[
    float | None,
    typer.Option(help="Epochs over which the scaled learning rate is approached; default 1"),
]
Timeout = Annotated[float, typer.Option(help="Seconds after which a stuck collective is an error")]
HangTimeout = Annotated[
    float, typer.Option(help="Seconds without any movement after which the command is ended")
]
Every = Annotated[int, typer.Option(help="Steps between two looks at gradients and parameters")]

DEFAULT_STRATEGY, DEFAULT_DEVICES, DEFAULT_WARMUP_EPOCHS = "ddp", "2", 1.0


def is_script(target: str) -> bool:
    """A recipe's file has its function after a colon; a script stands alone."""
    return target.endswith(".py")


def refuse_mixed_targets(
    target: str | None, arguments: list[str] | None, baseline: str | None, candidate: str | None
) -> None:
    """What to compare is said in exactly one way: a target, or two commands."""
    if (baseline is None) != (candidate is None):
        given, missing = ("--baseline", "--candidate")[:: 1 if baseline is not None else -1]
        raise UsageError(
            f'{given} alone: a comparison needs {missing} too. Write --baseline "python train.py" '
            '--candidate "torchrun --nproc-per-node 2 train.py".'
        )
    if baseline is not None and target is not None:
        raise UsageError(
            f"{target} and --baseline are both given, expected one of them. Name a target, or two "
            "commands, whose arguments all stand inside their quotes."
        )
    if baseline is None and target is None:
        raise UsageError(
            "nothing to compare was given. Name a recipe (scaleproof compare digits), a script "
            "(scaleproof compare train.py --devices 1,2 -- --epochs 3) or two commands "
            '(--baseline "python train.py" --candidate "torchrun --nproc-per-node 2 train.py").'
        )
    if target is not None and arguments and not is_script(target):
        raise UsageError(
            f"{target} is a recipe and takes no arguments, {' '.join(arguments)} was given. Use "
            "the options of scaleproof compare, or name a script: train.py."
        )


def refuse_options_of_recipes(given: Mapping[str, object]) -> None:
    """A script decides itself what these say of a recipe; None: not given."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                f"{option} {value} is for recipes: a script decides that itself. Give a script its "
                "own arguments after --, as in scaleproof compare train.py --devices 1,2 -- "
                "--epochs 3, and a command inside its quotes."
            )


def devices_from(devices: str) -> int:
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


def thresholds_from(
    min_time_reduction: float | None,
    min_accuracy: float | None,
    max_accuracy_drop: float | None,
) -> Thresholds:
    """Thresholds given as options, by check and field."""
    thresholds: Thresholds = {}
    if min_time_reduction is not None:
        thresholds["no-speed-up", "min_speed_up"] = 1 / (1 - min_time_reduction)
    if min_accuracy is not None:
        thresholds["accuracy-below-floor", "min_accuracy"] = min_accuracy
    if max_accuracy_drop is not None:
        thresholds["accuracy-drop", "max_drop"] = max_accuracy_drop
    return thresholds
