"""Which of four topics is a short text about: Accelerate, gradient accumulation, clipping.

accelerate launch --cpu --num_processes 2 accelerate_topics.py
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import random

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

VOCAB_SIZE, NUM_TOPICS, PAD = 200, 4, 0
EPOCHS, BATCH_SIZE, ACCUMULATE = 3, 16, 2


def make_texts(count, seed):
    """Each topic has favourite words; half of the words of a text are among them."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        topic = rng.randrange(NUM_TOPICS)
        favourite = range(1 + topic * 40, 41 + topic * 40)
        length = rng.randint(6, 24)
        words = [
            rng.choice(favourite) if rng.random() < 0.5 else rng.randrange(1, VOCAB_SIZE)
            for _ in range(length)
        ]
        texts.append({"words": words, "topic": topic})
    return texts


def collate(texts):
    words = pad_sequence([torch.tensor(text["words"]) for text in texts], True, PAD)
    return {"words": words, "topics": torch.tensor([text["topic"] for text in texts])}


class TopicModel(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, dim, padding_idx=PAD)
        self.dropout = nn.Dropout(0.1)
        self.score = nn.Linear(dim, 1)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, NUM_TOPICS))

    def forward(self, words):
        x = self.dropout(self.embedding(words))
        scores = self.score(x).masked_fill((words == PAD).unsqueeze(-1), float("-inf"))
        return self.head((scores.softmax(dim=1) * x).sum(dim=1))


def main():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    set_seed(42)
    train_loader = DataLoader(make_texts(768, 0), BATCH_SIZE, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(make_texts(201, 1), batch_size=50, collate_fn=collate)
    model = TopicModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # a prepared scheduler steps once per process, so count the batches before prepare()
    max_steps = EPOCHS * len(train_loader) // ACCUMULATE
    scheduler = CosineAnnealingLR(optimizer, T_max=max_steps)
    model, optimizer, scheduler, train_loader, test_loader = accelerator.prepare(
        model, optimizer, scheduler, train_loader, test_loader
    )
    set_seed(42, device_specific=True)  # every process its own dropout masks

    for epoch in range(EPOCHS):
        model.train()
        total = torch.zeros((), device=accelerator.device)
        for batch in train_loader:
            with accelerator.accumulate(model):
                logits = model(batch["words"])
                loss = nn.functional.cross_entropy(logits, batch["topics"])
                total += loss.detach()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

        model.eval()
        correct = seen = 0
        for batch in test_loader:
            with torch.no_grad():
                predictions = model(batch["words"]).argmax(dim=-1)
            predictions, topics = accelerator.gather_for_metrics((predictions, batch["topics"]))
            correct += (predictions == topics).sum().item()
            seen += len(topics)
        loss = accelerator.reduce(total, "mean").item() / len(train_loader)
        accelerator.print(f"epoch {epoch}: train loss {loss:.4f}, accuracy {correct / seen:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
