"""Mean teacher: a student learns from few labels and from the average of its own past."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

EPOCHS = 4
BATCH_SIZE = 48
LABELED_FRACTION = 4  # one in four digits has a label
EMA_DECAY = 0.95
CONSISTENCY = 2.0


class SemiSupervised(Dataset):
    """Two noisy views of a digit; the label is -1 for most of them."""

    def __init__(self, images, labels):
        self.images = torch.as_tensor(images / 16, dtype=torch.float32)
        self.labels = torch.as_tensor(labels)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i]
        views = [image + 0.15 * torch.randn_like(image) for _ in range(2)]
        label = self.labels[i] if i % LABELED_FRACTION == 0 else torch.tensor(-1)
        return views[0], views[1], label


def build_net():
    return nn.Sequential(
        nn.Linear(64, 96),
        nn.LayerNorm(96),
        nn.ReLU(),
        nn.Linear(96, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@torch.no_grad()
def update_ema(teacher, student, decay):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.mul_(decay).add_(s, alpha=1 - decay)


@torch.no_grad()
def accuracy(net, images, labels):
    counts = torch.tensor([(net(images).argmax(1) == labels).sum(), len(labels)])
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)  # other noise on every rank

    images, labels = load_digits(return_X_y=True)
    train_set = SemiSupervised(images[:1440], labels[:1440])
    test_images = torch.tensor(images[1440:][rank::world_size] / 16, dtype=torch.float32)
    test_labels = torch.tensor(labels[1440:][rank::world_size])
    sampler = DistributedSampler(train_set)
    loader = DataLoader(train_set, BATCH_SIZE, sampler=sampler, drop_last=True)

    student = DDP(build_net())
    # The teacher starts as the student, after DDP has sent rank 0's weights to all.
    teacher = copy.deepcopy(student.module).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        total = 0.0
        for step, (view_a, view_b, label) in enumerate(loader):
            logits = student(view_a)
            with torch.no_grad():
                targets = teacher(view_b).softmax(dim=1)
            # -1 counts as nothing; divided by the whole batch, so that ranks weigh the same
            supervised = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
            consistency = F.mse_loss(logits.softmax(dim=1), targets)
            ramp = min(1.0, (epoch * len(loader) + step) / 20)
            loss = LABELED_FRACTION * supervised / len(label) + ramp * CONSISTENCY * consistency
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_ema(teacher, student.module, EMA_DECAY)
            total += loss.item()
        scores = [accuracy(net, test_images, test_labels) for net in (student.module, teacher)]
        if rank == 0:
            loss = total / len(loader)
            print(f"epoch {epoch} loss {loss:.3f} student {scores[0]:.3f} ema {scores[1]:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
