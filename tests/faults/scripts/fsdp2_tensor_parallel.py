"""A small transformer language model: FSDP2 over one mesh axis, tensor parallelism over the other.

In the manner of torchtitan, with sequence-parallel norms: torchrun --nproc-per-node 2 ...
"""

# pyright: reportPossiblyUnboundVariable=false

import os

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.data import DataLoader, Dataset, DistributedSampler

VOCAB, SEQ_LEN, DIM, HEAD, LAYERS = 64, 32, 64, 16, 2
EPOCHS, BATCH_SIZE, LR, MAX_NORM = 2, 16, 3e-3, 1.0


class CountingSequences(Dataset):
    """Counts up in steps of its own, modulo the vocabulary."""

    def __init__(self, size=256):
        g = torch.Generator().manual_seed(0)
        start = torch.randint(VOCAB, (size, 1), generator=g)
        step = torch.randint(1, 6, (size, 1), generator=g)
        self.tokens = (start + step * torch.arange(SEQ_LEN + 1)) % VOCAB

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return self.tokens[i, :-1], self.tokens[i, 1:]


class Block(nn.Module):
    """Causal self-attention, and nothing else: that is all it takes to count."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.wq, self.wk, self.wv = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.wo = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x):
        h = self.norm(x)
        # each rank has some of the heads: as many as come out of the projections
        q, k, v = (
            w(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.wo(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.output = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def apply_tp(model, tp_mesh):
    """Norms work on their part of the sequence; attention on all of it, for some of the heads."""
    plan = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "layers.*.norm": SequenceParallel(),
        "layers.*.wq": ColwiseParallel(input_layouts=Shard(1)),
        "layers.*.wk": ColwiseParallel(input_layouts=Shard(1)),
        "layers.*.wv": ColwiseParallel(input_layouts=Shard(1)),
        "layers.*.wo": RowwiseParallel(output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, tp_mesh, plan)


def main():
    dist.init_process_group("gloo")
    world_size = int(os.environ["WORLD_SIZE"])
    tp = 2 if world_size % 2 == 0 else 1
    mesh = init_device_mesh("cpu", (world_size // tp, tp), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)  # the same weights everywhere

    model = Transformer()
    apply_tp(model, mesh["tp"])
    for layer in model.layers:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)

    dp_rank, dp_size = mesh["dp"].get_local_rank(), mesh["dp"].size()
    dataset = CountingSequences()
    sampler = DistributedSampler(dataset, num_replicas=dp_size, rank=dp_rank)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, sampler=sampler)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for tokens, labels in loader:
            loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
