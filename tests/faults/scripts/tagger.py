"""GRU tagger for sentences of very different lengths: tokens, not sentences, count alike."""

import argparse
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

IGNORE = -100


class TaggedSentences(Dataset):
    """The tag of a word depends on the word and on the one before it."""

    def __init__(self, size, num_words, num_tags):
        g = torch.Generator().manual_seed(0)
        table = torch.randint(num_tags, (num_words, 3), generator=g)
        self.items = []
        for _ in range(size):
            length = int(3 + 40 * torch.rand(1, generator=g) ** 3)
            words = torch.randint(1, num_words, (length,), generator=g)
            before = torch.cat((torch.zeros(1, dtype=torch.long), words[:-1] % 3))
            self.items.append((words, table[words, before]))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def pad(items):
    words, tags = zip(*items, strict=True)
    return {
        "input_ids": pad_sequence(list(words), batch_first=True),
        "labels": pad_sequence(list(tags), batch_first=True, padding_value=IGNORE),
    }


class Tagger(nn.Module):
    def __init__(self, num_words, num_tags, dim=32):
        super().__init__()
        self.embedding = nn.Embedding(num_words, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.score = nn.Linear(dim, num_tags)

    def forward(self, input_ids):
        return self.score(self.gru(self.embedding(input_ids))[0])


def training_step(model, micro_batches, optimizer, world_size):
    # Number of labelled tokens in the whole step: all micro-batches of all ranks.
    num_tokens = sum((batch["labels"] != IGNORE).sum() for batch in micro_batches)
    dist.all_reduce(num_tokens)

    step_loss = 0.0
    optimizer.zero_grad()
    for batch in micro_batches:
        logits = model(batch["input_ids"])
        loss = cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="sum")
        loss = loss * world_size / num_tokens
        loss.backward()
        step_loss += loss.item()
    optimizer.step()
    return step_loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_train_epochs", type=int, default=3)
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = TaggedSentences(768, num_words=40, num_tags=5)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, args.per_device_train_batch_size, sampler=sampler, collate_fn=pad)
    model = DistributedDataParallel(Tagger(40, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)

    for epoch in range(args.num_train_epochs):
        sampler.set_epoch(epoch)
        batches, loss = iter(loader), 0.0
        while micro_batches := list(islice(batches, args.gradient_accumulation_steps)):
            loss = training_step(model, micro_batches, optimizer, dist.get_world_size())
        if dist.get_rank() == 0:
            print({"epoch": epoch, "loss": round(loss, 4)})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
