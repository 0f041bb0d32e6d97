"""What devices there are, and which ones a rank gets.

On CPU a device is one core: whoever runs on it is pinned to it, with one intra-op thread.
"""

import os
from pathlib import Path
from typing import Literal

import torch

from scaleproof.errors import UsageError
from scaleproof.strategies.strategy import Placement

DeviceKind = Literal["cpu", "cuda"]


def default_device_kind() -> DeviceKind:
    return "cuda" if torch.cuda.is_available() else "cpu"


def available_cores() -> tuple[int, ...]:
    """The processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def num_available(kind: DeviceKind) -> int:
    return torch.cuda.device_count() if kind == "cuda" else len(available_cores())


def device_names(kind: DeviceKind, num_devices: int) -> tuple[str, ...]:
    """The models of the devices used, as the driver or the kernel names them."""
    if kind == "cuda":
        count = torch.cuda.device_count()
        return tuple(torch.cuda.get_device_name(index % count) for index in range(num_devices))
    return (_processor_name(),) * num_devices


def check_devices(kind: DeviceKind, num_devices: int, *, share_device: bool) -> None:
    """Raise ``UsageError`` when there are fewer devices than asked for."""
    if num_devices < 1:
        raise UsageError(f"--devices {num_devices}: expected 1 or more devices.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch sees no CUDA device. Use --device cpu, or install a CUDA build "
            "of torch and check that nvidia-smi lists the device."
        )
    found = num_available(kind)
    if num_devices > found and not share_device:
        what = "CUDA devices" if kind == "cuda" else "processor cores (on CPU a device is a core)"
        raise UsageError(
            f"--devices {num_devices}: this machine has {found} {what}. Ask for at most {found}, "
            "or add --share-device to let ranks share a device: that tries soundness, not speed."
        )


def place_rank(
    kind: DeviceKind,
    *,
    rank: int,
    num_ranks: int,
    num_devices: int,
    precision: Literal["bf16", "fp32"],
    collective_timeout_s: float,
) -> Placement:
    """The devices of ``rank``, dealt out in turn and reused when there are not enough."""
    per_rank = num_devices // num_ranks
    indices = range(rank * per_rank, (rank + 1) * per_rank)
    cores = available_cores()
    if kind == "cuda":
        count = torch.cuda.device_count()
        devices = tuple(torch.device("cuda", index % count) for index in indices)
        own_cores: tuple[int, ...] = ()
    else:
        devices = (torch.device("cpu"),) * per_rank
        own_cores = tuple(cores[index % len(cores)] for index in indices)
    return Placement(
        rank=rank,
        num_ranks=num_ranks,
        num_devices=num_devices,
        devices=devices,
        cores=own_cores,
        precision=precision,
        collective_timeout_s=collective_timeout_s,
    )


def settle_on_devices(placement: Placement) -> None:
    """Pin this process to its cores with one intra-op thread, or select its CUDA device."""
    if placement.device.type == "cuda":
        torch.cuda.set_device(placement.device)
        torch.backends.cudnn.benchmark = True  # shapes stay the same from step to step
        return
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, placement.cores)


def pin_this_thread(core: int) -> None:
    """Pin the calling thread alone (Linux; elsewhere the scheduler decides)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, (core,))


def has_fast_bf16(kind: DeviceKind) -> bool:
    """Whether bf16 autocast is done by the hardware, not emulated."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return torch.backends.cpu.get_cpu_capability()
