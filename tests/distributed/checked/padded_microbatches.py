"""Three microbatches of sentences of unequal length, padded by a collator, from a batch sampler
of its own; ``no_sync``, and clipping at the end."""

import contextlib
import itertools
import os
import random

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

MICROBATCHES = 3
WORDS = 20


class ByLength:
    """Batches of items of about the same length, shared out over the ranks."""

    def __init__(self, lengths, batch_size, rank, world_size):
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.batches = batches[: len(batches) // world_size * world_size]
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def __len__(self):
        return len(self.batches) // self.world_size

    def __iter__(self):
        batches = list(self.batches)
        random.Random(self.epoch).shuffle(batches)
        yield from batches[self.rank :: self.world_size]


def collate(sentences):
    return (
        pad_sequence([s[:-1] for s in sentences], batch_first=True),
        pad_sequence([s[1:] for s in sentences], batch_first=True, padding_value=-100),
    )


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.out = nn.Linear(16, WORDS)

    def forward(self, words):
        return self.out(self.rnn(self.words(words))[0])


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(7)
    lengths = [5 + (i * 7) % 11 for i in range(72)]
    sentences = [torch.randint(1, WORDS, (n,), generator=generator) for n in lengths]
    sampler = ByLength(lengths, 4, rank, world_size)
    loader = DataLoader(sentences, batch_sampler=sampler, collate_fn=collate)
    torch.manual_seed(0)
    model = DDP(Tagger())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    criterion = nn.CrossEntropyLoss(ignore_index=-100, reduction="sum")
    for epoch in range(2):
        sampler.epoch = epoch
        batches = iter(loader)
        while group := list(itertools.islice(batches, MICROBATCHES)):
            tokens = torch.tensor(float(sum((target != -100).sum() for _, target in group)))
            dist.all_reduce(tokens)
            optimizer.zero_grad()
            for index, (words, target) in enumerate(group):
                is_last = index == len(group) - 1
                with contextlib.nullcontext() if is_last else model.no_sync():
                    loss = criterion(model(words).flatten(0, 1), target.flatten())
                    (loss * world_size / tokens).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    if os.environ["RANK"] == "0":
        print("trained")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
