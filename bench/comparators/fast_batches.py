"""Ready batches at the recipe's own speed: what every loop but the tutorial's is given.

The data set is resident as uint8; a batch is gathered, cut, flipped and normalised at once, in
channels-last memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scaleproof.recipes.cifar10 import recipe
from scaleproof.recipes.recipe import Recipe, Split
from turns import BATCH_PER_DEVICE, Task


def load_recipe(task: Task) -> tuple[Recipe, Split]:
    """The recipe, and its training images."""
    cifar10 = recipe()
    assert cifar10.batch_per_device == BATCH_PER_DEVICE
    return cifar10, cifar10.load_data(task.data_dir).train


def build_model(cifar10: Recipe) -> nn.Module:
    """The recipe's network with weights laid out for the batches."""
    torch.manual_seed(0)
    return cifar10.build_model().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def fast_batches(
    cifar10: Recipe, train: Split, task: Task, *, stretch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's batches of one stretch: inputs ``(128, 3, 32, 32)`` and targets ``(128,)``."""
    generator = torch.Generator().manual_seed(stretch)
    order = torch.randperm(len(train), generator=generator)[: task.num_stretch_samples]
    mine = order[task.rank :: task.num_devices]
    draws = torch.rand((len(mine), cifar10.num_draws), generator=generator)
    for ids, batch_draws in zip(
        mine.split(BATCH_PER_DEVICE), draws.split(BATCH_PER_DEVICE), strict=True
    ):
        inputs = cifar10.prepare(train.inputs.index_select(0, ids), batch_draws)
        yield inputs, train.targets.index_select(0, ids)
