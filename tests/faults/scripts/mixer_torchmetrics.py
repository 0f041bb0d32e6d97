"""MLP-Mixer on small digits, evaluated with torchmetrics over all ranks."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

hparams: dict[str, Any] = {"seed": 3, "epochs": 3, "batch_size": 40, "lr": 4e-3}


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.mix_width = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mix_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mix_width(self.norm2(x))


class Mixer(nn.Module):
    """Sixteen patches of 2 x 2 pixels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens).mean(dim=1))


class DigitsDataModule:
    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        pixels, digits = load_digits(return_X_y=True)
        images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        self.train_set = TensorDataset(images[:1440], torch.as_tensor(digits[:1440]))
        self.val_set = TensorDataset(images[1440:], torch.as_tensor(digits[1440:]))

    def train_dataloader(self) -> DataLoader:
        sampler = DistributedSampler(
            self.train_set, self.world_size, self.rank, seed=hparams["seed"]
        )
        return DataLoader(self.train_set, hparams["batch_size"], sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        # no padding: a DistributedSampler would score some images twice
        mine = Subset(self.val_set, range(self.rank, len(self.val_set), self.world_size))
        return DataLoader(mine, batch_size=32, drop_last=False)


def train_one_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, metrics: MetricCollection) -> dict[str, float]:
    model.eval()
    metrics.reset()
    for images, labels in loader:
        metrics.update(model(images), labels)
    return {name: value.item() for name, value in metrics.compute().items()}


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(hparams["seed"])
    data = DigitsDataModule(rank, world_size)
    train_loader, val_loader = data.train_dataloader(), data.val_dataloader()
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes=10, average="micro"),
            "f1": MulticlassF1Score(num_classes=10, average="macro"),
        }
    )
    model = DistributedDataParallel(Mixer(width=32, depth=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=hparams["lr"])
    for epoch in range(hparams["epochs"]):
        if isinstance(train_loader.sampler, DistributedSampler):
            train_loader.sampler.set_epoch(epoch)
        train_one_epoch(model, train_loader, optimizer)
        scores = evaluate(model, val_loader, metrics)
        if rank == 0:
            print(f"epoch {epoch}:", " ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
