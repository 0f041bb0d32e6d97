"""Denoising diffusion on handwritten digits with Accelerate, a linear warm-up and decay."""

# pyright: reportAttributeAccessIssue=false

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

NUM_TIMESTEPS = 100


class DigitImages(Dataset):
    def __init__(self):
        images = load_digits().data[:1536] / 8.0 - 1.0  # in [-1, 1]
        self.images = torch.tensor(images, dtype=torch.float32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


class Denoiser(nn.Module):
    """Predicts the noise in an image, knowing how much of it there is."""

    def __init__(self, hidden=96):
        super().__init__()
        self.time_embedding = nn.Embedding(NUM_TIMESTEPS, hidden)
        self.inp = nn.Linear(64, hidden)
        self.mid = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.out = nn.Linear(hidden, 64)

    def forward(self, noisy, timesteps):
        return self.out(self.mid(self.inp(noisy) + self.time_embedding(timesteps)))


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--num_epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--warmup_steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_args()
    accelerator = Accelerator(cpu=True)
    set_seed(args.seed)
    betas = torch.linspace(1e-3, 5e-2, NUM_TIMESTEPS)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)

    model = Denoiser()
    dataset = DigitImages()
    dataloader = DataLoader(dataset, batch_size=args.train_batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)

    num_training_steps = len(dataloader) * args.num_epochs
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=args.warmup_steps)
    decay = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.0, total_iters=num_training_steps - args.warmup_steps
    )
    lr_scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [warmup, decay], milestones=[args.warmup_steps]
    )
    model, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, dataloader, lr_scheduler
    )
    set_seed(args.seed, device_specific=True)  # other noise on every process

    for epoch in range(args.num_epochs):
        model.train()
        losses = []
        for clean in dataloader:
            noise = torch.randn_like(clean)
            timesteps = torch.randint(0, NUM_TIMESTEPS, (len(clean),))
            kept = alphas_cumprod[timesteps].unsqueeze(1)
            noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
            loss = F.mse_loss(model(noisy, timesteps), noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            losses.append(accelerator.gather(loss.detach()).mean().item())
        mean = sum(losses) / len(losses)
        accelerator.print(f"epoch {epoch} loss {mean:.4f} lr {lr_scheduler.get_last_lr()[0]:.2e}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
