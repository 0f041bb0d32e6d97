"""From what a user asks for to a study request and the runs it takes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import scaleproof
from scaleproof.errors import RunError, ScaleproofError, UsageError
from scaleproof.evidence.records import SCHEMA_VERSION, Arm, StudyRequest
from scaleproof.evidence.tracebacks import traceback_of
from scaleproof.launch.request import RunRequest
from scaleproof.recipes.find import find_recipe, resolve_target
from scaleproof.recipes.recipe import Recipe, check_data
from scaleproof.strategies.devices import (
    DeviceKind,
    check_devices,
    default_device_kind,
)
from scaleproof.strategies.find import find_strategy
from scaleproof.train.batches import check_batch_size


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``compare`` and ``train`` were asked. None means: as the recipe or the machine says."""

    target: str
    strategy: str
    num_devices: int
    with_baseline: bool
    device_kind: DeviceKind | None = None
    share_device: bool = False
    num_seeds: int | None = None
    num_epochs: int | None = None
    data_dir: Path | None = None
    learning_rate_rule: Literal["none", "linear", "sqrt"] | None = None
    warmup_epochs: float = 1.0
    collective_timeout_s: float = 300.0
    command: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study before it begins: what is asked, and the runs of each seed."""

    recipe: Recipe
    request: StudyRequest
    rounds: tuple[tuple[RunRequest, ...], ...]


def plan_study(options: Options) -> Plan:
    """Check everything that can be checked before a process is started.

    Raises ``UsageError`` for what can't be, and ``RunError`` when the recipe itself raises.
    """
    _check_numbers(options)
    strategy = find_strategy(options.strategy)
    kind = options.device_kind or default_device_kind()
    check_devices(kind, options.num_devices, share_device=options.share_device)
    if strategy.name == "single" and options.num_devices != 1:
        raise UsageError(
            f"--strategy single uses one device, --devices asks for {options.num_devices}. "
            "Use --strategy ddp or dp."
        )
    recipe = _load_recipe(options, options.num_devices)
    arms = [Arm(name="", role="candidate", strategy=strategy.name, num_devices=options.num_devices)]
    if options.with_baseline:
        arms.insert(0, Arm(name="", role="baseline", strategy="single", num_devices=1))
    arms = [_named(arm) for arm in arms]
    seeds = tuple(range(options.num_seeds or recipe.num_seeds))
    num_epochs = options.num_epochs or recipe.num_epochs
    request = StudyRequest(
        schema_version=SCHEMA_VERSION,
        target=options.target,
        arms=tuple(arms),
        seeds=seeds,
        num_epochs=num_epochs,
        device_kind=kind,
        share_device=options.share_device,
        profile=dict(recipe.profile),
        command=options.command,
        created_at_unix_s=time.time(),
        scaleproof_version=scaleproof.__version__,
    )
    rounds = tuple(
        tuple(_run_request(options, request, arm, seed) for arm in arms) for seed in seeds
    )
    return Plan(recipe=recipe, request=request, rounds=rounds)


def _check_numbers(options: Options) -> None:
    for flag, value in (("--seeds", options.num_seeds), ("--epochs", options.num_epochs)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: expected 1 or more.")
    if options.with_baseline and options.num_devices < 2:
        raise UsageError(
            f"--devices {options.num_devices}: a comparison needs 2 or more devices against one. "
            "Use scaleproof train for a single run."
        )
    if options.warmup_epochs < 0 or options.collective_timeout_s <= 0:
        raise UsageError(
            f"--warmup-epochs {options.warmup_epochs} and --timeout "
            f"{options.collective_timeout_s}: expected 0 or more epochs and more than 0 seconds."
        )


def _load_recipe(options: Options, num_devices: int) -> Recipe:
    """The recipe, after loading its data once: a wrong file, or a download, belongs here."""
    try:
        recipe = find_recipe(options.target)
        data = recipe.load_data(options.data_dir)
    except ScaleproofError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise RunError(
            f"the recipe {options.target} raised {type(error).__name__}: {error}\n"
            f"{traceback_of(error)}Mend the recipe; nothing was started."
        ) from error
    check_data(recipe.name, data)
    check_batch_size(len(data.train), recipe.batch_per_device, num_devices)
    return recipe


def _named(arm: Arm) -> Arm:
    return Arm(
        name=f"{arm.strategy}-{arm.num_devices}",
        role=arm.role,
        strategy=arm.strategy,
        num_devices=arm.num_devices,
    )


def _run_request(options: Options, request: StudyRequest, arm: Arm, seed: int) -> RunRequest:
    has_process_group = find_strategy(arm.strategy).needs_process_group
    return RunRequest(
        target=resolve_target(options.target),
        data_dir=None if options.data_dir is None else str(options.data_dir.resolve()),
        arm=arm.name,
        seed=seed,
        strategy=arm.strategy,
        num_devices=arm.num_devices,
        num_ranks=arm.num_devices if has_process_group else 1,
        device_kind=request.device_kind,
        share_device=request.share_device,
        num_epochs=request.num_epochs,
        learning_rate_rule=options.learning_rate_rule,
        warmup_epochs=options.warmup_epochs,
        collective_timeout_s=options.collective_timeout_s,
    )
