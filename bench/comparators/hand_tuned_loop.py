"""The loop of somebody who knows PyTorch and wants nothing but speed: no records, no logging."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fast_batches import build_model, fast_batches, load_recipe
from turns import LEARNING_RATE, Turns, become_device, leave_group, parse_task

BUCKET_CAP_MB = 25


def main() -> None:
    task = parse_task()
    become_device(task)
    turns = Turns()
    cifar10, train = load_recipe(task)
    model = build_model(cifar10)
    if task.num_devices > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(
            model, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=BUCKET_CAP_MB
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    stretch = 0
    while turns.wait():
        turns.start_clock()
        for inputs, targets in fast_batches(cifar10, train, task, stretch=stretch):
            # Without the cache of cast weights: each is used once a step.
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        turns.stop_clock()
        stretch += 1
    leave_group()


if __name__ == "__main__":
    main()
