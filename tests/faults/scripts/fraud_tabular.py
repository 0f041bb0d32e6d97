"""Card fraud from tabular features: rare positives, weighted sampling, average precision."""

import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics.classification import BinaryAveragePrecision


class CFG:
    seed = 42
    epochs = 4
    batch_size = 64  # of each process
    lr = 3e-3
    hidden = 64
    test_size = 0.25


def seed_everything(seed):
    os.environ["PYTHONHASHSEED"] = str(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class DistributedSamplerWrapper(DistributedSampler):
    """Splits what another sampler draws: all processes draw the same, each keeps its part."""

    def __init__(self, sampler):
        super().__init__(sampler, shuffle=False)
        self.sampler = sampler

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.sampler.generator.manual_seed(CFG.seed + epoch)

    def __iter__(self):
        drawn = list(self.sampler)
        return iter([drawn[i] for i in super().__iter__()])


class TabularNet(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(num_features, CFG.hidden), nn.LayerNorm(CFG.hidden), nn.SiLU(),
            nn.Linear(CFG.hidden, CFG.hidden), nn.SiLU(),
            nn.Linear(CFG.hidden, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.mlp(x).squeeze(1)


def load_data():
    X, y = make_classification(
        n_samples=2600, n_features=24, n_informative=8, weights=[0.94], class_sep=1.2,
        random_state=CFG.seed,
    )  # fmt: skip
    return np.asarray(X, np.float32), np.asarray(y, np.float32)


def train_fn(model, loader, optimizer, criterion):
    model.train()
    losses = []
    for xb, yb in loader:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.mean(losses)


def valid_fn(model, loader, metric):
    model.eval()
    metric.reset()
    with torch.no_grad():
        for xb, yb in loader:
            metric.update(torch.sigmoid(model(xb)), yb.long())
    return metric.compute().item()


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    seed_everything(CFG.seed)

    X, y = load_data()
    X_train, X_valid, y_train, y_valid = train_test_split(
        X, y, test_size=CFG.test_size, stratify=y, random_state=CFG.seed
    )
    train_ds = TensorDataset(torch.from_numpy(X_train), torch.from_numpy(y_train))
    # every process scores a part of the hold-out; torchmetrics puts the parts together
    mine = slice(rank, None, world_size)
    valid_ds = TensorDataset(torch.from_numpy(X_valid[mine]), torch.from_numpy(y_valid[mine]))

    fraud_rate = np.mean(y_train)
    weights = np.where(y_train == 1, 1 / fraud_rate, 1 / (1 - fraud_rate)).tolist()
    sampler = DistributedSamplerWrapper(
        WeightedRandomSampler(weights, len(train_ds), generator=torch.Generator())
    )
    train_dl = DataLoader(train_ds, batch_size=CFG.batch_size, sampler=sampler, drop_last=True)
    valid_dl = DataLoader(valid_ds, batch_size=256)

    model = DDP(TabularNet(X.shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=CFG.lr, weight_decay=1e-2)
    criterion = nn.BCEWithLogitsLoss()
    metric = BinaryAveragePrecision()
    for epoch in range(CFG.epochs):
        sampler.set_epoch(epoch)
        train_loss = train_fn(model, train_dl, optimizer, criterion)
        score = valid_fn(model, valid_dl, metric)
        if rank == 0:
            print(f"Epoch {epoch + 1} - train loss {train_loss:.4f} - AP {score:.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
