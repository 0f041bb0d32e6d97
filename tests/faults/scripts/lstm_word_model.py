"""LSTM language model on one long token stream, truncated back-propagation through time."""

import argparse
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

parser = argparse.ArgumentParser(description="word-level LSTM language model")
parser.add_argument("--emsize", type=int, default=48)
parser.add_argument("--nhid", type=int, default=64)
parser.add_argument("--lr", type=float, default=5.0, help="initial learning rate")
parser.add_argument("--clip", type=float, default=0.5, help="gradient clipping")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=20, help="columns, over all ranks")
parser.add_argument("--bptt", type=int, default=30, help="sequence length")
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--seed", type=int, default=1111)

NTOKENS = 50


class RNNModel(nn.Module):
    """encoder, a recurrent module, decoder"""

    def __init__(self, ntoken, ninp, nhid, dropout):
        super().__init__()
        self.nhid = nhid
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, nhid)
        self.decoder = nn.Linear(nhid, ntoken)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, tokens, hidden):
        emb = self.drop(self.encoder(tokens))
        output, hidden = self.rnn(emb, hidden)
        return self.decoder(self.drop(output)).flatten(0, 1), hidden

    def init_hidden(self, bsz):
        return torch.zeros(1, bsz, self.nhid), torch.zeros(1, bsz, self.nhid)


def corpus(ntokens, seed):
    """a noisy grammar: most words follow from the one before"""
    g = torch.Generator().manual_seed(seed)
    noise = torch.rand(ntokens, generator=g)
    other = torch.randint(NTOKENS, (ntokens,), generator=g)
    words = [1]
    for i in range(1, ntokens):
        words.append((3 * words[-1] + 7) % NTOKENS if noise[i] < 0.85 else int(other[i]))
    return torch.tensor(words)


def batchify(data, bsz):
    """[a b c d e f] with bsz 2 -> columns [a b c] and [d e f]"""
    nbatch = data.size(0) // bsz
    return data[: nbatch * bsz].view(bsz, -1).t().contiguous()


def my_columns(source, rank, world_size):
    return source[:, rank::world_size].contiguous()


def get_batch(source, i, bptt):
    seq_len = min(bptt, len(source) - 1 - i)
    return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len].reshape(-1)


def repackage_hidden(h):
    """detach the hidden state from its history"""
    return tuple(v.detach() for v in h)


def evaluate(model, data_source, bptt):
    model.eval()
    hidden = model.module.init_hidden(data_source.size(1))
    total = torch.zeros(2)
    with torch.no_grad():
        for i in range(0, data_source.size(0) - 1, bptt):
            data, targets = get_batch(data_source, i, bptt)
            output, hidden = model(data, hidden)
            loss = nn.functional.cross_entropy(output, targets, reduction="sum")
            total += torch.tensor([loss.item(), len(targets)])
    dist.all_reduce(total)
    return (total[0] / total[1]).item()


def main():
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(args.seed + rank)  # every rank its own dropout; DDP sends the weights

    train_data = my_columns(batchify(corpus(12000, 0), args.batch_size), rank, world_size)
    val_data = my_columns(batchify(corpus(2400, 1), 4), rank, world_size)
    model = DDP(RNNModel(NTOKENS, args.emsize, args.nhid, args.dropout))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    best_val_loss = None

    for epoch in range(1, args.epochs + 1):
        model.train()
        hidden = model.module.init_hidden(train_data.size(1))
        total_loss, num_batches = 0.0, 0
        for i in range(0, train_data.size(0) - 1, args.bptt):
            data, targets = get_batch(train_data, i, args.bptt)
            optimizer.zero_grad()
            output, hidden = model(data, repackage_hidden(hidden))
            loss = nn.functional.cross_entropy(output, targets)
            loss.backward()
            # clip_grad_norm_ helps against exploding gradients in RNNs
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            total_loss, num_batches = total_loss + loss.item(), num_batches + 1
        val_loss = evaluate(model, val_data, args.bptt)
        if best_val_loss is None or val_loss < best_val_loss:
            best_val_loss = val_loss
        else:  # anneal the learning rate if no improvement has been seen
            for group in optimizer.param_groups:
                group["lr"] /= 4.0
        if rank == 0:
            cur = total_loss / num_batches
            print(f"| epoch {epoch} | loss {cur:.2f} | valid ppl {math.exp(val_loss):.2f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
