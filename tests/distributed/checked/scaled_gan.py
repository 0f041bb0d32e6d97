"""Two optimizers, a ``GradScaler`` for each, and noise that the training step draws."""

import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

LATENT = 4

dist.init_process_group("gloo")
torch.manual_seed(0)
generator_net = DDP(nn.Sequential(nn.Linear(LATENT, 16), nn.Tanh(), nn.Linear(16, 2)))
critic = DDP(nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(), nn.Linear(16, 1)))
torch.manual_seed(10 + dist.get_rank())
points = TensorDataset(torch.randn(60, 2, generator=torch.Generator().manual_seed(5)) + 2)
sampler = DistributedSampler(points, drop_last=True)
loader = DataLoader(points, 8, sampler=sampler, drop_last=True)
of_critic = torch.optim.Adam(critic.parameters(), lr=0.01, betas=(0.5, 0.9))
of_generator = torch.optim.Adam(generator_net.parameters(), lr=0.01, betas=(0.5, 0.9))
scalers = {of_critic: GradScaler("cpu"), of_generator: GradScaler("cpu", init_scale=128.0)}


def train(optimizer, loss):
    optimizer.zero_grad()
    scalers[optimizer].scale(loss).backward()
    scalers[optimizer].step(optimizer)
    scalers[optimizer].update()


for epoch in range(3):
    sampler.set_epoch(epoch)
    for (real,) in loader:
        with torch.no_grad():
            fake = generator_net(torch.randn(len(real), LATENT))
        judged = critic(torch.cat([real, fake]))
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        train(of_critic, bce(judged, torch.cat([ones, zeros])))
        critic.requires_grad_(False)
        again = generator_net(torch.randn(len(real), LATENT))
        train(of_generator, bce(critic.module(again), ones))
        critic.requires_grad_(True)
dist.destroy_process_group()
