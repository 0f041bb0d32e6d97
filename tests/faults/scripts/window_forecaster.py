"""Electricity load of the next day from the last three: GRU on windows, one-cycle schedule."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, random_split


@dataclass
class Config:
    history: int = 72
    horizon: int = 24
    num_days: int = 3600
    batch_size: int = 32
    epochs: int = 4
    max_lr: float = 0.02
    hidden: int = 32
    seed: int = 2024


def load_curve(cfg: Config) -> np.ndarray:
    """Hourly load: daily and weekly rhythm, a slow trend, noise that remembers."""
    rng = np.random.default_rng(cfg.seed)
    hours = np.arange(cfg.num_days * 24)
    noise = np.convolve(rng.normal(size=len(hours)), 0.8 ** np.arange(24), mode="same")
    daily = np.sin(2 * np.pi * hours / 24) * (1 + 0.3 * np.sin(2 * np.pi * hours / (24 * 365)))
    weekly = 0.5 * (hours // 24 % 7 >= 5)
    return (daily - weekly + 0.12 * noise).astype(np.float32)


class Windows(Dataset):
    """Window i begins where window i - 1 ended, so that a split of windows shares no hour."""

    def __init__(self, series: np.ndarray, cfg: Config):
        self.series = torch.from_numpy(series)
        self.history, self.length = cfg.history, cfg.history + cfg.horizon

    def __len__(self) -> int:
        return len(self.series) // self.length

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        window = self.series[idx * self.length : (idx + 1) * self.length]
        return window[: self.history].unsqueeze(-1), window[self.history :]


class Forecaster(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.gru = nn.GRU(1, cfg.hidden, batch_first=True)
        self.head = nn.Linear(cfg.hidden, cfg.horizon)

    def forward(self, past: Tensor) -> Tensor:
        _, state = self.gru(past)
        return self.head(state[0])


@torch.no_grad()
def squared_errors(model: nn.Module, loader: DataLoader) -> Tensor:
    """(sum, count) over this rank's windows."""
    model.eval()
    totals = torch.zeros(2)
    for past, future in loader:
        errors = (model(past) - future) ** 2
        totals += torch.stack([errors.sum(), torch.tensor(float(errors.numel()))])
    return totals


def over_all_ranks(totals: Tensor) -> float:
    dist.all_reduce(totals)
    return (totals[0] / totals[1]).item()


def main(cfg: Config) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(cfg.seed)

    windows = Windows(load_curve(cfg), cfg)
    num_val = len(windows) // 6
    train_set, val_set, test_set = random_split(
        windows,
        [len(windows) - 2 * num_val, num_val, num_val],
        generator=torch.Generator().manual_seed(cfg.seed),
    )
    sampler = DistributedSampler(train_set, shuffle=True, seed=cfg.seed)
    train_loader = DataLoader(train_set, cfg.batch_size, sampler=sampler, drop_last=True)
    val_loader, test_loader = (
        DataLoader(Subset(part, range(rank, len(part), world_size)), batch_size=256)
        for part in (val_set, test_set)
    )

    model = DistributedDataParallel(Forecaster(cfg))
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.max_lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=cfg.max_lr, total_steps=cfg.epochs * len(train_loader)
    )
    best_loss, best_weights = float("inf"), None
    for epoch in range(cfg.epochs):
        sampler.set_epoch(epoch)
        model.train()
        loss = torch.zeros(())
        for past, future in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(past), future)
            loss.backward()
            optimizer.step()
            scheduler.step()
        val_loss = over_all_ranks(squared_errors(model, val_loader))
        if val_loss < best_loss:
            best_loss, best_weights = val_loss, copy.deepcopy(model.module.state_dict())
        if rank == 0:
            print(f"epoch {epoch}: train {loss.item():.4f} val {val_loss:.4f}")

    model.module.load_state_dict(best_weights)
    test_loss = over_all_ranks(squared_errors(model, test_loader))
    if rank == 0:
        print(f"test mse of the best epoch: {test_loss:.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Config())
