"""Batches cut out of a tensor, without a loader; each rank its own, but one and the same twice."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
x = torch.randn(64, 4)
y = x.sum(1, keepdim=True)
model = DistributedDataParallel(nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(8):
    chosen = torch.arange(step * 8, step * 8 + 8)[rank::world_size]
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x[chosen]), y[chosen]).backward()
    optimizer.step()
dist.destroy_process_group()
