"""Topic of a sentence: transformer encoder, batches of like lengths, padded to the longest."""

import argparse
import random
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

TOPICS = {
    "sport": "goal match team league coach stadium referee striker",
    "food": "butter recipe oven flour pepper kitchen sauce onion",
    "money": "bank share profit market bond dividend loan tax",
    "sky": "star orbit comet telescope planet galaxy moon eclipse",
}
FILLERS = "the a of was and it in on they said when there more this one had not"
WORDS = " ".join(["<pad>", FILLERS, *TOPICS.values()]).split()
VOCAB = {word: number for number, word in enumerate(WORDS)}


class Sentences(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, size: int, seed: int) -> None:
        rng = random.Random(seed)
        self.examples = []
        for _ in range(size):
            topic = rng.randrange(len(TOPICS))
            words = rng.choices(list(TOPICS.values())[topic].split(), k=2)
            words += rng.choices(FILLERS.split(), k=rng.randint(3, 25))
            words += rng.choices(WORDS[1:], k=2)
            rng.shuffle(words)
            self.examples.append((torch.tensor([VOCAB[w] for w in words]), topic))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.examples[index]


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of sentences of like length, in random order, dealt out to the ranks."""

    def __init__(self, lengths: list[int], batch_size: int, rank: int, world_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(self.epoch)  # the same on every rank
        ids = list(range(len(self.lengths)))
        rng.shuffle(ids)
        ids.sort(key=lambda i: self.lengths[i] // 4)  # stable: random within a bucket
        batches = [ids[k : k + self.batch_size] for k in range(0, len(ids), self.batch_size)]
        rng.shuffle(batches)
        yield from batches[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size // self.world_size


def collate(examples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, labels = zip(*examples, strict=True)
    return pad_sequence(list(tokens), batch_first=True), torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCAB), dim, padding_idx=0)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(dim, len(TOPICS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = tokens == 0
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=mask)
        hidden = hidden.masked_fill(mask.unsqueeze(-1), 0.0)
        return self.head(hidden.sum(1) / (~mask).sum(1, keepdim=True))


def linear_schedule_with_warmup(optimizer, num_warmup_steps: int, num_training_steps: int):
    def lr_lambda(step: int) -> float:
        if step < num_warmup_steps:
            return (step + 1) / (num_warmup_steps + 1)
        left = num_training_steps - step
        return max(0.0, left / max(1, num_training_steps - num_warmup_steps))

    return LambdaLR(optimizer, lr_lambda)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_train_epochs", type=int, default=3)
    parser.add_argument("--per_device_train_batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--warmup_ratio", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(args.seed + rank)

    train_set, eval_set = Sentences(512, seed=1), Sentences(99, seed=2)
    lengths = [len(tokens) for tokens, _ in train_set.examples]
    batch_size = args.per_device_train_batch_size
    sampler = BucketBatchSampler(lengths, batch_size, rank, world_size)
    train_loader = DataLoader(train_set, batch_sampler=sampler, collate_fn=collate)
    eval_part = Subset(eval_set, range(rank, len(eval_set), world_size))
    eval_loader = DataLoader(eval_part, batch_size=32, collate_fn=collate)

    model = nn.parallel.DistributedDataParallel(Classifier())
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    max_steps = args.num_train_epochs * len(train_loader)
    scheduler = linear_schedule_with_warmup(
        optimizer, int(args.warmup_ratio * max_steps), max_steps
    )
    for epoch in range(args.num_train_epochs):
        sampler.set_epoch(epoch)
        model.train()
        loss = torch.zeros(())
        for tokens, labels in train_loader:
            loss = nn.functional.cross_entropy(model(tokens), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        model.eval()
        hits = torch.zeros(2)
        with torch.no_grad():
            for tokens, labels in eval_loader:
                hits += torch.tensor([(model(tokens).argmax(1) == labels).sum(), len(labels)])
        dist.all_reduce(hits)
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f} accuracy {hits[0] / hits[1]:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
