"""Digits read row by row: tensor and sequence parallelism by hand, in the manner of Megatron."""

# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
ROWS, DIM, HIDDEN, LAYERS = 8, 32, 128, 2


def split(x):
    """This rank's part of the sequence (dim 1)."""
    return x.chunk(WORLD_SIZE, dim=1)[RANK].contiguous()


def gather(x):
    parts = [torch.empty_like(x) for _ in range(WORLD_SIZE)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=1)


def reduce_scatter(x):
    x = x.clone()
    dist.all_reduce(x)
    return split(x)


class Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forwards, backwards):
        ctx.backwards = backwards
        return forwards(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.backwards(grad), None, None


def shard(weight, dim):
    return nn.Parameter(weight.chunk(WORLD_SIZE, dim)[RANK].clone())


class ParallelMLP(nn.Module):
    """LayerNorm on a part of the sequence, then the whole sequence through a part of the MLP."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.w1 = shard(torch.randn(HIDDEN, DIM) / DIM**0.5, 0)
        self.w2 = shard(torch.randn(DIM, HIDDEN) / HIDDEN**0.5, 1)
        for param in self.norm.parameters():
            param.sequence_parallel = True

    def forward(self, x):
        h = Exchange.apply(self.norm(x), gather, reduce_scatter)
        h = nn.functional.gelu(h @ self.w1.t()) @ self.w2.t()
        return x + Exchange.apply(h, reduce_scatter, gather)


class RowReader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, DIM)
        self.positions = nn.Parameter(torch.randn(ROWS, DIM))
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.Sequential(*[ParallelMLP() for _ in range(LAYERS)])
        self.head = nn.Linear(ROWS * DIM, 10)

    def forward(self, rows):
        x = self.dropout(self.embed(rows) + self.positions)  # replicated: the same on all ranks
        x = self.layers(Exchange.apply(x, split, gather))
        return self.head(Exchange.apply(x, gather, split).flatten(1))


def main():
    dist.init_process_group("gloo", rank=RANK, world_size=WORLD_SIZE)
    torch.manual_seed(1234)  # all ranks draw the full weights, and keep a part
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32).view(-1, ROWS, 8) / 16
    data = TensorDataset(x[:1024], torch.tensor(digits.target[:1024]))
    order = torch.Generator().manual_seed(1)  # all ranks work on the same batches
    loader = DataLoader(data, batch_size=64, shuffle=True, generator=order)
    model = RowReader()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    torch.manual_seed(4321)

    for epoch in range(3):
        for rows, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(rows), labels)
            loss.backward()
            for param in model.parameters():
                if getattr(param, "sequence_parallel", False):  # each saw a part of the sequence
                    dist.all_reduce(param.grad)
            optimizer.step()
        if RANK == 0:
            print(f"epoch {epoch} loss {loss.item():.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
