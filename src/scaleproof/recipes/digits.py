"""scikit-learn's digits, real and without a download, for the network of the CIFAR-10 recipe.

1,797 scanned digits of 8 x 8 pixels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI, 1998), enlarged to 32 x 32 so that an epoch is work enough for two devices to win.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
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
EVALUATION_SHARE = 0.25

# The evaluation split is small, so the margins are wider than the checks' own.
PROFILE = {
    "checks": {
        # 450 images, of which two runs disagree on five or so: over four seeds the interval of
        # the accuracy difference reaches about 1.2 points to either side.
        "accuracy-drop": {"max_drop": 0.02},
        # 44 to 46 images a class: a single one is 2.2 points, and the interval reaches 6 to 10.
        "recall-drop": {"max_drop": 0.12},
    }
}

_SPLIT_SEED = 0
_MAX_INTENSITY = 16  # of the scanned 4 x 4 blocks: how many of their points are black


def recipe() -> Recipe:
    """Under a minute and a half on two cores, for both arms and all seeds."""
    return Recipe(
        name="digits",
        load_data=_load_data,
        build_model=partial(build_network, num_channels=1, num_classes=NUM_CLASSES),
        build_optimizer=_build_optimizer,
        loss=_loss,
        learning_rate=3e-3,
        batch_per_device=128,
        num_epochs=16,
        schedule=one_cycle,
        prepare=_prepare,
        num_draws=2,
        precision="bf16",
        num_seeds=4,
        profile=PROFILE,
    )


def _load_data(data_dir: Path | None) -> Data:  # noqa: ARG001 - the data comes with scikit-learn
    flat_images, digits = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(flat_images, dtype=np.float32)).view(-1, 1, 8, 8)
    # Bilinear: the enlarged strokes keep smooth edges, as a scanner would give them.
    enlarged = nn.functional.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    pixels = (enlarged * (255 / _MAX_INTENSITY)).round().to(torch.uint8)
    inputs = pixels.permute(0, 2, 3, 1).contiguous()
    labels = np.asarray(digits, dtype=np.int64)
    train_ids, evaluation_ids = _split_ids(labels)
    return Data(
        train=_take(inputs, labels, train_ids),
        evaluation=_take(inputs, labels, evaluation_ids),
        class_names=tuple(str(digit) for digit in range(NUM_CLASSES)),
    )


def _take(inputs: Tensor, labels: NDArray[np.int64], ids: NDArray[np.int64]) -> Split:
    return Split(inputs=inputs[torch.from_numpy(ids)], targets=torch.from_numpy(labels[ids]))


def _split_ids(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the training and the evaluation images: fixed, every digit in proportion."""
    train_ids, evaluation_ids = train_test_split(
        np.arange(len(labels)),
        test_size=EVALUATION_SHARE,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return np.asarray(train_ids), np.asarray(evaluation_ids)


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
