"""Sharded training with FSDP2: ``fully_shard`` on every block, then on the whole model.

torchrun --standalone --nproc-per-node 2 examples/fsdp2.py --epochs 3
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


class Classifier(nn.Module):
    """Tells from the tokens which of ten hidden tables of token frequencies made them."""

    def __init__(self, num_tokens: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        layer = nn.TransformerEncoderLayer
        self.layers = nn.ModuleList(
            [
                layer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(num_layers)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))


def make_data(size: int, length: int, num_tokens: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    tables = torch.rand(10, num_tokens, generator=generator) ** 4
    labels = torch.randint(10, (size,), generator=generator)
    tokens = torch.multinomial(tables[labels], length, replacement=True, generator=generator)
    return TensorDataset(tokens, labels)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    data_set = make_data(1024, length=32, num_tokens=64)
    sampler = DistributedSampler(data_set, seed=0)
    loader = DataLoader(data_set, batch_size=args.batch_size, sampler=sampler)

    torch.manual_seed(0)  # the same weights everywhere before they are sharded
    mesh = init_device_mesh("cpu", (world_size,))
    model = Classifier(64, args.width, args.layers)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        totals = torch.zeros(3)
        for tokens, labels in loader:
            logits = model(tokens)
            loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            correct = (logits.argmax(dim=1) == labels).sum().item()
            totals += torch.tensor([loss.item() * len(labels), correct, len(labels)])
        dist.all_reduce(totals)
        if rank == 0:
            loss, accuracy = totals[0] / totals[2], totals[1] / totals[2]
            print(f"epoch {epoch}: loss {loss:.3f} accuracy {accuracy:.1%}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
