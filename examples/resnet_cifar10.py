"""A small ResNet on CIFAR-10 with the usual tricks: crops and flips in the workers, momentum,
cosine schedule, label smoothing, BatchNorm statistics averaged before every evaluation.

torchrun --standalone --nproc-per-node 2 examples/resnet_cifar10.py --data-dir cifar-10-batches-bin

Reads the binary version; without ``--data-dir`` it makes up ten kinds of striped images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


def read_cifar10(files: list[Path], limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    records = torch.from_numpy(records[:limit])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def make_stripes(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (size,), generator=generator)
    waves = torch.sin(torch.arange(32) * (labels[:, None] + 1) / 4)
    images = waves[:, None, :, None].expand(-1, 3, 32, 32) * 60 + 128
    noise = torch.randn(images.shape, generator=generator) * 30
    return (images + noise).clamp(0, 255).to(torch.uint8), labels


class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, images: torch.Tensor, labels: torch.Tensor, augment: bool) -> None:
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index].float() / 255
        if self.augment:
            if torch.rand(()) < 0.5:
                image = image.flip(2)
            top, left = torch.randint(0, 9, (2,)).tolist()
            image = nn.functional.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        return (image - 0.47) / 0.25, self.labels[index]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


def build_resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    blocks = [Block(8, 16, 2), Block(16, 32, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def average_batch_norm(model: nn.Module) -> None:
    """Every rank has seen other images: evaluate with the mean of their running statistics."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    counts = torch.zeros(2)
    for images, labels in loader:
        counts += torch.tensor([(model(images).argmax(1) == labels).sum(), len(labels)])
    dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--train-size", type=int, default=1536, help="images to train with")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(args.seed + rank)

    if args.data_dir:
        files = [args.data_dir / f"data_batch_{number}.bin" for number in range(1, 6)]
        train_images, train_labels = read_cifar10(files, args.train_size)
        test_images, test_labels = read_cifar10([args.data_dir / "test_batch.bin"], 10_000)
    else:
        train_images, train_labels = make_stripes(args.train_size, seed=1)
        test_images, test_labels = make_stripes(400, seed=2)
    train_set = Images(train_images, train_labels, augment=True)
    test_set = Images(test_images[rank::world_size], test_labels[rank::world_size], augment=False)
    sampler = DistributedSampler(train_set, drop_last=True)
    train_loader = DataLoader(
        train_set, args.batch_size, sampler=sampler, num_workers=2, persistent_workers=True
    )
    test_loader = DataLoader(test_set, batch_size=200)

    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    model = DistributedDataParallel(build_resnet().to(device))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        losses = []
        for images, labels in train_loader:
            loss = criterion(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
        average_batch_norm(model.module)
        accuracy = evaluate(model.module, test_loader)
        if rank == 0:
            print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f} accuracy {accuracy:.1%}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
