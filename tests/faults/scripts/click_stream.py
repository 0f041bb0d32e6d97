"""Click prediction from a log read as a stream: hashed features, a wide part and a deep part."""

import argparse
import hashlib
import itertools
import random

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

NUM_BUCKETS = 512
FIELDS = ("site", "device", "ad", "hour")


def log_lines(num_lines, day):
    """What would be read from a file of that day: 'label site device ad hour'."""
    rng = random.Random(day)
    for _ in range(num_lines):
        site, device, ad, hour = (rng.randrange(n) for n in (40, 4, 60, 24))
        chance = 0.1 + 0.4 * (ad % 3 == site % 3) + 0.3 * (device == 2)
        yield f"{int(rng.random() < chance)} {site} {device} {ad} {hour}"


def bucket(field, value):
    digest = hashlib.md5(f"{field}={value}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % NUM_BUCKETS


class ClickLog(IterableDataset):
    """Each reader - a worker of a rank - takes every n-th line."""

    def __init__(self, num_lines):
        super().__init__()
        self.num_lines = num_lines
        self.day = 0
        self.rank, self.world_size = 0, 1
        if dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def parse(self, line):
        label, *values = line.split()
        ids = [bucket(field, value) for field, value in zip(FIELDS, values, strict=True)]
        return torch.tensor(ids), torch.tensor(float(label))

    def __iter__(self):
        worker = get_worker_info()
        num_workers = worker.num_workers if worker else 1
        worker_id = worker.id if worker else 0
        reader = self.rank * num_workers + worker_id
        num_readers = self.world_size * num_workers
        lines = itertools.islice(log_lines(self.num_lines, self.day), reader, None, num_readers)
        return map(self.parse, lines)


class WideAndDeep(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.wide = nn.EmbeddingBag(NUM_BUCKETS, 1, mode="sum")
        self.embed = nn.Embedding(NUM_BUCKETS, dim)
        self.deep = nn.Sequential(
            nn.Linear(len(FIELDS) * dim, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
            nn.Linear(32, 1),
        )  # fmt: skip

    def forward(self, ids):
        return (self.wide(ids) + self.deep(self.embed(ids).flatten(1))).squeeze(1)


def main(args):
    dist.init_process_group("gloo")
    log = ClickLog(args.lines)
    loader = DataLoader(log, batch_size=args.batch_size, num_workers=2)
    model = nn.parallel.DistributedDataParallel(WideAndDeep(args.dim))
    opt = torch.optim.Adagrad(model.parameters(), lr=args.lr)
    loss_fn = nn.BCEWithLogitsLoss()

    for day in range(args.days):
        log.day = day  # the workers are started anew for every day
        progress = torch.zeros(2)
        for ids, clicked in loader:
            loss = loss_fn(model(ids), clicked)
            opt.zero_grad()
            loss.backward()
            opt.step()
            progress += torch.tensor([loss.item() * len(ids), len(ids)])
        dist.all_reduce(progress)
        if dist.get_rank() == 0:
            print(f"day {day}: logloss {progress[0] / progress[1]:.4f} on {int(progress[1])} lines")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--days", type=int, default=3)
    p.add_argument("--lines", type=int, default=1536)
    p.add_argument("--batch_size", type=int, default=32)
    p.add_argument("--dim", type=int, default=8)
    p.add_argument("--lr", type=float, default=0.05)
    main(p.parse_args())
