"""Low-rank adapters on a frozen text encoder, gradients averaged with plain torch.distributed."""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

RANK_R = 4
LORA_ALPHA = 8
VOCAB, SEQ_LEN, NUM_LABELS = 80, 24, 6


class LoRALinear(nn.Module):
    """y = W x + (alpha / r) B A x, where only A and B learn."""

    def __init__(self, base: nn.Linear, r: int, alpha: int):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(r, base.in_features) / r)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))
        self.scaling = alpha / r

    def forward(self, x):
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scaling


class Layer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc_in = nn.Linear(dim, 2 * dim)
        self.fc_out = nn.Linear(2 * dim, dim)

    def forward(self, x):
        return x + self.fc_out(F.gelu(self.fc_in(self.norm(x))))


class TextClassifier(nn.Module):
    def __init__(self, dim=48, num_layers=2):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, dim)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(num_layers))
        self.classifier = nn.Linear(dim, NUM_LABELS)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(dim=1))


def add_adapters(model):
    model.requires_grad_(False)
    for layer in model.layers:
        layer.fc_in = LoRALinear(layer.fc_in, RANK_R, LORA_ALPHA)
        layer.fc_out = LoRALinear(layer.fc_out, RANK_R, LORA_ALPHA)
    model.classifier.requires_grad_(True)
    return model


def sync_initial_weights(model):
    for p in model.parameters():
        dist.broadcast(p.data, src=0)


def average_gradients(params, world_size):
    handles = [dist.all_reduce(p.grad, op=dist.ReduceOp.SUM, async_op=True) for p in params]
    for p, handle in zip(params, handles, strict=True):
        handle.wait()  # type: ignore[union-attr]
        p.grad /= world_size


def make_texts(n):
    g = torch.Generator().manual_seed(7)
    topics = torch.rand(NUM_LABELS, VOCAB, generator=g) ** 2
    labels = torch.randint(NUM_LABELS, (n,), generator=g)
    return TensorDataset(torch.multinomial(topics[labels], SEQ_LEN, True, generator=g), labels)


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    dataset = make_texts(768)
    sampler = DistributedSampler(dataset, num_replicas=world_size, rank=rank, shuffle=True)
    loader = DataLoader(dataset, batch_size=32, sampler=sampler)

    model = add_adapters(TextClassifier())
    sync_initial_weights(model)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0)
    if rank == 0:
        total = sum(p.numel() for p in model.parameters())
        print(f"trainable params: {sum(p.numel() for p in params):,} || all params: {total:,}")

    for epoch in range(4):
        sampler.set_epoch(epoch)
        losses = []
        for tokens, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(tokens), labels)
            loss.backward()
            average_gradients(params, world_size)
            torch.nn.utils.clip_grad_norm_(params, max_norm=0.3)
            optimizer.step()
            losses.append(loss.item())
        if rank == 0:
            print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
