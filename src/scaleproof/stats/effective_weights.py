"""How much each rank's own gradient counts in the gradient that the optimizer used.

Formula: the least-squares solution of ``final = sum_r w_r * local_r`` over the coordinates at which
all are known, by singular values of the local gradients, each scaled to length 1; the residual is
``|final - sum_r w_r * local_r| / |final|``; standard errors are those of ordinary least squares.
Where local gradients depend on each other, only some sums of weights are determined: exactly the
linear functions ``c . w`` whose ``c`` lies in the row space of the local gradients (*estimable
functions*: Scheffe, The Analysis of Variance, 1959, chapter 1.4). Two ranks that computed the same
gradient determine the sum of their two weights and neither of them; a rank whose gradient is zero
determines nothing about its own.

Condition-number rule: directions in which the scaled local gradients are ``MAX_CONDITION`` times
shorter than in their longest count as not there. Rounding of 1e-7 in the gradients then moves a
weight by about 1e-3 at most.

Assumes that the final gradient is a weighted sum of the local ones, with the same weights at all
given coordinates. The residual tells whether it is: near 1e-7 for float32, 1e-3 to 1e-2 for
reductions in 16 bits, and above that something else than weighting happened (compression,
clipping of single values, noise, a microbatch that was not shared).

What the numbers do not mean: weights of 1/N say that ranks count alike, not that counting them
alike is right - that depends on what each rank's loss was divided by. A standard error is of
rounding and compression, not of the choice of samples.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

MAX_CONDITION = 1e4
"""Longest over shortest direction of the scaled local gradients that counts as there."""

_MAX_OUTSIDE = 1e-3
"""Share of ``c`` that may lie outside the row space: rounding, where gradients nearly agree."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveWeights:
    """``weights`` and ``errors`` (standard errors) have shape ``(num_ranks,)``, NaN where a weight
    is not determined; ``total`` is the sum of the weights, with ``total_error``, NaN where not even
    that is. ``residual`` is relative to the final gradient, NaN where there is nothing to fit;
    ``num_coordinates`` are those at which all gradients are known."""

    weights: NDArray[np.float64]
    errors: NDArray[np.float64]
    total: float
    total_error: float
    residual: float
    num_coordinates: int

    @property
    def is_determined(self) -> bool:
        """Every single weight is."""
        return bool(np.isfinite(self.weights).all())


def effective_weights(
    locals_: NDArray[np.float64], final_: NDArray[np.float64]
) -> EffectiveWeights:
    """Weights of the rows of ``locals_``, shape ``(num_ranks, num_coordinates)``, in ``final_``,
    shape ``(num_coordinates,)``. Coordinates with a value that is not finite are left out; without
    more of them than ranks there is nothing left to test the fit with, and nothing is determined.
    """
    is_known = np.isfinite(final_) & np.isfinite(locals_).all(axis=0)
    sources, target = locals_[:, is_known].T, final_[is_known]
    num_ranks, num_coordinates = len(locals_), len(target)
    lengths = np.linalg.norm(sources, axis=0)
    if num_coordinates <= num_ranks or not lengths.any():
        return _nothing(num_ranks, num_coordinates)
    scales = lengths.copy()
    scales[lengths == 0] = lengths.max()  # a zero gradient stays zero, whatever divides it
    left, strengths, right = np.linalg.svd(sources / scales, full_matrices=False)
    is_there = strengths * MAX_CONDITION > strengths[0]
    left, strengths, right = left[:, is_there], strengths[is_there], right[is_there]
    scaled_weights = right.T @ ((left.T @ target) / strengths)
    rest = float(np.linalg.norm(target - sources @ (scaled_weights / scales)))
    size = float(np.linalg.norm(target))
    noise = rest / (num_coordinates - len(strengths)) ** 0.5

    def evaluate(function: NDArray[np.float64]) -> tuple[float, float]:
        """``function . weights`` with its standard error; NaN when it is not estimable."""
        scaled = function / scales
        seen = right @ scaled
        outside = np.linalg.norm(scaled - right.T @ seen)
        if outside > _MAX_OUTSIDE * np.linalg.norm(scaled):
            return float("nan"), float("nan")
        return float(scaled @ scaled_weights), noise * float(np.linalg.norm(seen / strengths))

    ranks = np.arange(num_ranks)
    each = np.array([evaluate((ranks == rank).astype(np.float64)) for rank in range(num_ranks)])
    total, total_error = evaluate(np.ones(num_ranks))
    return EffectiveWeights(
        weights=each[:, 0],
        errors=each[:, 1],
        total=total,
        total_error=total_error,
        residual=rest / size if size > 0 else 0.0,  # of a zero gradient, nothing is left
        num_coordinates=num_coordinates,
    )


def _nothing(num_ranks: int, num_coordinates: int) -> EffectiveWeights:
    unknown = np.full(num_ranks, np.nan)
    return EffectiveWeights(
        weights=unknown,
        errors=unknown,
        total=float("nan"),
        total_error=float("nan"),
        residual=float("nan"),
        num_coordinates=num_coordinates,
    )
