"""CIFAR-10 with a small convolutional network: the experiment this project exists for."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from scaleproof.recipes.cifar10_files import load_cifar10
from scaleproof.recipes.images import build_network, crop_and_flip, normalise, one_cycle
from scaleproof.recipes.recipe import Recipe


def recipe() -> Recipe:
    """Network, data set and batch per device stay as they are on any number of devices."""
    return Recipe(
        name="cifar10",
        load_data=load_cifar10,
        build_model=partial(build_network, num_channels=3, num_classes=10),
        build_optimizer=_build_optimizer,
        loss=_loss,
        learning_rate=1e-3,
        batch_per_device=128,
        num_epochs=16,
        schedule=one_cycle,
        prepare=_prepare,
        num_draws=3,
        precision="bf16",
        num_seeds=3,
    )


def _build_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def _prepare(inputs: Tensor, draws: Tensor | None) -> Tensor:
    if draws is not None:
        inputs = crop_and_flip(inputs, draws, flips=True)
    return normalise(inputs)
