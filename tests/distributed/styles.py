"""Small trainings in every style that observing must not disturb: ``styles.py STYLE``.

Each rank prints one digest over its losses, its final weights, buffers and optimizer state, and
its random-number generators.
"""

import contextlib
import copy
import hashlib
import io
import os
import random
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

NUM_SAMPLES, NUM_EPOCHS = 44, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(x)))


class Augmented(Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(NUM_SAMPLES, 1, 8, 8, generator=generator)
        self.y = torch.randint(0, 3, (NUM_SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = np.random.rand() + random.random()
        return self.x[index] + torch.rand(1) + noise, self.y[index]


class Stream(IterableDataset):
    def __iter__(self):
        data = Augmented()
        return ((data.x[i], data.y[i]) for i in range(rank(), NUM_SAMPLES, num_ranks()))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def make_loader(num_workers: int = 0) -> DataLoader:
    data = Augmented()
    sampler = DistributedSampler(data, num_ranks(), rank())
    return DataLoader(
        data, 4, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0
    )


def train(model, loader, optimizers, *, step, scheduler=None):
    losses = []
    for epoch in range(NUM_EPOCHS):
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        model.train()
        for x, y in loader:
            losses.append(step(x, y))
        if scheduler is not None:
            scheduler.step()
        model.eval()
        with torch.no_grad():
            losses.append(model(Augmented().x).sum().item())
    finish(model, optimizers, losses)


def finish(model, optimizers, losses) -> None:
    digest = hashlib.sha256(repr(losses).encode())
    tensors = [*model.state_dict().values()]
    tensors += [
        v for o in optimizers for s in o.state.values() for v in s.values() if torch.is_tensor(v)
    ]
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        digest.update(local.detach().contiguous().numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr((np.random.rand(), random.random())).encode())
    print(f"rank {rank()} digest {digest.hexdigest()}", flush=True)


def plain_step(model, optimizer):
    criterion = nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ddp() -> None:
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    step = plain_step(model, optimizer)
    train(model, make_loader(num_workers=2), [optimizer], step=step, scheduler=scheduler)


def data_parallel() -> None:
    model = nn.DataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, make_loader(), [optimizer], step=plain_step(model, optimizer))


def allreduce() -> None:
    torch.manual_seed(3)
    model = Net()
    torch.manual_seed(4 + rank())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= num_ranks()
        optimizer.step()
        return loss.item()

    train(model, make_loader(), [optimizer], step=step)


def accumulation() -> None:
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters())
    count = 0

    def step(x, y):
        nonlocal count
        count += 1
        is_last = count % 2 == 0
        with contextlib.nullcontext() if is_last else model.no_sync():
            loss = nn.functional.cross_entropy(model(x), y) / 2
            loss.backward()
        if is_last:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    train(model, make_loader(), [optimizer], step=step)


def amp() -> None:
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    train(model, make_loader(), [optimizer], step=step)


def fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32)),
        nn.LayerNorm(32),
        nn.Linear(32, 3),
    )
    fully_shard(model[1])
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, make_loader(), [optimizer], step=plain_step(model, optimizer))


def optimizers() -> None:
    net = Net()
    for parameter in net.body[0].parameters():
        parameter.requires_grad_(False)
    model = DistributedDataParallel(net)
    body = torch.optim.SGD(
        [
            {"params": [net.body[1].weight], "lr": 0.01},
            {"params": [net.body[1].bias, *net.body[0].parameters()], "lr": 0.02},
        ]
    )
    head = torch.optim.Adam(net.head.parameters())

    def step(x, y):
        body.zero_grad()
        head.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        body.step()
        head.step()
        return loss.item()

    train(model, make_loader(), [body, head], step=step)


def iterable() -> None:
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = DataLoader(Stream(), batch_size=4)
    train(model, loader, [optimizer], step=plain_step(model, optimizer))


def compiled() -> None:
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    fast = torch.compile(model, backend="aot_eager")
    train(fast, make_loader(), [optimizer], step=plain_step(fast, optimizer))


def closure() -> None:
    torch.manual_seed(3)
    data = Augmented()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=44, shuffle=True)

    def step(x, y):
        def again():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return float(optimizer.step(again))

    train(model, loader, [optimizer], step=step)


def saved() -> None:
    """Whole modules are saved, loaded and copied in the middle of training."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plain = plain_step(model, optimizer)

    def step(x, y):
        loss = plain(x, y)
        copied = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(copied, file)
        torch.save(model, file)
        return loss, hashlib.sha256(file.getvalue()).hexdigest(), copied(x).sum().item()

    train(model, make_loader(), [optimizer], step=step)


SINGLE = ("data_parallel", "closure", "saved")

if __name__ == "__main__":
    style = sys.argv[1]
    if style not in SINGLE:
        dist.init_process_group("gloo")
    seed = 7 + int(os.environ.get("RANK", "0"))
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    globals()[style]()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
