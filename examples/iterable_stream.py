"""Sensor readings as a stream: an IterableDataset split by rank and by worker.

torchrun --standalone --nproc-per-node 2 examples/iterable_stream.py --epochs 3
"""

import argparse
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Readings(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Number i of the stream goes to the reader whose turn it is."""

    def __init__(self, size: int, rank: int, world_size: int) -> None:
        self.size, self.rank, self.world_size = size, rank, world_size
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        reader = self.rank * num_workers + worker
        num_readers = self.world_size * num_workers
        start = self.epoch * self.size
        for number in range(start + reader, start + self.size, num_readers):
            generator = torch.Generator().manual_seed(number)
            label = number % 3
            signal = torch.sin(torch.arange(24) * (label + 1) / 3 + number)
            yield signal + 0.3 * torch.randn(24, generator=generator), torch.tensor(label)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--epoch-size", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7)
    stream = Readings(args.epoch_size, rank, world_size)
    loader = DataLoader(stream, batch_size=args.batch_size, num_workers=args.workers)

    model = DistributedDataParallel(
        nn.Sequential(
            nn.Unflatten(1, (1, 24)),
            nn.Conv1d(1, 16, 7), nn.ReLU(), nn.Conv1d(16, 16, 5), nn.ReLU(),
            nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(32, 3),
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        stream.epoch = epoch
        sums = torch.zeros(3)
        for signals, labels in loader:
            optimizer.zero_grad()
            logits = model(signals)
            loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            correct = (logits.argmax(1) == labels).sum().item()
            sums += torch.tensor([loss.item() * len(labels), correct, len(labels)])
        dist.all_reduce(sums)
        if rank == 0:
            print(f"epoch {epoch}: loss {sums[0] / sums[2]:.3f} accuracy {sums[1] / sums[2]:.1%}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
