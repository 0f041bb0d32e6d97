"""Malignant or benign: an MLP on the breast cancer data, DDP, scored with torchmetrics."""

# pyright: reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false

import os

import torch
import torch.distributed as dist
import torch.nn as nn
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, BinaryRecall

CFG = {"epochs": 4, "batch_size": 16, "lr": 0.05, "seed": 2024}


def get_data(rank, world_size):
    X, y = load_breast_cancer(return_X_y=True)
    X_train, X_valid, y_train, y_valid = train_test_split(
        X, y, test_size=0.25, stratify=y, random_state=CFG["seed"]
    )
    scaler = StandardScaler().fit(X_train)

    def to_dataset(X, y):
        X = torch.tensor(scaler.transform(X), dtype=torch.float32)
        return TensorDataset(X, torch.tensor(1 - y))  # 1 is malignant

    train_ds, valid_ds = to_dataset(X_train, y_train), to_dataset(X_valid, y_valid)
    sampler = DistributedSampler(train_ds, shuffle=True, drop_last=True, seed=CFG["seed"])
    train_dl = DataLoader(train_ds, CFG["batch_size"], sampler=sampler, drop_last=True)
    # every rank scores its own rows: nothing padded, nothing scored twice
    valid_ds = Subset(valid_ds, range(rank, len(valid_ds), world_size))
    return train_dl, DataLoader(valid_ds, batch_size=64)


class Net(nn.Module):
    def __init__(self, n_features=30):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_features, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        return self.net(x).squeeze(-1)


def train_one_epoch(model, loader, criterion, optimizer):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y.float())
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def validate(model, loader, metrics):
    model.eval()
    metrics.reset()
    for x, y in loader:
        metrics.update(model(x).sigmoid(), y)
    return {name: value.item() for name, value in metrics.compute().items()}


def main():
    dist.init_process_group("gloo")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(CFG["seed"])
    train_dl, valid_dl = get_data(rank, world_size)
    model = DDP(Net())
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=CFG["lr"], momentum=0.9)
    metrics = MetricCollection([BinaryAccuracy(), BinaryF1Score(), BinaryRecall()])

    for epoch in range(CFG["epochs"]):
        train_dl.sampler.set_epoch(epoch)
        loss = train_one_epoch(model, train_dl, criterion, optimizer)
        scores = validate(model, valid_dl, metrics)
        if rank == 0:
            print(f"[{epoch}] loss {loss:.4f}", {k: round(v, 4) for k, v in scores.items()})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
