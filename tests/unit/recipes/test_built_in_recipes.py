import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scaleproof.recipes import cifar10, digits, fraud
from scaleproof.recipes.images import crop_and_flip, normalise
from scaleproof.recipes.recipe import Data, Recipe, check_data
from scaleproof.verdict.profile import profile_from_dict


def fake_cifar10(data_dir: Path | None) -> Data:
    del data_dir
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = digits.Split(inputs=inputs, targets=torch.arange(16) % 10)
    return Data(train=split, evaluation=split, class_names=tuple("abcdefghij"))


RECIPES = {
    "cifar10": dataclasses.replace(cifar10.recipe(), load_data=fake_cifar10),
    "digits": digits.recipe(),
    "fraud": fraud.recipe(),
    "fraud-weighted": fraud.recipe_weighted(),
}


def draws_for(recipe: Recipe, batch: int) -> Tensor:
    return torch.rand((batch, recipe.num_draws), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str) -> None:
    recipe = RECIPES[name]
    data = recipe.load_data(None)
    check_data(recipe.name, data)
    torch.manual_seed(0)
    model = recipe.build_model()
    optimizer = recipe.build_optimizer(model.parameters(), recipe.learning_rate)
    inputs, targets = data.train.inputs[:16], data.train.targets[:16]
    means: list[float] = []
    for _ in range(8):
        losses = recipe.loss(model(recipe.prepare(inputs, draws_for(recipe, 16))), targets)
        assert losses.shape == (16,)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(losses.mean().item())
    assert means[-1] < means[0]


@pytest.mark.parametrize("name", RECIPES)
def test_the_optimizer_starts_at_the_rate_it_is_given(name: str) -> None:
    recipe = RECIPES[name]
    optimizer = recipe.build_optimizer(recipe.build_model().parameters(), 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]


def test_cifar10_is_the_experiment() -> None:
    recipe = cifar10.recipe()
    assert (recipe.learning_rate, recipe.batch_per_device, recipe.num_epochs) == (1e-3, 128, 16)


def test_images_are_augmented_in_training_only() -> None:
    for name, flips in (("cifar10", True), ("digits", False)):
        recipe = RECIPES[name]
        images = recipe.load_data(None).train.inputs[:8]
        draws = draws_for(recipe, 8)
        assert torch.equal(recipe.prepare(images, None), normalise(images))
        cut = crop_and_flip(images, draws, flips=flips)
        assert torch.equal(recipe.prepare(images, draws), normalise(cut))


def test_digits_are_the_known_ones_split_in_proportion() -> None:
    data = digits.recipe().load_data(None)
    again = digits.recipe().load_data(None)
    assert (len(data.train), len(data.evaluation)) == (1347, 450)
    assert data.train.inputs.shape == (1347, 32, 32, 1)
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert int(data.train.inputs.max()) == 255
    counts = torch.bincount(data.evaluation.targets)
    assert counts.min() >= 43
    assert counts.max() <= 46


def test_no_digit_is_in_both_splits() -> None:
    data = digits.recipe().load_data(None)
    train = {image.numpy().tobytes() for image in data.train.inputs}
    evaluation = {image.numpy().tobytes() for image in data.evaluation.inputs}
    assert not train & evaluation


def test_payments_are_always_the_same_and_one_in_a_hundred_is_a_fraud() -> None:
    data, again = fraud.recipe().load_data(None), fraud.recipe().load_data(None)
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert torch.equal(data.evaluation.targets, again.evaluation.targets)
    assert data.train.targets.float().mean().item() == pytest.approx(0.01, abs=0.001)
    assert not torch.equal(data.train.inputs[: len(data.evaluation)], data.evaluation.inputs)


def test_no_classifier_of_payments_can_be_both_accurate_and_thorough() -> None:
    """The overlap is in the data: the best rule there is, the likelihood ratio, shows it."""
    evaluation = fraud.recipe().load_data(None).evaluation
    is_fraud = evaluation.targets.numpy() == 1
    features = evaluation.inputs.numpy()[:, : fraud.NUM_INFORMATIVE].astype(np.float64)
    deviations = features.sum(axis=1) / np.sqrt(fraud.NUM_INFORMATIVE)
    middle = fraud.CLASS_DISTANCE / 2
    odds_threshold = middle + np.log(99) / fraud.CLASS_DISTANCE

    most_accurate = deviations > odds_threshold
    assert np.mean(most_accurate == is_fraud) > 0.985
    assert np.mean(most_accurate[is_fraud]) < 0.25
    assert np.mean((deviations > middle)[is_fraud]) > 0.8


def test_the_weighted_loss_makes_the_classes_count_alike() -> None:
    outputs = torch.zeros(100, 2)
    targets = (torch.arange(100) == 0).long()
    losses = fraud.recipe_weighted().loss(outputs, targets)
    assert losses[0].item() == pytest.approx(losses[1:].sum().item(), rel=1e-5)
    plain = fraud.recipe().loss(outputs, targets)
    assert plain[0].item() == plain[1].item()


@pytest.mark.parametrize("name", RECIPES)
def test_the_profile_names_checks_and_thresholds_that_exist(name: str) -> None:
    profile_from_dict(RECIPES[name].profile)
