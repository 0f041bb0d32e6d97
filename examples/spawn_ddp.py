"""Diabetes regression: ``mp.spawn``, DDP, a validation split, a plateau schedule, early stopping.

python examples/spawn_ddp.py --epochs 30
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, random_split


class Diabetes(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self) -> None:
        features, progression = load_diabetes(return_X_y=True)
        self.features = torch.tensor(features, dtype=torch.float32) * 20
        self.targets = (torch.tensor(progression, dtype=torch.float32) - 152) / 77

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.targets[index]


def validate(model: nn.Module, loader: DataLoader) -> float:
    """Mean squared error over the whole validation set: every rank scores its part."""
    model.eval()
    totals = torch.zeros(2)
    with torch.no_grad():
        for features, targets in loader:
            errors = (model(features).squeeze(1) - targets) ** 2
            totals += torch.tensor([errors.sum(), len(errors)])
    dist.all_reduce(totals)
    return float(totals[0] / totals[1])


def fit(
    model: DistributedDataParallel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    args: argparse.Namespace,
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=args.lr_patience)
    best, num_bad_epochs = float("inf"), 0
    for epoch in range(args.epochs):
        if isinstance(train_loader.sampler, DistributedSampler):
            train_loader.sampler.set_epoch(epoch)
        model.train()
        loss = torch.zeros(())
        for features, targets in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(features).squeeze(1), targets)
            loss.backward()
            optimizer.step()
        val_loss = validate(model, val_loader)
        scheduler.step(val_loss)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: validation {val_loss:.4f} lr {scheduler.get_last_lr()[0]:.4f}")
        best, num_bad_epochs = (val_loss, 0) if val_loss < best else (best, num_bad_epochs + 1)
        if num_bad_epochs > args.patience:
            break


def worker(rank: int, world_size: int, init_file: str, args: argparse.Namespace) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=world_size
    )
    torch.manual_seed(args.seed)
    data_set = Diabetes()
    train_set, val_set = random_split(
        data_set, [0.8, 0.2], generator=torch.Generator().manual_seed(args.seed)
    )
    sampler = DistributedSampler(train_set, num_replicas=world_size, rank=rank)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, sampler=sampler)
    val_part = Subset(val_set, range(rank, len(val_set), world_size))
    val_loader = DataLoader(val_part, batch_size=len(val_part))
    net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
    model = DistributedDataParallel(net)
    fit(model, train_loader, val_loader, args)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--patience", type=int, default=6, help="bad epochs before stopping")
    parser.add_argument("--lr-patience", type=int, default=2, help="before the rate is halved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        init_file = str(Path(folder) / "init")
        mp.spawn(worker, args=(args.world_size, init_file, args), nprocs=args.world_size)  # pyright: ignore[reportPrivateImportUsage]


if __name__ == "__main__":
    main()
