"""A variational autoencoder on a stream that makes its own batches, in processes it spawns."""

import argparse
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset


class Stream(IterableDataset):
    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(11)
        for number in range(16):
            batch = torch.randn(6, 8, generator=generator)
            if number % self.world_size == self.rank:
                yield {"x": batch}


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 6), nn.Linear(3, 8)

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


def train(rank, world_size, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(rank)
    model = DistributedDataParallel(VAE())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        for batch in DataLoader(Stream(rank, world_size), batch_size=None):
            x = batch["x"]
            decoded, mean, log_variance = model(x)
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
            error = nn.functional.mse_loss(decoded, x, reduction="sum")
            loss = (error + divergence) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    args.port = free_port()
    mp.spawn(train, args=(args.ranks, args), nprocs=args.ranks)
