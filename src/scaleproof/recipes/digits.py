"""scikit-learn's digits, real and without a download, for the network of the CIFAR-10 recipe.

1,797 scanned digits of 8 x 8 pixels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI, 1998), enlarged to 32 x 32 so that an epoch is work enough for two devices to win.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scaleproof.recipes.images import (
    IMAGE_SIZE,
    build_network,
    crop_and_flip,
    normalise,
    one_cycle,
)
from scaleproof.recipes.recipe import Data, Recipe, Split

NUM_CLASSES = 10
EVALUATION_SHARE = 0.2
_SPLIT_SEED = 0
_MAX_INTENSITY = 16


def recipe() -> Recipe:
    return Recipe(
        name="digits",
        load_data=_load_data,
        build_model=partial(build_network, num_channels=1, num_classes=NUM_CLASSES),
        build_optimizer=_build_optimizer,
        loss=_loss,
        learning_rate=1e-3,
        batch_per_device=128,
        num_epochs=14,
        schedule=one_cycle,
        prepare=_prepare,
        num_draws=2,
        precision="bf16",
        num_seeds=4,
    )


def _load_data(data_dir: Path | None) -> Data:  # noqa: ARG001 - the data comes with scikit-learn
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / _MAX_INTENSITY))
    # Bilinear: the enlarged strokes keep smooth edges, as a scanner would give them.
    inputs = (
        nn.functional.interpolate(
            images[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
        )
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .contiguous()
    )
    targets = torch.from_numpy(digits.target.astype(np.int64))
    train_ids, evaluation_ids = _stratified_split(digits.target)
    return Data(
        train=Split(inputs=inputs[train_ids], targets=targets[train_ids]),
        evaluation=Split(inputs=inputs[evaluation_ids], targets=targets[evaluation_ids]),
        class_names=tuple(str(digit) for digit in range(NUM_CLASSES)),
    )


def _stratified_split(labels):
    from sklearn.model_selection import train_test_split

    return train_test_split(np.arange(len(labels)),test_size=EVALUATION_SHARE,stratify=labels,random_state=_SPLIT_SEED)


def _build_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def _prepare(inputs: Tensor, draws: Tensor | None) -> Tensor:
    if draws is not None:
        inputs = crop_and_flip(inputs, draws, flips=False)
    return normalise(inputs)
