"""The gradient that was used in numbers, beside the one that a single device computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.stats.effective_weights import effective_weights

FITS = 0.02
"""Residual up to which a gradient is a weighted sum of the ranks' own ones: 16 bits leave 0.01."""

NOISES = 10.0
"""Times the rounding noise of a gradient: more is no rounding."""

_TENSOR_FLOOR = 1e-3
"""Of the mean size of a tensor's gradient: a difference below is too small to matter."""
_TENSOR_NOISES = 20.0
_TENSOR_OFF = 0.03
"""Of a tensor's own gradient: 16 bits move small tensors by up to 0.01."""


@final
class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A gradient as a weighted sum of the sources. ``weights``: None where they are not determined.
    ``error``: the largest standard error of a weight, over the mean weight. ``residual``: share of
    the gradient that no weights explain."""

    weights: tuple[float, ...] | None
    error: float
    residual: float

    @property
    def total(self) -> float:
        return sum(self.weights) if self.weights is not None else float("nan")


@final
class TensorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that is off by itself: as a multiple (``ratio``) of the reference, with the
    ``rest`` of the used gradient that no multiple explains. ``reference``: of its own fit."""

    name: str
    ratio: float
    rest: float
    reference: Fit
    effective: Fit


@final
@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Of the tensors that are compared, shape ``(num_tensors, NUM_COORDINATES)``; of ``sources``
    with a first dim of them. NaN where any of the three is not known."""

    names: tuple[str, ...]
    used: NDArray[np.float64]
    reference: NDArray[np.float64]
    reordered: NDArray[np.float64] | None
    sources: NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Numbers:
    error: float
    noise: float | None
    cosine: float
    ratio: float
    rest: float
    effective: Fit
    in_reference: Fit
    off: tuple[TensorFacts, ...]


_NAN = float("nan")
NO_FIT = Fit(weights=None, error=_NAN, residual=_NAN)
NOTHING = Numbers(
    error=_NAN, noise=None, cosine=_NAN, ratio=_NAN, rest=_NAN,
    effective=NO_FIT, in_reference=NO_FIT, off=(),
)  # fmt: skip


def numbers_of(g: Gradients, union: NDArray[np.float64] | None) -> Numbers:
    known = np.isfinite(g.used)
    used, reference = g.used[known], g.reference[known]
    ratio, rest = _multiple(used, reference)
    size, used_size = float(np.linalg.norm(reference)), float(np.linalg.norm(used))
    noises = None
    if g.reordered is not None and union is not None:
        noises = np.where(known, g.reordered - union, 0.0)
    return Numbers(
        error=float(np.linalg.norm(used - reference)) / size,
        noise=None if noises is None else float(np.linalg.norm(noises)) / size,
        cosine=float(used @ reference) / (size * used_size) if used_size > 0 else 0.0,
        ratio=ratio,
        rest=rest,
        effective=fit_of(g.sources, g.used),
        in_reference=fit_of(g.sources, g.reference),
        off=tuple(_tensors_off(g, noises, size)),
    )


def _multiple(used: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    ratio = float(used @ reference) / float(reference @ reference)
    size = float(np.linalg.norm(used))
    rest = float(np.linalg.norm(used - ratio * reference))
    return ratio, rest / size if size > 0 else 0.0


def fit_of(sources: NDArray[np.float64], target: NDArray[np.float64]) -> Fit:
    if not len(sources):
        return NO_FIT
    fit = effective_weights(sources.reshape(len(sources), -1), target.reshape(-1))
    if not fit.is_determined:
        return Fit(weights=None, error=_NAN, residual=fit.residual)
    mean = abs(float(fit.weights.mean()))
    error = float(fit.errors.max()) / mean if mean > 0 else _NAN
    weights = tuple(float(weight) for weight in fit.weights)
    return Fit(weights=weights, error=error, residual=fit.residual)


def _tensors_off(
    g: Gradients, noises: NDArray[np.float64] | None, size: float
) -> Iterator[TensorFacts]:
    """None where rounding noise is not known: what is off in one tensor alone is small."""
    if noises is None:
        return
    floor = _TENSOR_FLOOR * size / len(g.names) ** 0.5
    for row, name in enumerate(g.names):
        known = np.isfinite(g.used[row])
        used, reference = g.used[row][known], g.reference[row][known]
        gap, own_size = float(np.linalg.norm(used - reference)), float(np.linalg.norm(reference))
        least = max(floor, _TENSOR_NOISES * float(np.linalg.norm(noises[row])))
        if not own_size > 0 or gap <= max(least, _TENSOR_OFF * own_size):
            continue
        ratio, rest = _multiple(used, reference)
        yield TensorFacts(
            name=name,
            ratio=ratio,
            rest=rest,
            reference=fit_of(g.sources[:, row], g.reference[row]),
            effective=fit_of(g.sources[:, row], g.used[row]),
        )
