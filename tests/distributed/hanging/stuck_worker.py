"""A data worker of rank 1 waits for a lock that nobody gives back."""

import threading

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

LOCK = threading.Lock()


class Samples(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 40 and dist.get_rank() == 1:
            LOCK.acquire()
            LOCK.acquire()
        return torch.ones(4)


def main() -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs in DataLoader(Samples(), batch_size=8, num_workers=1):
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


main()
