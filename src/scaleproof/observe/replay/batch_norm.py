"""BatchNorm in a replay: each rank's items are normalised by themselves, as they were.

Otherwise nothing else could be seen in a model with BatchNorm: the joint batch would be normalised
by other statistics than any rank's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from scaleproof.observe import current


def normalise_by_parts(sizes: Callable[[], Sequence[int]]) -> None:
    """``sizes``: items of each part of the joint batch that goes through now."""

    def around(original: Any) -> Any:
        def forward(self: Any, values: Tensor) -> Tensor:
            parts = _rows_of_parts(len(values), sizes())
            if not self.training or len(parts) < 2 or isinstance(self, SyncBatchNorm):
                return original(self, values)
            first, *others = values.split(parts)
            normalised = [original(self, first)]
            normalised += [
                functional.batch_norm(
                    other, None, None, self.weight, self.bias, training=True, eps=self.eps
                )
                for other in others
            ]
            return torch.cat(normalised)

        return forward

    current.replace(_BatchNorm, "forward", around)


def _rows_of_parts(num_rows: int, sizes: Sequence[int]) -> list[int]:
    """Rows of each part: several for an item where items were folded into the batch dimension."""
    total = sum(sizes)
    if total == 0 or num_rows % total or min(sizes) == 0:
        return []
    return [size * (num_rows // total) for size in sizes]
