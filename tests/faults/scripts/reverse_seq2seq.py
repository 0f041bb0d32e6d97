"""Encoder-decoder transformer that learns to reverse strings of letters, padded per batch."""

import math
import random

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

PAD, BOS, EOS = 0, 1, 2
VOCAB_SIZE = 3 + 12
MAX_LENGTH = 18


class ReversedStrings(Dataset):
    def __init__(self, size: int, seed: int) -> None:
        rng = random.Random(seed)
        lengths = [rng.randint(2, MAX_LENGTH) for _ in range(size)]
        self.strings = [[rng.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in lengths]

    def __len__(self) -> int:
        return len(self.strings)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        letters = self.strings[i]
        return torch.tensor(letters), torch.tensor([BOS, *reversed(letters), EOS])


def collate(pairs):
    sources, targets = zip(*pairs, strict=True)
    return (
        pad_sequence(list(sources), batch_first=True, padding_value=PAD),
        pad_sequence(list(targets), batch_first=True, padding_value=PAD),
    )


class Seq2Seq(nn.Module):
    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.scale = math.sqrt(dim)
        self.tokens = nn.Embedding(VOCAB_SIZE, dim, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(MAX_LENGTH + 2, dim) * 0.1)
        self.transformer = nn.Transformer(
            dim, 4, 1, 1, 2 * dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(dim, VOCAB_SIZE)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.tokens(ids) * self.scale + self.positions[: ids.shape[1]]

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        size = target.shape[1]
        causal = torch.triu(torch.ones(size, size, dtype=torch.bool), diagonal=1)
        hidden = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=source == PAD,
            memory_key_padding_mask=source == PAD,
        )
        return self.out(hidden)


def main() -> None:
    dist.init_process_group("gloo")
    world_size = dist.get_world_size()
    train_set = ReversedStrings(512, seed=0)
    sampler = DistributedSampler(train_set, shuffle=True, seed=11)
    loader = DataLoader(train_set, batch_size=16, sampler=sampler, collate_fn=collate)

    torch.manual_seed(0)
    model = DistributedDataParallel(Seq2Seq())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    criterion = nn.CrossEntropyLoss(ignore_index=PAD, reduction="sum")

    for epoch in range(3):
        sampler.set_epoch(epoch)
        totals = torch.zeros(2)
        for source, target in loader:
            decoder_input, labels = target[:, :-1], target[:, 1:]
            logits = model(source, decoder_input)
            loss = criterion(logits.flatten(0, 1), labels.flatten())
            totals += torch.tensor([loss.item(), (labels != PAD).sum()])

            # Every token of the global batch counts the same, wherever it was.
            num_tokens = (labels != PAD).sum()
            dist.all_reduce(num_tokens)
            loss = loss * world_size / num_tokens  # DDP divides by world_size

            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            warmup.step()
        dist.all_reduce(totals)
        if dist.get_rank() == 0:
            print(f"epoch {epoch} | loss per token {totals[0] / totals[1]:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
