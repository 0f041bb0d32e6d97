"""The manifest of a script's run, as far as it can be known; rank 0 writes it twice.

At the first step, so that a run that is killed has one, and again at its end, when the numbers of
epochs and samples are known.
"""

import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import scaleproof
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import SCHEMA_VERSION, LearningRate, Manifest
from scaleproof.evidence.writer import digest_of, write_json
from scaleproof.observe.loaders import LoaderWatch
from scaleproof.observe.model import ModelInventory
from scaleproof.observe.process import Whoami, parallelism_of

_STARTED_AT_UNIX_S = time.time()


def write_manifest(
    run: RunPaths,
    who: Whoami,
    inventory: ModelInventory,
    optimizers: list[Any],
    loaders: LoaderWatch,
) -> None:
    """``optimizers``: those of the script that are alive."""
    arm, _, seed = run.name.rpartition("-seed")
    parameters = [parameter for _, parameter in inventory.parameters()]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rate = float(groups[0].get("initial_lr", groups[0].get("lr", 0.0))) if groups else 0.0
    on_cuda = any(parameter.device.type == "cuda" for parameter in parameters)
    batch = loaders.usual_batch_size
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        arm=arm,
        seed=int(seed) if seed.isdecimal() else 0,
        target=who.script,
        target_digest=_script_digest(),
        data_digest="",
        num_train_samples=loaders.num_items("training"),
        num_evaluation_samples=loaders.num_items("evaluation"),
        class_names=(),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        optimizer=", ".join(dict.fromkeys(type(o).__name__ for o in optimizers)),
        precision="bf16" if any(p.dtype is torch.bfloat16 for p in parameters) else "fp32",
        strategy=parallelism_of(inventory.roots),
        num_devices=who.num_ranks,
        num_ranks=who.num_ranks,
        batch_per_device=batch,
        global_batch_size=batch * who.num_ranks,
        num_epochs=max(loaders.epoch + 1, 0),
        learning_rate=LearningRate(rule="none", base=rate, scaled=rate, warmup_epochs=0.0),
        strategy_settings={},
        device_kind="cuda" if on_cuda else "cpu",
        device_names=(_device_name(on_cuda),),
        share_device=False,
        backend=_backend(),
        threads_per_rank=torch.get_num_threads(),
        host=socket.gethostname(),
        platform=platform.platform(),
        python_version=platform.python_version(),
        torch_version=str(torch.__version__),
        scaleproof_version=scaleproof.__version__,
        started_at_unix_s=_STARTED_AT_UNIX_S,
    )
    write_json(run.manifest, manifest)


def _script_digest() -> str:
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(file) if file else None
    return digest_of(path.read_bytes()) if path is not None and path.is_file() else ""


def _device_name(on_cuda: bool) -> str:
    if on_cuda:
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def _backend() -> Any:
    if not (dist.is_available() and dist.is_initialized()):
        return "none"
    backend = dist.get_backend()
    return backend if backend in ("gloo", "nccl") else "none"
