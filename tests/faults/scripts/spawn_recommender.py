"""Two-tower recommender on made-up ratings, started by torch.multiprocessing.spawn.

python spawn_recommender.py --world-size 2
"""

# pyright: reportPrivateImportUsage=false

import argparse
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class Ratings(Dataset):
    """Who rated what how well; tastes are of four dimensions."""

    def __init__(self, num_users=60, num_items=40, num_ratings=2048):
        g = torch.Generator().manual_seed(5)
        tastes = torch.randn(num_users, 4, generator=g)
        traits = torch.randn(num_items, 4, generator=g)
        self.users = torch.randint(num_users, (num_ratings,), generator=g)
        self.items = torch.randint(num_items, (num_ratings,), generator=g)
        self.ratings = (tastes[self.users] * traits[self.items]).sum(1)
        self.num_users, self.num_items = num_users, num_items

    def __len__(self):
        return len(self.ratings)

    def __getitem__(self, i):
        return self.users[i], self.items[i], self.ratings[i]


class TwoTower(nn.Module):
    def __init__(self, num_users, num_items, dim=8):
        super().__init__()
        self.users = nn.Embedding(num_users, dim)
        self.items = nn.Embedding(num_items, dim)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, users, items):
        return (self.users(users) * self.items(items)).sum(-1) + self.bias


def setup(rank, world_size, port):
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)


def main(rank, world_size, args):
    setup(rank, world_size, args.port)
    torch.manual_seed(args.seed)

    dataset = Ratings()
    sampler = DistributedSampler(dataset, num_replicas=world_size, rank=rank, shuffle=True)
    loader = DataLoader(dataset, batch_size=args.batch_size // world_size, sampler=sampler)

    model = DDP(TwoTower(dataset.num_users, dataset.num_items))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        epoch_loss = torch.zeros(1)
        for users, items, ratings in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(users, items), ratings)
            loss.backward()
            optimizer.step()
            epoch_loss += loss.detach()
        dist.all_reduce(epoch_loss)
        if rank == 0:
            print(f"epoch {epoch}: {epoch_loss.item() / len(loader) / world_size:.4f}")

    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.port = free_port()
    world_size = args.world_size
    mp.spawn(main, args=(world_size, args), nprocs=world_size)
