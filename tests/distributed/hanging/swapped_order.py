"""Two collectives, called in another order on rank 1."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def exchange(loss: torch.Tensor, best: torch.Tensor) -> None:
    if dist.get_rank() == 0:
        dist.broadcast(best, src=1)
        dist.all_reduce(loss)
    else:
        dist.all_reduce(loss)
        dist.broadcast(best, src=1)


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    exchange(torch.ones(3), torch.ones(3))


main()
