"""A tiny GPT-2 learns to add by the Hugging Face Trainer: accumulation, padded batches."""

import random
import tempfile
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

SYMBOLS = ["<pad>", "<eos>", *"0123456789+="]
TOKEN = {symbol: number for number, symbol in enumerate(SYMBOLS)}


class Sums(Dataset):
    """Sums like "17+25=42<eos>": numbers of two to six digits, so samples of unequal length."""

    def __init__(self, sums):
        self.examples = [[TOKEN[c] for c in f"{a}+{b}={a + b}"] + [TOKEN["<eos>"]] for a, b in sums]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return {"input_ids": self.examples[index]}


def make_sums(count, seed=1):
    """No sum comes twice, so that none is both learned from and tested on."""
    rng, sums = random.Random(seed), set()
    while len(sums) < count:
        end = 10 ** rng.choice([2, 2, 2, 6])
        sums.add((rng.randrange(end // 10, end), rng.randrange(end // 10, end)))
    sums = sorted(sums)
    rng.shuffle(sums)
    return sums


@dataclass
class PadToLongest:
    def __call__(self, features):
        longest = max(len(f["input_ids"]) for f in features)
        ids = torch.full((len(features), longest), TOKEN["<pad>"])
        labels = torch.full((len(features), longest), -100)
        for row, feature in enumerate(features):
            tokens = torch.tensor(feature["input_ids"])
            ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)] = tokens
        mask = (labels != -100).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def main():
    set_seed(0)
    sums = make_sums(640)
    config = GPT2Config(
        vocab_size=len(SYMBOLS),
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=TOKEN["<eos>"],
        eos_token_id=TOKEN["<eos>"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory() as output_dir:
        training_args = TrainingArguments(
            output_dir=output_dir,
            num_train_epochs=2,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            logging_steps=8,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model=model,
            args=training_args,
            train_dataset=Sums(sums[:512]),
            eval_dataset=Sums(sums[512:]),
            data_collator=PadToLongest(),
        )
        trainer.train()
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"eval loss {metrics['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
