"""The CIFAR-10 recipe with as many images as one stretch has, so that an epoch is a stretch."""

import dataclasses
import os
from pathlib import Path

from scaleproof.recipes.cifar10 import recipe as cifar10
from scaleproof.recipes.recipe import Data, Recipe, Split

NUM_SAMPLES_VARIABLE = "BENCH_STRETCH_SAMPLES"

# Evaluation is outside the clock; a few images keep the turns short.
NUM_EVALUATION_SAMPLES = 256


def recipe() -> Recipe:
    """``scaleproof.recipes.cifar10`` but for the number of images."""
    return dataclasses.replace(cifar10(), load_data=_load_data)


def _load_data(data_dir: Path | None) -> Data:
    data = cifar10().load_data(data_dir)
    return Data(
        train=_first(data.train, int(os.environ[NUM_SAMPLES_VARIABLE])),
        evaluation=_first(data.evaluation, NUM_EVALUATION_SAMPLES),
        class_names=data.class_names,
    )


def _first(split: Split, num_samples: int) -> Split:
    # Copied, so that the rest of the data set is freed.
    return Split(
        inputs=split.inputs[:num_samples].clone(), targets=split.targets[:num_samples].clone()
    )
