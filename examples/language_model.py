"""A small GPT on the bytes of Python's own standard library, in the manner of nanoGPT.

torchrun --standalone --nproc-per-node 2 examples/language_model.py --max-iters 60
"""

import math
import sysconfig
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

parser = ArgumentParser()
parser.add_argument("--max-iters", type=int, default=100)
parser.add_argument("--eval-interval", type=int, default=20)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--gradient-accumulation-steps", type=int, default=4)
parser.add_argument("--block-size", type=int, default=64)
parser.add_argument("--n-embd", type=int, default=64)
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--learning-rate", type=float, default=3e-3)
parser.add_argument("--grad-clip", type=float, default=1.0)
args = parser.parse_args()


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(b, t, 3, self.n_head, c // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        x = x + F.dropout(self.c_proj(y.transpose(1, 2).reshape(b, t, c)), p)
        return x + F.dropout(self.mlp(self.ln_2(x)), p)


class GPT(nn.Module):
    def __init__(self, block_size: int, n_embd: int, n_layer: int, dropout: float) -> None:
        super().__init__()
        self.wte = nn.Embedding(256, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.Sequential(*(Block(n_embd, 4, dropout) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, 256, bias=False)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.lm_head.weight = self.wte.weight  # weight tying

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        logits = self.lm_head(self.ln_f(self.h(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(1337 + rank)
generator = torch.Generator().manual_seed(1337 + rank)

library = Path(sysconfig.get_paths()["stdlib"])
text = b"".join(file.read_bytes() for file in sorted(library.glob("*.py"))[:60])
data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
split = int(0.9 * len(data))
data_of = {"train": data[:split], "val": data[split:]}


def get_batch(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = data_of[part]
    starts = torch.randint(len(data) - args.block_size, (args.batch_size,), generator=generator)
    x = torch.stack([data[i : i + args.block_size] for i in starts.tolist()])
    y = torch.stack([data[i + 1 : i + 1 + args.block_size] for i in starts.tolist()])
    return x, y


def get_lr(iteration: int) -> float:
    warmup = max(1, args.max_iters // 10)
    if iteration < warmup:
        return args.learning_rate * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, args.max_iters - warmup)
    return args.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def estimate_loss() -> float:
    raw_model.eval()
    loss = torch.stack([raw_model(*get_batch("val")) for _ in range(8)]).mean()
    raw_model.train()
    dist.all_reduce(loss)
    return float(loss) / world_size


raw_model = GPT(args.block_size, args.n_embd, n_layer=2, dropout=args.dropout)
model = DDP(raw_model)
num_micro_steps = args.gradient_accumulation_steps
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95))
for iteration in range(args.max_iters):
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iteration)
    train_loss = 0.0
    for micro_step in range(num_micro_steps):
        is_last = micro_step == num_micro_steps - 1
        with nullcontext() if is_last else model.no_sync():
            loss = model(*get_batch("train")) / num_micro_steps
            loss.backward()
        train_loss += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if (iteration + 1) % args.eval_interval == 0:
        val_loss = estimate_loss()
        if rank == 0:
            print(f"step {iteration + 1}: train loss {train_loss:.3f}, val loss {val_loss:.3f}")

dist.barrier()
dist.destroy_process_group()
