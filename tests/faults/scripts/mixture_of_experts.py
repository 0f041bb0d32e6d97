"""Sparse mixture of experts fitting a patchwork of functions, with a load-balancing loss."""

import argparse

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


class MoE(nn.Module):
    """Top-k routed experts. All are evaluated (it is small); only k of them are used per item."""

    def __init__(self, input_size, output_size, num_experts, hidden_size, k=2):
        super().__init__()
        self.k, self.num_experts = k, num_experts
        self.router = nn.Linear(input_size, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, output_size)
            )
            for _ in range(num_experts)
        )

    def forward(self, x):
        probs = self.router(x).softmax(dim=-1)
        weight, chosen = probs.topk(self.k, dim=-1)
        mask = F.one_hot(chosen, self.num_experts).sum(dim=1)
        gates = probs * mask / weight.sum(dim=-1, keepdim=True)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (gates.unsqueeze(-1) * outputs).sum(dim=1), self.load_balance(probs, mask)

    def load_balance(self, probs, mask):
        # Switch Transformer, eq. 4. The load is that of the global batch: a micro-batch is too
        # small to be balanced in itself.
        load = mask.float().sum(dim=0)
        dist.all_reduce(load)
        load = load / load.sum()
        return self.num_experts * (load * probs.mean(dim=0)).sum()


class Model(nn.Module):
    def __init__(self, width, num_experts):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, width), nn.Tanh())
        self.moe = MoE(width, width, num_experts, 2 * width)
        self.readout = nn.Linear(width, 2)

    def forward(self, x):
        h = self.embed(x)
        out, aux_loss = self.moe(h)
        return self.readout(h + out), aux_loss


def patchwork(size):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(size, 6, generator=g)
    maps = torch.randn(4, 6, 2, generator=g)
    patch = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return x, torch.einsum("nd,ndo->no", x, maps[patch])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--bs", type=int, default=32)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--aux-weight", type=float, default=0.1)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    dataset = TensorDataset(*patchwork(1024))
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, args.bs, sampler=sampler)

    model = DDP(Model(args.width, args.experts))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        epoch_loss, epoch_aux = 0.0, 0.0
        for x, target in loader:
            prediction, aux_loss = model(x)
            task_loss = F.mse_loss(prediction, target)
            loss = task_loss + args.aux_weight * aux_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch_loss += task_loss.item() / len(loader)
            epoch_aux += aux_loss.item() / len(loader)
        if rank == 0:
            print(f"epoch {epoch} task {epoch_loss:.3f} balance {epoch_aux:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
