"""Rank 1 notices an error, says so in its own way, and leaves; rank 0 does not need it."""

import sys

import torch
import torch.distributed as dist
from torch import nn


def main() -> None:
    dist.init_process_group("gloo")
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.barrier()
    if dist.get_rank() == 1:
        print("no checkpoint could be written", file=sys.stderr)
        sys.exit(3)


main()
