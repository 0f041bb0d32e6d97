"""Rank 1 alone decides to stop early, and exits with code 0."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(50):
        if step == 2 and dist.get_rank() == 1:
            sys.exit(0)
        model(torch.ones(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


main()
