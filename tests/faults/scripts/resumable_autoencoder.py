"""Autoencoder of digits with dropout: stops after so many steps, goes on with --resume."""

import argparse
import itertools
import math

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

parser = argparse.ArgumentParser()
parser.add_argument("--max-steps", type=int, default=48, help="in all, resumed ones included")
parser.add_argument("--save-every", type=int, default=25)
parser.add_argument("--checkpoint", help="where to save")
parser.add_argument("--resume", help="checkpoint to go on from")
args = parser.parse_args()
# -----------------------------------------------------------------------------
batch_size = 50  # of each process
learning_rate = 1e-2
weight_decay = 1e-2
dropout = 0.1
seed = 1337
# -----------------------------------------------------------------------------

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
master_process = rank == 0
torch.manual_seed(seed + rank)

images = torch.tensor(load_digits(return_X_y=True)[0][:1600] / 16, dtype=torch.float32)
data = TensorDataset(images)
sampler = DistributedSampler(data, shuffle=True, drop_last=True, seed=seed)
loader = DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=True)


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 10))
        self.decoder = nn.Sequential(nn.Linear(10, 48), nn.GELU(), nn.Linear(48, 64))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.decoder(self.encoder(self.drop(x)))


model = DDP(AutoEncoder())
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.max_steps)
step = 0

if args.resume:
    checkpoint = torch.load(args.resume)
    model.module.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    torch.set_rng_state(checkpoint["rng"][rank])
    step = checkpoint["step"]


def save():
    rng = [None] * world_size
    dist.all_gather_object(rng, torch.get_rng_state())  # every rank has its own
    if not (master_process and args.checkpoint):
        return
    checkpoint = {
        "model": model.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "step": step,
        "rng": rng,
    }
    torch.save(checkpoint, args.checkpoint)


loss = torch.zeros(())
epoch, steps_done_in_epoch = divmod(step, len(loader))
while step < args.max_steps:
    sampler.set_epoch(epoch)
    for (x,) in itertools.islice(loader, steps_done_in_epoch, None):
        loss = F.mse_loss(model(x), x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        step += 1
        if step % args.save_every == 0:
            save()
        if step == args.max_steps:
            break
    steps_done_in_epoch = 0
    mean = loss.detach()
    dist.all_reduce(mean)
    if master_process:
        psnr = -10 * math.log10(mean.item() / world_size)
        print(f"epoch {epoch} step {step}: loss {mean.item() / world_size:.4f} psnr {psnr:.1f}")
    epoch += 1

dist.barrier()
dist.destroy_process_group()
