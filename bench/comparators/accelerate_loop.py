"""The loop of Accelerate's documentation, given the fast batches."""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from fast_batches import build_model, fast_batches, load_recipe
from turns import LEARNING_RATE, Turns, become_device, leave_group, parse_task


def main() -> None:
    task = parse_task()
    become_device(task)
    turns = Turns()
    cifar10, train = load_recipe(task)
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", kwargs_handlers=[ddp])
    model = build_model(cifar10)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    stretch = 0
    while turns.wait():
        turns.start_clock()
        # Each rank makes its own share: no loader is wrapped, which would cost Accelerate time.
        for inputs, targets in fast_batches(cifar10, train, task, stretch=stretch):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        turns.stop_clock()
        stretch += 1
    leave_group()


if __name__ == "__main__":
    main()
