"""From a run request to a finished training, on one rank."""

import platform
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

import scaleproof
from scaleproof.evidence.heartbeat import Heartbeat
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.records import SCHEMA_VERSION, LearningRate, Manifest
from scaleproof.evidence.writer import RankWriter, digest_of, write_json
from scaleproof.launch.environment import RankFacts
from scaleproof.launch.request import RunRequest
from scaleproof.launch.turns import Turns
from scaleproof.observe.recorder import Recorder
from scaleproof.observe.state import StateFingerprint
from scaleproof.recipes.find import find_recipe, source_digest
from scaleproof.recipes.learning_rate import default_rule, scaled_rate
from scaleproof.recipes.recipe import Data, Recipe, Split, check_data
from scaleproof.strategies.devices import (
    device_names,
    has_fast_bf16,
    place_rank,
    settle_on_devices,
)
from scaleproof.strategies.find import make_strategy
from scaleproof.strategies.strategy import AbstractStrategy, Placement
from scaleproof.train.batches import check_batch_size
from scaleproof.train.loop import Settings, Training, train


def run_rank(paths: RunPaths, facts: RankFacts, heartbeat: Heartbeat) -> Literal["ok", "diverged"]:
    """Train as the request in the run folder says; evidence goes into the folder."""
    request = read_json(paths.request, RunRequest, what="the request of a run")
    recipe = find_recipe(request.target)
    precision = recipe.precision if has_fast_bf16(request.device_kind) else "fp32"
    placement = place_rank(
        request.device_kind,
        rank=facts.rank,
        num_ranks=facts.num_ranks,
        num_devices=request.num_devices,
        precision=precision,
        collective_timeout_s=request.collective_timeout_s,
    )
    settle_on_devices(placement)
    data = recipe.load_data(None if request.data_dir is None else Path(request.data_dir))
    check_data(recipe.name, data)
    check_batch_size(len(data.train), recipe.batch_per_device, request.num_devices)
    strategy = make_strategy(request.strategy, placement)
    backend = _backend(request, strategy)
    if backend != "none":
        dist.init_process_group(
            backend,
            timeout=timedelta(seconds=request.collective_timeout_s),
            device_id=placement.device if backend == "nccl" else None,
        )
    torch.manual_seed(request.seed)  # the same weights on every rank and in every arm
    parameters = list(strategy.prepare(recipe.build_model()))
    torch.manual_seed(_data_seed(request.seed, strategy))  # dropout must differ between shards
    settings, optimizer = _build_optimizer(recipe, request, parameters)
    if facts.rank == 0:
        manifest = _manifest(
            request, recipe, data, settings, placement, strategy, parameters, optimizer, backend
        )
        write_json(paths.manifest, manifest)
    writer = RankWriter(paths, facts.rank)
    training = Training(
        recipe=recipe,
        data=_on_device(data, placement.device),
        strategy=strategy,
        parameters=parameters,
        optimizer=optimizer,
        settings=settings,
        recorder=Recorder(writer),
        heartbeat=heartbeat,
        fingerprint=StateFingerprint(),
    )
    status = train(training, Turns(paths.turn).wait_for)
    writer.close()
    strategy.close()
    return status


def _backend(request: RunRequest, strategy: AbstractStrategy) -> Literal["none", "gloo", "nccl"]:
    if not strategy.needs_process_group:
        return "none"
    # NCCL refuses two ranks on one device.
    return "nccl" if request.device_kind == "cuda" and not request.share_device else "gloo"


def _data_seed(seed: int, strategy: AbstractStrategy) -> int:
    return (seed + 1) * 1_000_003 + strategy.data_shard.index


def _build_optimizer(
    recipe: Recipe, request: RunRequest, parameters: list[tuple[str, torch.nn.Parameter]]
) -> tuple[Settings, torch.optim.Optimizer]:
    optimizer = recipe.build_optimizer((p for _, p in parameters), recipe.learning_rate)
    rule = request.learning_rate_rule or default_rule(optimizer)
    rate = LearningRate(
        rule=rule,
        base=recipe.learning_rate,
        scaled=scaled_rate(rule, recipe.learning_rate, request.num_devices),
        warmup_epochs=request.warmup_epochs,
    )
    for group in optimizer.param_groups:
        # Groups keep their proportions: a recipe may give one group a tenth of the rate.
        group["initial_lr"] = group["lr"] * (rate.scaled / rate.base)
    settings = Settings(
        seed=request.seed,
        num_epochs=request.num_epochs,
        global_batch_size=recipe.batch_per_device * request.num_devices,
        learning_rate=rate,
    )
    return settings, optimizer


def _on_device(data: Data, device: torch.device) -> Data:
    train_split, evaluation = (
        Split(inputs=split.inputs.to(device), targets=split.targets.to(device))
        for split in (data.train, data.evaluation)
    )
    return Data(train=train_split, evaluation=evaluation, class_names=data.class_names)


def _manifest(
    request: RunRequest,
    recipe: Recipe,
    data: Data,
    settings: Settings,
    placement: Placement,
    strategy: AbstractStrategy,
    parameters: list[tuple[str, torch.nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    backend: Literal["none", "gloo", "nccl"],
) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        arm=request.arm,
        seed=request.seed,
        target=request.target,
        target_digest=source_digest(request.target),
        data_digest=_data_digest(data),
        num_train_samples=len(data.train),
        num_evaluation_samples=len(data.evaluation),
        class_names=tuple(str(name) for name in data.class_names),  # numpy has its own str
        num_parameters=sum(p.numel() for _, p in parameters),
        optimizer=type(optimizer).__name__,
        precision=placement.precision,
        strategy=strategy.name,
        num_devices=request.num_devices,
        num_ranks=request.num_ranks,
        batch_per_device=recipe.batch_per_device,
        global_batch_size=settings.global_batch_size,
        num_epochs=settings.num_epochs,
        learning_rate=settings.learning_rate,
        strategy_settings=strategy.settings,
        device_kind=request.device_kind,
        device_names=device_names(request.device_kind, request.num_devices),
        share_device=request.share_device,
        backend=backend,
        threads_per_rank=torch.get_num_threads(),
        host=socket.gethostname(),
        platform=platform.platform(),
        python_version=sys.version.split()[0],
        torch_version=str(torch.__version__),
        scaleproof_version=scaleproof.__version__,
        started_at_unix_s=time.time(),
    )


def _data_digest(data: Data) -> str:
    """One digest over both splits: every byte that is trained or judged on."""
    tensors = (
        data.train.inputs,
        data.train.targets,
        data.evaluation.inputs,
        data.evaluation.targets,
    )
    parts = [
        f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        + digest_of(tensor.contiguous().view(torch.uint8).numpy().data).encode()
        for tensor in tensors
    ]
    return digest_of(b"".join(parts))
