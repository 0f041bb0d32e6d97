"""Residual network with BatchNorm that tells four kinds of heartbeat apart."""

import argparse
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.optim as optim
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def get_args():
    parser = argparse.ArgumentParser(description="ECG classification")
    parser.add_argument("--total_epochs", default=3, type=int)
    parser.add_argument(
        "--batch_size", default=32, type=int, help="Input batch size on each device"
    )
    parser.add_argument("--lr", default=0.05, type=float)
    parser.add_argument("--wd", default=1e-4, type=float)
    return parser.parse_args()


def synthesize(n, seed):
    """Beats of 64 samples: a peak whose width, place and echo depend on the class."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=g)
    t = torch.linspace(-1, 1, 64).expand(n, 64)
    kind = label[:, None].float()
    centre = 0.2 * torch.randn(n, 1, generator=g)
    beat = torch.exp(-(((t - centre) / (0.08 + 0.05 * kind)) ** 2))
    echo = 0.2 * kind * torch.exp(-(((t - centre - 0.4) / 0.15) ** 2))
    wander = torch.randn(n, 1, generator=g) * t + 0.2 * torch.randn(n, 64, generator=g)
    return TensorDataset((beat + echo + wander).unsqueeze(1), label)


class BasicBlock(nn.Module):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv1d(in_planes, planes, 5, stride, padding=2, bias=False)
        self.bn1 = nn.BatchNorm1d(planes)
        self.conv2 = nn.Conv1d(planes, planes, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm1d(planes)
        self.downsample = nn.Sequential(
            nn.Conv1d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm1d(planes)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Trainer:
    def __init__(self, model, train_data, test_data, optimizer, args):
        self.rank = dist.get_rank()
        self.train_data, self.test_data = train_data, test_data
        self.optimizer = optimizer
        self.criterion = nn.CrossEntropyLoss()
        self.args = args
        self.model = DDP(model)

    def _run_batch(self, source, targets):
        self.optimizer.zero_grad()
        output = self.model(source)
        loss = self.criterion(output, targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _run_epoch(self, epoch):
        self.model.train()
        self.train_data.sampler.set_epoch(epoch)
        return [self._run_batch(source, targets) for source, targets in self.train_data]

    @torch.no_grad()
    def _test(self):
        self.model.eval()
        correct = torch.zeros(2)
        for source, targets in self.test_data:
            correct[0] += (self.model(source).argmax(dim=1) == targets).sum()
            correct[1] += targets.numel()
        dist.all_reduce(correct, op=dist.ReduceOp.SUM)
        return 100 * correct[0].item() / correct[1].item()

    def train(self):
        for epoch in range(self.args.total_epochs):
            start = time.perf_counter()
            losses = self._run_epoch(epoch)
            top1 = self._test()
            if self.rank == 0:
                took = time.perf_counter() - start
                loss = sum(losses) / len(losses)
                print(f"Epoch {epoch} | Loss {loss:.4f} | Top-1 {top1:.1f} | {took:.1f}s")


def main(args):
    dist.init_process_group(backend="gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    train_set, test_set = synthesize(768, seed=1), synthesize(256, seed=2)
    test_set = torch.utils.data.Subset(test_set, range(rank, len(test_set), world_size))
    train_data = DataLoader(train_set, args.batch_size, sampler=DistributedSampler(train_set))
    test_data = DataLoader(test_set, args.batch_size)
    model = nn.Sequential(
        nn.Conv1d(1, 8, 7, 2, padding=3, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(inplace=True),
        BasicBlock(8, 16, 2),
        BasicBlock(16, 32, 2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    optimizer = optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.wd)
    Trainer(model, train_data, test_data, optimizer, args).train()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(get_args())
