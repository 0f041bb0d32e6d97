"""Synchronous SGD by hand, in the manner of PyTorch's tutorial on distributed applications.

python examples/handwritten_allreduce.py --epochs 3
"""

import argparse
import os
import socket
from random import Random

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

Item = tuple[torch.Tensor, ...]


class Partition(Dataset[Item]):
    """A part of a data set, by the indices of its items."""

    def __init__(self, data: Dataset[Item], index: list[int]) -> None:
        self.data = data
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Item:
        return self.data[self.index[index]]


def partition_data(data: TensorDataset, sizes: list[float], seed: int) -> list[Partition]:
    indices = list(range(len(data)))
    Random(seed).shuffle(indices)
    partitions = []
    for size in sizes:
        length = int(size * len(data))
        partitions.append(Partition(data, indices[:length]))
        indices = indices[length:]
    return partitions


def average_gradients(model: nn.Module) -> None:
    size = float(dist.get_world_size())
    for param in model.parameters():
        if param.grad is not None:
            dist.all_reduce(param.grad, op=dist.ReduceOp.SUM)
            param.grad /= size


def run(rank: int, size: int, args: argparse.Namespace) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.set_num_threads(1)
    torch.manual_seed(1234 + rank)

    pixels, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
    partition = partition_data(data, [1.0 / size] * size, seed=1234)[rank]
    train_set = DataLoader(partition, batch_size=args.batch_size // size, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    for param in model.parameters():
        dist.broadcast(param.data, src=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.5)

    for epoch in range(args.epochs):
        epoch_loss, correct = 0.0, 0
        for data, target in train_set:
            optimizer.zero_grad()
            output = model(data)
            loss = F.cross_entropy(output, target)
            epoch_loss += loss.item()
            correct += int((output.argmax(dim=1) == target).sum())
            loss.backward()
            average_gradients(model)
            optimizer.step()
        mean, share = epoch_loss / len(train_set), correct / len(partition)
        print(f"Rank {rank}, epoch {epoch}: {mean:.4f} ({share:.1%} correct)", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks together")
    parser.add_argument("--lr", type=float, default=0.2)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = (
            "127.0.0.1",
            str(free.getsockname()[1]),
        )
    mp.spawn(run, args=(options.world_size, options), nprocs=options.world_size)  # pyright: ignore[reportPrivateImportUsage]
