"""Fine-tuning with mixed precision: autocast, GradScaler, a frozen stem, two parameter groups.

torchrun --standalone --nproc-per-node 2 examples/amp_scaler.py --epochs 3
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(16 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", choices=["fp16", "bf16"], default="bf16")
    args = parser.parse_args()
    precision = torch.float16 if args.precision == "fp16" else torch.bfloat16

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(42)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    data_set = TensorDataset(images, torch.tensor(digits))
    sampler = DistributedSampler(data_set, shuffle=True, drop_last=True)
    loader = DataLoader(data_set, args.batch_size, sampler=sampler, pin_memory=False)

    net = Model()
    net.stem.requires_grad_(False)  # as if it were pretrained
    model = DDP(net)
    optimizer = torch.optim.SGD(
        [
            {"params": net.body.parameters(), "lr": args.lr / 2},
            {"params": net.head.parameters(), "weight_decay": 0.0},
        ],
        lr=args.lr,
        momentum=0.9,
        weight_decay=1e-4,
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        sums = torch.zeros(3)
        for inputs, targets in loader:
            with torch.autocast("cpu", dtype=precision):
                logits = model(inputs)
                loss = nn.functional.cross_entropy(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            correct = (logits.argmax(1) == targets).sum().item()
            sums += torch.tensor([loss.item() * len(targets), correct, len(targets)])
        dist.all_reduce(sums)
        if rank == 0:
            loss, accuracy, scale = sums[0] / sums[2], sums[1] / sums[2], scaler.get_scale()
            print(f"epoch {epoch}: loss {loss:.3f} accuracy {accuracy:.1%} scale {scale:.0f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
