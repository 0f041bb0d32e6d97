"""Digit recogniser in notebook style: a small CNN, four micro-batches per update, no_sync."""

# %% imports
import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


# %% config
class CFG:
    seed = 2024
    epochs = 4
    batch_size = 16
    accum_steps = 4
    lr = 4e-3
    weight_decay = 1e-2


# %% model
def conv_block(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


class DigitNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_block(1, 12), conv_block(12, 24))
        self.classifier = nn.Linear(24 * 4, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


# %% one epoch
def train_one_epoch(model, loader, optimizer):
    model.train()
    running = 0.0
    optimizer.zero_grad()
    for i, (x, y) in enumerate(loader):
        update = (i + 1) % CFG.accum_steps == 0
        # gradients travel only with the last micro-batch of an update
        with contextlib.nullcontext() if update else model.no_sync():
            loss = F.cross_entropy(model(x), y)
            (loss / CFG.accum_steps).backward()
        if update:
            optimizer.step()
            optimizer.zero_grad()
        running += loss.item()
    return running / len(loader)


@torch.no_grad()
def validate(model, loader):
    model.eval()
    hits = torch.zeros(2, dtype=torch.long)
    for x, y in loader:
        hits[0] += (model(x).argmax(1) == y).sum()
        hits[1] += len(y)
    dist.all_reduce(hits)
    return (hits[0] / hits[1]).item()


# %% run
def run():
    dist.init_process_group(backend="gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(CFG.seed)

    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(y)
    tr, va = train_test_split(range(len(y)), test_size=261, random_state=CFG.seed, stratify=y)
    train_ds = TensorDataset(X[tr], y[tr])  # 1536 digits: no odd batch at the end
    valid_ds = TensorDataset(X[va[rank::world]], y[va[rank::world]])

    sampler = DistributedSampler(train_ds, shuffle=True, seed=CFG.seed)
    train_dl = DataLoader(train_ds, CFG.batch_size, sampler=sampler)
    valid_dl = DataLoader(valid_ds, 64)

    model = DDP(DigitNet())
    optimizer = torch.optim.AdamW(model.parameters(), lr=CFG.lr, weight_decay=CFG.weight_decay)
    for epoch in range(CFG.epochs):
        sampler.set_epoch(epoch)
        loss = train_one_epoch(model, train_dl, optimizer)
        acc = validate(model.module, valid_dl)
        if rank == 0:
            print(f"Epoch {epoch + 1}/{CFG.epochs} - loss: {loss:.4f} - val_acc: {acc:.4f}")
    dist.barrier()
    dist.destroy_process_group()


run()
