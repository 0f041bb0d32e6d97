"""U-Net with GroupNorm that segments blobs from noise; scored by intersection over union."""

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

log = logging.getLogger("unet")


@dataclass
class Config:
    epochs: int = 3
    batch_size: int = 8
    base_channels: int = 8
    lr: float = 0.2
    num_train: int = 160
    num_val: int = 40
    size: int = 32


class Blobs(Dataset):
    """Discs of random place and size, under noise."""

    def __init__(self, indices, size):
        self.indices, self.size = list(indices), size

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(self.indices[i])
        cx, cy, r = torch.rand(3, generator=g) * self.size / 2 + torch.tensor([8.0, 8.0, 3.0])
        yy, xx = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        mask = ((xx - cx) ** 2 + (yy - cy) ** 2 < r**2).float()[None]
        return mask + 0.5 * torch.randn(mask.shape, generator=g), mask


class DoubleConv(nn.Sequential):
    def __init__(self, c_in, c_out):
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1),
            nn.GroupNorm(4, c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1),
            nn.GroupNorm(4, c_out),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.down1, self.down2 = DoubleConv(1, c), DoubleConv(c, 2 * c)
        self.bottom = DoubleConv(2 * c, 4 * c)
        self.up2, self.up1 = DoubleConv(6 * c, 2 * c), DoubleConv(3 * c, c)
        self.side_head: nn.Module | None = None  # for deep supervision
        self.head = nn.Conv2d(c, 1, 1)

    def forward(self, x):
        x1 = self.down1(x)
        x2 = self.down2(F.max_pool2d(x1, 2))
        x3 = self.bottom(F.max_pool2d(x2, 2))
        y2 = self.up2(torch.cat((x2, F.interpolate(x3, scale_factor=2.0)), dim=1))
        y1 = self.up1(torch.cat((x1, F.interpolate(y2, scale_factor=2.0)), dim=1))
        logits = self.head(y1)
        if self.side_head is not None:
            logits = logits + F.interpolate(self.side_head(y2), scale_factor=2.0)
        return logits


@torch.no_grad()
def evaluate(net, loader):
    net.eval()
    totals = torch.zeros(2)
    for image, mask in loader:
        prediction = net(image) > 0
        totals += torch.stack(((prediction & mask.bool()).sum(), (prediction | mask.bool()).sum()))
    net.train()
    dist.all_reduce(totals)
    return (totals[0] / totals[1]).item()


def main(cfg):
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR)
    mesh = init_device_mesh("cpu", (world_size, 1), mesh_dim_names=("dp", "tp"))

    train_set = Blobs(range(cfg.num_train), cfg.size)
    val_set = Blobs(range(1000 + rank, 1000 + cfg.num_val, world_size), cfg.size)
    sampler = DistributedSampler(train_set, shuffle=True, drop_last=True)
    train_loader = DataLoader(train_set, cfg.batch_size, sampler=sampler)
    val_loader = DataLoader(val_set, cfg.batch_size)

    net = UNet(cfg.base_channels)
    net.side_head = nn.Conv2d(2 * cfg.base_channels, 1, 1)
    model = DistributedDataParallel(net, process_group=mesh["dp"].get_group())
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.lr, momentum=0.9)
    for epoch in range(cfg.epochs):
        sampler.set_epoch(epoch)
        losses = []
        for image, mask in train_loader:
            logits = model(image)
            loss = F.binary_cross_entropy_with_logits(logits, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        iou = evaluate(net, val_loader)
        log.info("epoch %d loss %.4f IoU %.3f", epoch, sum(losses) / len(losses), iou)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Config())
