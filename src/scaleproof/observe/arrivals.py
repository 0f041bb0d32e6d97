"""How much each call of a loss function counts in what backward was called on.

Torch's loss functions are replaced by themselves with a hook on what they return: what arrives
there in backward is the factor between the loss function and the number that backward began at.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast, final

import torch
import torch.nn.functional as functional
from torch import Tensor

from scaleproof.evidence.close_ups import LossArrival
from scaleproof.observe import current

LOSS_FUNCTIONS = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "kl_div",
    "gaussian_nll_loss",
    "poisson_nll_loss",
    "cosine_embedding_loss",
    "margin_ranking_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "hinge_embedding_loss",
    "soft_margin_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "ctc_loss",
)
"""Of ``torch.nn.functional``; the modules call these."""

MAX_CALLS = 256
"""Calls of a step that are kept: detection models make dozens."""

Reduction = Literal["mean", "sum", "none"]


@final
class Arrivals:
    """The calls of one step."""

    def __init__(self) -> None:
        self.backward = 0
        """Number of the backward that runs, or runs next."""
        self._is_inside = False
        self._arrived: list[tuple[int, str, str, Reduction, int, Tensor]] = []

    def around(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """``original`` with a hook on what it returns."""
        signature = inspect.signature(original)

        def loss_function(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            self._is_inside = True
            try:
                loss = original(*args, **kwargs)
            finally:
                self._is_inside = False
            if current.observer is not None and isinstance(loss, Tensor) and loss.requires_grad:
                self._watch(name, loss, signature.bind(*args, **kwargs).arguments)
            return loss

        return loss_function

    def take(self, scale: float) -> tuple[LossArrival, ...]:
        """What arrived since the last call; ``scale``: of a ``GradScaler``."""
        found = tuple(
            LossArrival(
                backward=backward,
                function=name,
                where=where,
                reduction=reduction,
                num_items=num_items,
                weight=_finite(float(weight) / scale * (num_items if reduction == "sum" else 1)),
            )
            for backward, name, where, reduction, num_items, weight in self._arrived
        )
        self._arrived = []
        self.backward = 0
        return found

    def _watch(self, name: str, loss: Tensor, given: Mapping[str, Any]) -> None:
        where, reduction = current.where_called(), _reduction(loss, given)
        num_items = _num_items(name, loss, given, reduction)

        def on_gradient(gradient: Tensor) -> None:
            if len(self._arrived) < MAX_CALLS:
                weight = gradient.detach().double().sum()
                self._arrived.append((self.backward, name, where, reduction, num_items, weight))

        loss.register_hook(on_gradient)


def patch_losses(arrivals: Arrivals) -> None:
    for name in LOSS_FUNCTIONS:
        current.replace(functional, name, partial(arrivals.around, name))


def _reduction(loss: Tensor, given: Mapping[str, Any]) -> Reduction:
    asked = given.get("reduction", "mean")
    if loss.dim() > 0:
        return "none"
    return "sum" if asked == "sum" else "mean"


def _num_items(name: str, loss: Tensor, given: Mapping[str, Any], reduction: Reduction) -> int:
    if reduction == "none":
        return loss.numel()
    target = given.get("target")
    if not isinstance(target, Tensor):
        return 1
    if name in ("cross_entropy", "nll_loss") and not target.is_floating_point():
        return int((target != given.get("ignore_index", -100)).sum())
    return cast(int, target.numel())


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
