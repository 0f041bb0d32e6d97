"""Siamese network: are two handwritten digits the same one? Contrastive loss on random pairs."""

import argparse
import os
import random

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchmetrics.classification import BinaryAccuracy


class PairDataset(Dataset):
    """Item i is image i with a partner: of the same class half of the time."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.by_class = {c: torch.where(labels == c)[0].tolist() for c in range(10)}

    def __len__(self):
        return len(self.images)

    def partner(self, label, rng):
        same = rng.random() < 0.5
        other = label if same else rng.choice([c for c in range(10) if c != label])
        return rng.choice(self.by_class[other]), same

    def __getitem__(self, i):
        j, same = self.partner(int(self.labels[i]), random)
        return self.images[i], self.images[j], torch.tensor(float(same))


class FixedPairs(PairDataset):
    """The same pairs every time, for verification."""

    def __init__(self, images, labels):
        super().__init__(images, labels)
        rng = random.Random(0)
        self.pairs = [self.partner(int(label), rng) for label in labels]

    def __getitem__(self, i):
        j, same = self.pairs[i]
        return self.images[i], self.images[j], torch.tensor(float(same))


class SiameseNet(nn.Module):
    def __init__(self, dim=24):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 16, dim),
        )  # fmt: skip

    def forward(self, x1, x2):
        return F.pairwise_distance(self.features(x1), self.features(x2))


def contrastive_loss(distance, same, margin=2.0):
    positive = same * distance.pow(2)
    negative = (1 - same) * F.relu(margin - distance).pow(2)
    return (positive + negative).mean()


class Trainer:
    def __init__(self, opt):
        self.opt = opt
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        labels = torch.tensor(digits)
        train_set = PairDataset(images[:1400], labels[:1400])
        test_set = FixedPairs(images[1400:], labels[1400:])
        self.sampler = DistributedSampler(train_set, shuffle=True)
        self.train_loader = DataLoader(train_set, opt.batch_size, sampler=self.sampler)
        mine = Subset(test_set, list(range(self.rank, len(test_set), self.world_size)))
        self.test_loader = DataLoader(mine, batch_size=100)
        self.net = DistributedDataParallel(SiameseNet())
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=opt.lr)
        self.accuracy = BinaryAccuracy()

    def train_epoch(self, epoch):
        self.net.train()
        self.sampler.set_epoch(epoch)
        loss = torch.zeros(())
        for x1, x2, same in self.train_loader:
            loss = contrastive_loss(self.net(x1, x2), same)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def verify(self):
        self.net.eval()
        self.accuracy.reset()
        for x1, x2, same in self.test_loader:
            is_close = (self.net(x1, x2) < 1.0).float()
            self.accuracy.update(is_close, same)
        return self.accuracy.compute().item()

    def run(self):
        for epoch in range(self.opt.epochs):
            loss = self.train_epoch(epoch)
            accuracy = self.verify()
            if self.rank == 0:
                print(f"[{epoch}/{self.opt.epochs}] loss: {loss:.4f} verification: {accuracy:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--manualSeed", type=int, default=7)
    opt = parser.parse_args()

    dist.init_process_group(backend="gloo")
    random.seed(opt.manualSeed + int(os.environ["RANK"]))  # pairs of its own for every rank
    torch.manual_seed(opt.manualSeed)
    Trainer(opt).run()
    dist.barrier()
    dist.destroy_process_group()
