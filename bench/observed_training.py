"""A training that ``observer_overhead.py`` times, block by block, when it is given the turn.

``observed_training.py WORKLOAD FOLDER NUM_BLOCKS STEPS_PER_BLOCK DATA_DIR``: an ordinary script,
which knows nothing of being observed. Waits for its turn before each block of steps, and leaves
one line per block: the seconds it took.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from scaleproof.launch.turns import Turns
from scaleproof.recipes import cifar10

NUM_WARM_UP_STEPS = 5
BATCH_SIZE = 64


def make_model(workload: str) -> nn.Module:
    if workload == "cifar10":
        return cifar10.recipe().build_model()
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 256 if workload == "deep" else 1536)]
    if workload == "deep":  # 100 layers with weights
        for _ in range(98):
            layers += [nn.ReLU(), nn.Linear(256, 256)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(1536, 10))


def make_data(workload: str, data_dir: Path) -> TensorDataset:
    if workload == "cifar10":
        recipe = cifar10.recipe()
        split = recipe.load_data(data_dir).train
        inputs = recipe.prepare(split.inputs[:25_600], None)
        return TensorDataset(inputs.float(), split.targets[:25_600])
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64_000, 64, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 10, (64_000,), generator=generator))


def main() -> None:
    workload, folder = sys.argv[1], Path(sys.argv[2])
    num_blocks, num_steps, data_dir = int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})

    torch.manual_seed(rank)
    data = make_data(workload, data_dir)
    model = make_model(workload)
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    sampler = DistributedSampler(data) if dist.is_initialized() else None
    loader = DataLoader(data, BATCH_SIZE, shuffle=sampler is None, sampler=sampler, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()

    endless = batches()
    for _ in range(NUM_WARM_UP_STEPS):
        step(*next(endless))
    turns = Turns(folder / "turn")
    for block in range(num_blocks):
        turns.wait_for(block)
        if dist.is_initialized():
            dist.barrier()
        began_s = time.perf_counter()
        for _ in range(num_steps):
            step(*next(endless))
        block_s = time.perf_counter() - began_s
        if rank == 0:
            with (folder / "blocks").open("a") as file:
                file.write(f"{block_s}\n")
    if rank == 0:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (folder / "peak").write_text(str(peak_bytes))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
