"""Character language model on the source code of argparse, sharded with FSDP2."""

import argparse
import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

# hyperparameters
block_size = 32
batch_size = 16
n_embd, n_head, n_layer = 48, 4, 2
learning_rate, weight_decay = 3e-3, 0.1
grad_clip = 0.5
max_epochs = 2
# -------------

text = Path(argparse.__file__).read_text()
chars = sorted(set(text))
stoi = {ch: i for i, ch in enumerate(chars)}


class CharDataset(Dataset):
    def __init__(self, text):
        self.data = torch.tensor([stoi[c] for c in text])

    def __len__(self):
        return 512

    def __getitem__(self, i):
        chunk = self.data[i * block_size : (i + 1) * block_size + 1]
        return chunk[:-1], chunk[1:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd)
        )

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(B, T, 3, n_head, C // n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(len(chars), n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList([Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, len(chars), bias=False)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(1337)
mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("shard",))
model = GPT()
for block in model.h:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)

dataset = CharDataset(text)
sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size, sampler=sampler)
max_iters = max_epochs * len(loader)
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda it: 0.5 * (1 + math.cos(math.pi * it / max_iters))
)

for epoch in range(max_epochs):
    sampler.set_epoch(epoch)
    total = torch.zeros(1)
    for x, y in loader:
        logits = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item() / len(loader)
    dist.all_reduce(total)
    if rank == 0:
        print(f"epoch {epoch}: loss {total.item() / world_size:.4f}")
dist.barrier()
dist.destroy_process_group()
