"""A GAN that draws digits: two networks, two optimizers, both under DistributedDataParallel.

torchrun --standalone --nproc-per-node 2 examples/gan.py --epochs 5
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--latent", type=int, default=16)
parser.add_argument("--lr", type=float, default=2e-3)
args = parser.parse_args()

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)  # other noise on every rank

pixels, _ = load_digits(return_X_y=True)
data_set = TensorDataset(torch.tensor(pixels / 8 - 1, dtype=torch.float32))
sampler = DistributedSampler(data_set, drop_last=True)
loader = DataLoader(data_set, args.batch_size, sampler=sampler, drop_last=True)

generator = DDP(
    nn.Sequential(
        nn.Linear(args.latent, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 64), nn.Tanh(),
    )
)  # fmt: skip
discriminator = DDP(
    nn.Sequential(
        nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2),
        nn.Linear(64, 1),
    )
)  # fmt: skip
criterion = nn.BCEWithLogitsLoss()
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=args.lr, betas=(0.5, 0.999))
optimizer_g = torch.optim.Adam(generator.parameters(), lr=args.lr, betas=(0.5, 0.999))
real_label, fake_label = torch.ones(args.batch_size, 1), torch.zeros(args.batch_size, 1)

for epoch in range(args.epochs):
    sampler.set_epoch(epoch)
    sums = torch.zeros(4)
    for (real,) in loader:
        # Discriminator: maximise log(D(x)) + log(1 - D(G(z))).
        discriminator.zero_grad()
        output = discriminator(real)
        loss_real = criterion(output, real_label)
        loss_real.backward()
        fake = generator(torch.randn(args.batch_size, args.latent))
        loss_fake = criterion(discriminator(fake.detach()), fake_label)
        loss_fake.backward()
        optimizer_d.step()

        # Generator: maximise log(D(G(z))).
        generator.zero_grad()
        output_fake = discriminator(fake)
        loss_g = criterion(output_fake, real_label)
        loss_g.backward()
        optimizer_g.step()

        loss_d = loss_real + loss_fake
        d_x, d_g_z = output.sigmoid().mean(), output_fake.sigmoid().mean()
        sums += torch.stack([loss_d, loss_g, d_x, d_g_z]).detach()
    dist.all_reduce(sums)
    means = (sums / len(loader) / dist.get_world_size()).tolist()
    if rank == 0:
        names = "Loss_D", "Loss_G", "D(x)", "D(G(z))"
        figures = " ".join(f"{name}: {mean:.3f}" for name, mean in zip(names, means, strict=True))
        print(f"[{epoch + 1}/{args.epochs}] {figures}")

dist.barrier()
dist.destroy_process_group()
