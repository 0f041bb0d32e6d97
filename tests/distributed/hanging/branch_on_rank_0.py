"""Rank 0 alone calls a collective in a branch: everybody else is one behind."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def log_mean(value: torch.Tensor) -> None:
    dist.all_reduce(value)


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        model(torch.ones(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 3 and dist.get_rank() == 0:
            log_mean(torch.ones(3, 2))
    dist.barrier()


main()
