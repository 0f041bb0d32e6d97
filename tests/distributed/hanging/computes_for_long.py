"""Sound: one process that computes for seconds between two steps, without showing it."""

import time

import torch
from torch import nn


def main() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        model(torch.ones(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            compute()


def compute() -> None:
    until_s = time.monotonic() + 6
    while time.monotonic() < until_s:
        sum(range(10_000))


main()
