"""Mixup, with the random numbers of numpy."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
np.random.seed(dist.get_rank())
generator = torch.Generator().manual_seed(4)
data = TensorDataset(
    torch.randn(48, 5, generator=generator), torch.randint(0, 3, (48,), generator=generator)
)
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(5, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(data, batch_size=6, sampler=DistributedSampler(data)):
    share = float(np.random.beta(0.4, 0.4))
    other = torch.from_numpy(np.random.permutation(len(x)))
    logits = model(share * x + (1 - share) * x[other])
    of_one = nn.functional.cross_entropy(logits, y)
    loss = share * of_one + (1 - share) * nn.functional.cross_entropy(logits, y[other])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
dist.destroy_process_group()
