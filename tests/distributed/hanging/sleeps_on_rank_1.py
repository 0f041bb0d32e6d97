"""Rank 1 waits for a file that never comes, in the middle of training."""

import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.2)


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(50):
        if step == 2 and dist.get_rank() == 1:
            wait_for(Path("/nowhere/at/all"))
        model(torch.ones(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


main()
