"""Switches dropout off: what it draws can't be the same on N ranks and on one process.

Everything goes on as if every probability were 0. That a forward would have drawn is remembered,
so that the ranks' masks can still be compared.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch.nn.modules.rnn import GRU, LSTM, RNN

from scaleproof.observe import current

_FUNCTIONS = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
)


def switch_dropout_off() -> None:
    for name in _FUNCTIONS:
        current.replace(functional, name, _without_drawing(0.5))
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        current.replace(torch, name, _without_drawing(None))
    current.replace(functional, "scaled_dot_product_attention", _without_probability)
    for module in (LSTM, GRU, RNN):
        current.replace(module, "forward", _without_dropout)


def _without_drawing(default: float | None) -> Callable[[Any], Any]:
    """Around a function of (input, p, training); ``default``: of p, None when it has none."""

    def around(original: Any) -> Any:
        def dropout(*args: Any, **kwargs: Any) -> Any:
            values = args[0] if args else kwargs["input"]
            p = kwargs.get("p", args[1] if len(args) > 1 else default)
            third = args[2] if len(args) > 2 else True
            is_on = kwargs.get("training", kwargs.get("train", third))
            if is_on and p:
                _remember()
                return values
            return original(*args, **kwargs)

        return dropout

    return around


def _without_probability(original: Any) -> Any:
    def scaled_dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        *rest: Any,
        **named: Any,
    ) -> Any:
        if dropout_p:
            _remember()
        return original(query, key, value, attn_mask, 0.0, *rest, **named)

    return scaled_dot_product_attention


def _without_dropout(original: Any) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        probability, self.dropout = self.dropout, 0.0
        try:
            if probability and self.training and self.num_layers > 1:
                _remember()
            return original(self, *args, **kwargs)
        finally:
            self.dropout = probability

    return forward


def _remember() -> None:
    if current.observer is not None:
        current.observer.optimizers.look.drew_dropout = True
