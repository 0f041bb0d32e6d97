"""Rank 1 has one batch less: it waits at the end while rank 0 is still in backward."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.ones(24 if dist.get_rank() else 32, 4))
    for (inputs,) in DataLoader(data, batch_size=8):
        loss = model(inputs).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait_for_the_others()


def wait_for_the_others() -> None:
    dist.barrier()


main()
