"""FSDP2 with dropout in attention, clipping, and an epoch that ends with fewer items."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
model = nn.Sequential(nn.Linear(3, 8), layer, nn.Flatten(), nn.Linear(32, 2))
for part in (model[1], model):
    fully_shard(part, mesh=mesh)
torch.manual_seed(dist.get_rank())
generator = torch.Generator().manual_seed(2)
data = TensorDataset(
    torch.randn(40, 4, 3, generator=generator), torch.randint(0, 2, (40,), generator=generator)
)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=6, sampler=sampler)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
dist.destroy_process_group()
