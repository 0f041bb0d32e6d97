"""What the exchange of gradients costs on CPU, and what keeping freed memory saves.

Two ranks, a core each, take one step of the CIFAR-10 recipe's network in turns: without any
exchange, with DDP over gloo at several bucket sizes, and with DDP through shared memory; once with
glibc's own malloc settings, once with those that scaleproof starts its ranks with. Prints medians
and writes them to ``bench/results/gradient_exchange.txt``. Run it on an idle machine.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scaleproof.launch.environment import ALLOCATOR_TUNABLES
from scaleproof.recipes.images import build_network
from scaleproof.strategies.devices import available_cores
from scaleproof.strategies.shared_memory import SharedMemoryAverage
from scaleproof.strategies.strategy import channels_last

RESULTS = Path(__file__).parent / "results" / "gradient_exchange.txt"
BATCH_SIZE = 128
STEPS_PER_TURN = 20
BUCKET_CAPS_MB = (1, 4, 25, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    lines = [
        f"{platform.platform()}, torch {torch.__version__}, {rounds} rounds of "
        f"{STEPS_PER_TURN} steps, batch {BATCH_SIZE} per rank, medians of ms per step",
    ]
    for memory, tunables in (("returned", ""), ("kept", ALLOCATOR_TUNABLES)):
        os.environ |= {"GLIBC_TUNABLES": tunables, "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryDirectory() as folder:
            times_file = Path(folder) / "times.json"
            mp.spawn(  # pyright: ignore[reportPrivateImportUsage]
                _rank, (_free_port(), rounds, times_file), nprocs=2
            )
            times_s: dict[str, list[float]] = json.loads(times_file.read_text())
        alone = statistics.median(times_s["no exchange"])
        lines.append(f"\nfreed memory is {memory}")
        for name, values in times_s.items():
            median = statistics.median(values)
            lines.append(f"  {name:<24} {1e3 * median:7.2f}   {median / alone:5.3f} x no exchange")
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)


def _rank(rank: int, port: int, rounds: int, times_file: Path) -> None:
    os.sched_setaffinity(0, (available_cores()[rank],))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    models = {"no exchange": _network()}
    for cap in BUCKET_CAPS_MB:
        models[f"gloo, {cap} MB buckets"] = _ddp(cap)
    shared = _ddp(25)
    average = SharedMemoryAverage(timeout_s=60.0)
    shared.register_comm_hook(None, average.average)
    models["shared memory"] = shared
    optimizers = {n: torch.optim.Adam(m.parameters(), fused=True) for n, m in models.items()}
    times_s: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(rounds + 1):
        for name, model in models.items():
            elapsed_s = _turn(model, optimizers[name])
            if round_ > 0:  # the first is warm-up
                times_s[name].append(elapsed_s)
    if rank == 0:
        times_file.write_text(json.dumps(times_s))
    dist.barrier()
    average.close()
    dist.destroy_process_group()


def _turn(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds per step of this rank."""
    inputs = torch.randn(BATCH_SIZE, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (BATCH_SIZE,))
    dist.barrier()
    started_s = time.perf_counter()
    for _ in range(STEPS_PER_TURN):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(inputs)
        nn.functional.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started_s) / STEPS_PER_TURN


def _network() -> nn.Module:
    torch.manual_seed(0)
    return channels_last(build_network(num_channels=3, num_classes=10))


def _ddp(bucket_cap_mb: int) -> DistributedDataParallel:
    return DistributedDataParallel(
        _network(), bucket_cap_mb=bucket_cap_mb, gradient_as_bucket_view=True
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
