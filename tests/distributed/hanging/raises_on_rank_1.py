"""Rank 1 raises in its third step; what follows on rank 0 is a consequence."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(50):
        inputs = torch.ones(8, 4)
        if step == 2 and dist.get_rank() == 1:
            raise ValueError("the third batch of rank 1 is bad")
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.barrier()


main()
