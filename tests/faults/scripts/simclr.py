"""SimCLR pre-training of a small encoder; the negatives come from all GPUs."""

import argparse

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class GatherLayer(torch.autograd.Function):
    """Gather tensors from all processes, supporting backward propagation."""

    @staticmethod
    def forward(ctx, x):
        output = [torch.zeros_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(output, x)
        return tuple(output)

    @staticmethod
    def backward(ctx, *grads):
        all_grads = torch.stack(grads)
        dist.all_reduce(all_grads)  # every process has a loss that depends on this x
        return all_grads[dist.get_rank()]


def gather(x):
    return torch.cat(GatherLayer.apply(x), dim=0)


class NTXent(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, z_i, z_j):
        z_i, z_j = gather(z_i), gather(z_j)
        n = len(z_i)
        z = F.normalize(torch.cat((z_i, z_j)), dim=1)
        sim = z @ z.T / self.temperature
        sim = sim.masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e4)
        positives = torch.cat((torch.arange(n, 2 * n), torch.arange(n)))
        return F.cross_entropy(sim, positives)


class TwoViews(Dataset):
    def __init__(self):
        pixels, _ = load_digits(return_X_y=True)
        self.images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 8, 8)

    def __len__(self):
        return 1536

    def view(self, image):
        shift = torch.randint(-1, 2, (2,)).tolist()
        image = image.roll(shift, dims=(0, 1)) + 0.1 * torch.randn(8, 8)
        return image * (0.8 + 0.4 * torch.rand(1))

    def __getitem__(self, i):
        image = self.images[i]
        return self.view(image), self.view(image)


class SimCLR(nn.Module):
    def __init__(self, projection_dim):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU()
        )
        self.projector = nn.Sequential(
            nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, projection_dim, bias=False)
        )

    def forward(self, x_i, x_j):
        return self.projector(self.encoder(x_i)), self.projector(self.encoder(x_j))


def main(args):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(args.seed + rank)

    train_dataset = TwoViews()
    train_sampler = DistributedSampler(train_dataset, shuffle=True)
    train_loader = DataLoader(
        train_dataset, batch_size=args.batch_size, drop_last=True, sampler=train_sampler
    )
    model = DDP(SimCLR(args.projection_dim))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=1e-6)
    criterion = NTXent(args.temperature)

    for epoch in range(args.epochs):
        train_sampler.set_epoch(epoch)
        loss_epoch = 0
        for x_i, x_j in train_loader:
            optimizer.zero_grad()
            z_i, z_j = model(x_i, x_j)
            loss = criterion(z_i, z_j)
            loss.backward()
            optimizer.step()
            loss_epoch += loss.item()
        if rank == 0:
            print(f"Epoch [{epoch}/{args.epochs}]\t Loss: {loss_epoch / len(train_loader)}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SimCLR")
    parser.add_argument("--batch_size", default=48, type=int)
    parser.add_argument("--epochs", default=2, type=int)
    parser.add_argument("--lr", default=2e-3, type=float)
    parser.add_argument("--temperature", default=0.5, type=float)
    parser.add_argument("--projection_dim", default=24, type=int)
    parser.add_argument("--seed", default=42, type=int)
    main(parser.parse_args())
