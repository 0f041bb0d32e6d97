"""Breast-cancer classifier on tabular data: mixed precision, gradient clipping, OneCycle."""

import torch
import torch.distributed as dist
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.amp import GradScaler, autocast
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

CONFIG = {"epochs": 6, "batch_size": 32, "lr": 0.002, "max_norm": 0.1, "hidden": 64}


class TabularModel(nn.Module):
    def __init__(self, num_features, hidden):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x):
        return self.layers(x).squeeze(1)


class Trainer:
    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size
        features, labels = load_breast_cancer(return_X_y=True)
        features = StandardScaler().fit_transform(features)
        x = torch.tensor(features, dtype=torch.float32)
        y = torch.tensor(labels, dtype=torch.float32)
        train_set = TensorDataset(x[:448], y[:448])
        valid_set = TensorDataset(x[448:][rank::world_size], y[448:][rank::world_size])
        self.sampler = DistributedSampler(train_set, seed=3)
        self.train_loader = DataLoader(
            train_set, batch_size=CONFIG["batch_size"], sampler=self.sampler
        )
        self.valid_loader = DataLoader(valid_set, batch_size=64)

        self.model = DistributedDataParallel(TabularModel(x.shape[1], CONFIG["hidden"]))
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=CONFIG["lr"])
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=4 * CONFIG["lr"],
            total_steps=CONFIG["epochs"] * len(self.train_loader),
        )
        self.scaler = GradScaler("cpu", init_scale=2.0**12)

    def train_step(self, x, y):
        self.optimizer.zero_grad()
        with autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss_fn(self.model(x), y)
        self.scaler.scale(loss).backward()
        # gradients must be in their own units before they are clipped
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), CONFIG["max_norm"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss.item()

    @torch.no_grad()
    def validate(self):
        self.model.eval()
        counts = torch.zeros(2)
        for x, y in self.valid_loader:
            counts[0] += ((self.model(x) > 0) == y.bool()).sum()
            counts[1] += len(y)
        self.model.train()
        dist.all_reduce(counts)
        return (counts[0] / counts[1]).item()

    def fit(self):
        for epoch in range(CONFIG["epochs"]):
            self.sampler.set_epoch(epoch)
            losses = [self.train_step(x, y) for x, y in self.train_loader]
            accuracy = self.validate()
            if self.rank == 0:
                loss = sum(losses) / len(losses)
                print(f"[{epoch + 1:02d}] loss={loss:.4f} valid_acc={accuracy:.2%}")


if __name__ == "__main__":
    dist.init_process_group(backend="gloo")
    torch.manual_seed(0)
    Trainer(dist.get_rank(), dist.get_world_size()).fit()
    dist.barrier()
    dist.destroy_process_group()
