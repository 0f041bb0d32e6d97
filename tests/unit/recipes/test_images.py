import itertools

import pytest
import torch
from torch import Tensor, nn

from scaleproof.recipes.images import (
    CROP_PADDING,
    IMAGE_SIZE,
    build_network,
    crop_and_flip,
    normalise,
    one_cycle,
)

NUM_OFFSETS = 2 * CROP_PADDING + 1


def random_images(batch: int, num_channels: int = 3) -> Tensor:
    shape = (batch, IMAGE_SIZE, IMAGE_SIZE, num_channels)
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def pad_cut_and_flip(image: Tensor, row: int, column: int, *, flip: bool) -> Tensor:
    """The definition, for one image of shape ``(height, width, num_channels)``."""
    planes = image.permute(2, 0, 1).float()[None]
    padded = nn.functional.pad(planes, (CROP_PADDING,) * 4, mode="reflect")[0]
    cut = padded[:, row : row + IMAGE_SIZE, column : column + IMAGE_SIZE]
    return (cut.flip(2) if flip else cut).permute(1, 2, 0).to(torch.uint8)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_every_crop_and_flip_is_the_padded_image_cut(num_channels: int) -> None:
    cases = list(itertools.product(range(NUM_OFFSETS), range(NUM_OFFSETS), (False, True)))
    images = random_images(len(cases), num_channels)
    draws = torch.tensor(
        [
            ((row + 0.5) / NUM_OFFSETS, (column + 0.5) / NUM_OFFSETS, 0.25 if flip else 0.75)
            for row, column, flip in cases
        ]
    )

    result = crop_and_flip(images, draws, flips=True)

    assert result.dtype == torch.uint8
    for image, cut, (row, column, flip) in zip(images, result, cases, strict=True):
        assert torch.equal(cut, pad_cut_and_flip(image, row, column, flip=flip))


def test_without_flips_two_draws_are_enough_and_nothing_is_flipped() -> None:
    images = random_images(2)
    middle = torch.full((2, 2), 0.5)
    assert torch.equal(crop_and_flip(images, middle, flips=False), images)


def test_extreme_draws_stay_inside_the_image() -> None:
    images = random_images(2)
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    draws = torch.stack([torch.zeros(3), largest.expand(3)])

    result = crop_and_flip(images, draws, flips=True)

    last = NUM_OFFSETS - 1
    assert torch.equal(result[0], pad_cut_and_flip(images[0], 0, 0, flip=True))
    assert torch.equal(result[1], pad_cut_and_flip(images[1], last, last, flip=False))


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    images, draws = random_images(8), torch.rand(8, 3)
    whole = crop_and_flip(images, draws, flips=True)
    halves = [crop_and_flip(images[part::2], draws[part::2], flips=True) for part in range(2)]
    assert torch.equal(whole[0::2], halves[0])
    assert torch.equal(whole[1::2], halves[1])


def test_normalised_images_are_channels_last_floats_of_unit_scale() -> None:
    images = random_images(64)
    result = normalise(images)
    assert result.shape == (64, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert abs(result.mean().item()) < 0.2
    expected = (float(images[5, 2, 3, 1]) - 120.7) / 64.2
    assert result[5, 1, 2, 3].item() == pytest.approx(expected, rel=1e-6)


def test_normalising_leaves_the_data_set_alone() -> None:
    images = random_images(1)
    before = images.clone()
    normalise(images)
    assert torch.equal(images, before)


def test_the_network_is_the_one_the_experiment_names() -> None:
    network = build_network(3, 10)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}
    assert shapes == {
        "conv1.weight": (32, 3, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (512, 4096),
        "fc1.bias": (512,),
        "fc2.weight": (10, 512),
        "fc2.bias": (10,),
    }
    assert [type(layer) for layer in network.children()] == [
        nn.Conv2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.Conv2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.Flatten,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_schedule_rises_once_falls_once_and_ends_near_zero() -> None:
    factors = [one_cycle(step / 1000) for step in range(1000)]
    peak = factors.index(max(factors))
    assert factors[peak] == pytest.approx(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < factors[0] < 0.1
    assert 0 < factors[-1] < 0.01
