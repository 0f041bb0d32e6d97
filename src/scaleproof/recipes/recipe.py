"""What a recipe is: what to train, with no device, no rank and no parallelism in it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from scaleproof.errors import UsageError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Samples, held in memory. The sample id is the row number.

    ``inputs`` has shape ``(num_samples, ...)`` and any dtype (images as uint8: they live on the
    device like that); ``targets`` has shape ``(num_samples,)`` and holds class numbers, int64.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is trained on and what is judged on."""

    train: Split
    evaluation: Split
    class_names: tuple[str, ...]


def constant(progress: float) -> float:  # noqa: ARG001 - a schedule takes the progress
    """The schedule of a learning rate that stays as it is."""
    return 1.0


def as_float(inputs: Tensor, draws: Tensor | None) -> Tensor:  # noqa: ARG001 - see Recipe.prepare
    """The preparation of inputs that need none."""
    return inputs.float()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training, written for one device. Every arm of a comparison uses it unchanged.

    * ``load_data(data_dir)`` gets the user's ``--data-dir`` or None, and reads or downloads.
    * ``build_model()`` gives the model on the CPU. It is called after seeding.
    * ``build_optimizer(parameters, learning_rate)`` gives the optimizer; its learning rates are
      then driven by ``schedule``, group by group, in proportion.
    * ``loss(outputs, targets)`` gives one loss *per sample*, shape ``(batch,)``. Averaging over
      samples, ranks and devices is not the recipe's business.
    * ``learning_rate`` is the peak rate for one device; for N devices it is scaled by
      ``--learning-rate-rule``.
    * ``schedule(progress)`` multiplies it; ``progress`` is the share of the training's samples
      already seen, from 0 to below 1.
    * ``prepare(inputs, draws)`` runs on the device and gives what the model takes. In training,
      ``draws`` has shape ``(batch, num_draws)``: uniform numbers in [0, 1) that belong to
      (seed, epoch, sample), so that a sample is augmented alike however many devices there are.
      In evaluation it is None.
    * ``precision``: ``bf16`` means autocast where the hardware has it, otherwise ``fp32``.
    * ``num_seeds`` and ``profile`` are what ``compare`` uses unless told otherwise.
    """

    name: str
    load_data: Callable[[Path | None], Data]
    build_model: Callable[[], nn.Module]
    build_optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor]
    learning_rate: float
    batch_per_device: int
    num_epochs: int
    schedule: Callable[[float], float] = constant
    prepare: Callable[[Tensor, Tensor | None], Tensor] = as_float
    num_draws: int = 0
    precision: Literal["bf16", "fp32"] = "fp32"
    num_seeds: int = 1
    profile: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("batch_per_device", "num_epochs", "num_seeds"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"recipe {self.name!r}: {name} is {getattr(self, name)}, expected at least 1. "
                    "Change it in the recipe."
                )
        if not self.learning_rate > 0:
            raise UsageError(
                f"recipe {self.name!r}: learning_rate is {self.learning_rate}, expected a "
                "positive number. Change it in the recipe."
            )


def check_data(recipe_name: str, data: Data) -> None:
    """Raise ``UsageError`` when ``load_data`` returned something the loop can't train on."""
    for name, split in (("train", data.train), ("evaluation", data.evaluation)):
        if len(split.inputs) != len(split.targets) or len(split) == 0:
            raise UsageError(
                f"recipe {recipe_name!r}: the {name} split has {len(split.inputs)} inputs and "
                f"{len(split.targets)} targets, expected the same number, at least 1. "
                "Mend the recipe's load_data."
            )
        if split.targets.dtype != torch.int64 or split.targets.ndim != 1:
            raise UsageError(
                f"recipe {recipe_name!r}: the {name} targets have dtype {split.targets.dtype} and "
                f"shape {tuple(split.targets.shape)}, expected int64 class numbers of shape "
                "(num_samples,). Mend the recipe's load_data."
            )
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= len(data.class_names):
            raise UsageError(
                f"recipe {recipe_name!r}: the {name} targets range from {low} to {high}, expected "
                f"0 to {len(data.class_names) - 1}: there are {len(data.class_names)} class "
                "names. Mend the recipe's load_data."
            )
