"""Augmentation in two workers, BatchNorm, dropout, a schedule by ``len(loader)``, seeds of its own,
a ragged last batch, several epochs."""

import random

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler

EPOCHS = 3


class Blobs(Dataset):
    def __init__(self, num_items, is_training):
        generator = torch.Generator().manual_seed(1 + is_training)
        self.labels = torch.randint(0, 3, (num_items,), generator=generator)
        self.images = torch.randn(num_items, 1, 6, 6, generator=generator)
        self.images += self.labels[:, None, None, None]
        self.is_training = is_training

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.is_training:
            image = image + 0.3 * torch.randn(image.shape)
            if random.random() < 0.5:
                image = image.flip(-1)
            image = image * float(np.random.uniform(0.8, 1.2))
        return image, self.labels[index]


def seed_worker(worker):
    np.random.seed(torch.initial_seed() % 2**32)
    random.seed(torch.initial_seed())


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(100 + rank)
    np.random.seed(100 + rank)
    random.seed(100 + rank)
    training = Blobs(84, is_training=True)
    sampler = DistributedSampler(training, seed=3)
    loader = DataLoader(
        training, batch_size=16, sampler=sampler, num_workers=2, worker_init_fn=seed_worker
    )
    held_out = Blobs(16, is_training=False)
    evaluating = DataLoader(held_out, batch_size=8, sampler=DistributedSampler(held_out))
    body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model = DistributedDataParallel(
        nn.Sequential(body, nn.Dropout(0.3), nn.Linear(64, 3)), broadcast_buffers=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = OneCycleLR(optimizer, max_lr=0.05, total_steps=EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            counts = torch.zeros(2)
            for images, labels in evaluating:
                counts += torch.tensor([(model(images).argmax(1) == labels).sum(), len(labels)])
        dist.all_reduce(counts)
        if rank == 0:
            print(f"epoch {epoch}: accuracy {counts[0] / counts[1]:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
