"""The learning rate for N devices: the global batch is N times larger, so how far may a step go?

* ``linear``: N times the rate. For SGD: N small steps along nearly the same gradient are one step
  N times as long (Goyal et al. 2017, arXiv 1706.02677).
* ``sqrt``: sqrt(N) times the rate. For Adam and its kin, whose steps don't grow with the
  gradient: this keeps the noise of the parameters alike (Malladi et al. 2022, arXiv 2205.10287).
* ``none``: the rate as it is.

Both rules hold while the noise of the gradient is large against the gradient; past that batch size
no rate gives the same training. They are a start, not a promise: the quality checks judge.
"""

import math
from typing import Literal

import torch

from scaleproof.errors import UsageError

Rule = Literal["none", "linear", "sqrt"]


def default_rule(optimizer: torch.optim.Optimizer) -> Rule:
    """``linear`` for SGD and what derives from it or is named after it, otherwise ``sqrt``."""
    family = type(optimizer).__mro__
    return "linear" if any("sgd" in cls.__name__.lower() for cls in family) else "sqrt"


def scaled_rate(rule: Rule, base: float, num_devices: int) -> float:
    """The peak rate for ``num_devices``, given the one for a single device."""
    if num_devices < 1:
        raise UsageError(
            f"a learning rate was asked for {num_devices} devices, expected at least 1."
        )
    match rule:
        case "none":
            return base
        case "linear":
            return base * num_devices
        case "sqrt":
            return base * math.sqrt(num_devices)
        case _:
            raise UsageError(
                f"there is no learning rate rule {rule!r}. Expected none, linear or sqrt "
                "(--learning-rate-rule)."
            )


def warmup_factor(progress: float, *, num_epochs: int, warmup_epochs: float, scale: float) -> float:
    """The multiplier on the *scaled* rate: from ``1 / scale`` in a line up to 1.

    A large rate is safe only once the loss has become smooth, so training starts at the rate for
    one device (the gradual warm-up of Goyal et al. 2017). ``progress`` is the share of the
    training's samples already seen, from 0 to 1; ``scale`` is the scaled rate over the base rate.
    With ``scale`` 1 nothing changes: one device warms up only as its own schedule says.
    """
    epochs_done = progress * num_epochs
    if epochs_done >= warmup_epochs:
        return 1.0
    return 1 / scale + (1 - 1 / scale) * epochs_done / warmup_epochs
