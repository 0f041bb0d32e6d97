"""What the probes of one step say about how ranks shared their gradients: the effective weights of
each rank in each rank's final gradient, and how far the final gradients are apart."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.probes import StepProbe
from scaleproof.stats.effective_weights import EffectiveWeights, effective_weights

NOISE_SHARE = 1e-6
"""A tensor whose gradient is a smaller share of the whole one has none but rounding noise: a bias
before a normalisation, for one."""

EQUAL = 1e-6
"""Relative distance of two gradients up to which they are the same but for rounding."""

_ALIKE = 1e-2

_CLIP_EPSILON = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to the norm it divides by."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepWeights:
    """Row r: how much each rank's gradient counts in what rank r's optimizer used.

    ``weights``, ``errors``: shape ``(num_ranks, num_ranks)``; ``totals`` (sums of rows),
    ``total_errors`` and ``residuals``: shape ``(num_ranks,)``. NaN where not determined.
    """

    weights: NDArray[np.float64]
    errors: NDArray[np.float64]
    totals: NDArray[np.float64]
    total_errors: NDArray[np.float64]
    residuals: NDArray[np.float64]

    @property
    def is_determined(self) -> bool:
        return bool(np.isfinite(self.weights).all())

    @property
    def residual(self) -> float:
        """The largest of any rank; NaN when one is unknown."""
        return float(np.max(self.residuals))


def fit_weights(probe: StepProbe, tensors: NDArray[np.bool_] | None = None) -> StepWeights:
    """Weights over all tensors together, or over those chosen by ``tensors``, ``(num_tensors,)``.

    Of all together, large gradients decide: that is meant, as they do in the update. Where shards
    are too small to tell a rank's weights from its own, all ranks' shards are joined.
    """
    chosen = np.ones(len(probe.names), np.bool_) if tensors is None else tensors
    locals_ = probe.local[:, chosen].reshape(probe.num_ranks, -1)
    fits: list[EffectiveWeights] = []
    fit_by_bytes: dict[bytes, EffectiveWeights] = {}
    for final_ in probe.final[:, chosen].reshape(probe.num_ranks, -1):
        key = final_.tobytes()  # replicas mostly agree byte for byte: one fit will do
        if key not in fit_by_bytes:
            fit_by_bytes[key] = effective_weights(locals_, final_)
        fits.append(fit_by_bytes[key])
    if probe.is_sharded[chosen].any() and not all(fit.is_determined for fit in fits):
        together = effective_weights(locals_, joined(probe.final[:, chosen]).reshape(-1))
        fits = [fit if fit.is_determined else together for fit in fits]
    return StepWeights(
        weights=np.stack([fit.weights for fit in fits]),
        errors=np.stack([fit.errors for fit in fits]),
        totals=np.array([fit.total for fit in fits]),
        total_errors=np.array([fit.total_error for fit in fits]),
        residuals=np.array([fit.residual for fit in fits]),
    )


def joined(final_: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the ranks (the first dim) that know a coordinate, NaN where none does."""
    is_known = np.isfinite(final_)
    count = is_known.sum(axis=0)
    total = np.where(is_known, final_, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def has_weight(probe: StepProbe) -> NDArray[np.bool_]:
    """Which tensors have more than rounding noise for a gradient on any rank, ``(num_tensors,)``"""
    local = np.sqrt(np.nansum(probe.local**2, axis=2))
    final_ = np.sqrt(np.nansum(probe.final**2, axis=2))
    sizes = np.max(np.nan_to_num(np.stack([local, final_, probe.final_norms])), axis=(0, 1))
    return sizes > NOISE_SHARE * float(np.linalg.norm(sizes))


def final_distances(probe: StepProbe) -> NDArray[np.float64]:
    """How far each tensor's final gradients are apart, relative to the larger one, at most over
    ranks, ``(num_tensors,)``; 1 where some ranks have one and others none, 0 for shards."""
    distances = np.array(
        [
            0.0 if is_sharded else _spread(probe.final[:, index], probe.final_norms[:, index])
            for index, is_sharded in enumerate(probe.is_sharded)
        ]
    )
    return np.where(has_weight(probe), distances, 0.0)


def final_factors(probe: StepProbe) -> NDArray[np.float64]:
    """Each rank's final gradient of replicated tensors as a multiple of the first rank's, shape
    ``(num_ranks,)``: NaN where it is none, 1 where there is nothing to compare."""
    flat = probe.final[:, ~probe.is_sharded].reshape(probe.num_ranks, -1)
    flat = flat[:, np.isfinite(flat).all(axis=0)]
    size = float(flat[0] @ flat[0])
    if size == 0:
        return np.where((flat == 0).all(axis=1), 1.0, np.nan)
    factors = flat @ flat[0] / size
    gaps = np.linalg.norm(flat - factors[:, None] * flat[0], axis=1)
    sizes = np.linalg.norm(flat, axis=1)
    rests = np.divide(gaps, sizes, out=np.zeros_like(gaps), where=sizes > 0)
    # In 16 bits a multiple is one up to 1e-2; then it must be told from gradients just alike.
    is_multiple = (rests <= EQUAL) | (rests <= np.minimum(_ALIKE, np.abs(factors - 1) / 10))
    return np.where(is_multiple, factors, np.nan)


def local_distance(probe: StepProbe) -> float:
    """How far the ranks' own gradients are apart at most, relative to the larger one."""
    flat = probe.local.reshape(probe.num_ranks, -1)
    return _spread(flat, np.full(probe.num_ranks, np.nan))


def clip_factors(probe: StepProbe) -> NDArray[np.float64]:
    """What ``clip_grad_norm_`` multiplied each rank's gradient with, by the norm it measured and
    the largest it allowed, shape ``(num_ranks,)``; NaN where it was not called."""
    norms, limits = probe.column("clip_norm"), probe.column("clip_max")
    with np.errstate(invalid="ignore"):  # no limit at all, and a norm that is not finite
        return np.minimum(1.0, limits / (norms + _CLIP_EPSILON))


def local_sizes(probe: StepProbe) -> NDArray[np.float64]:
    """Norm of each rank's own whole gradient, shape ``(num_ranks,)``; NaN where it is unknown."""
    has_gradient = np.isfinite(probe.local).any(axis=2)
    squares = np.where(has_gradient, probe.local_norms**2, 0.0)
    return np.sqrt(squares.sum(axis=1))


def is_proportional(
    weights: NDArray[np.float64], factors: NDArray[np.float64], tolerance: float
) -> bool:
    """The weights are uneven as the factors are, up to ``tolerance`` of what all count on average.

    False where a factor is unknown, or the factors are too even to tell.
    """
    if not np.isfinite(factors).all() or factors.sum() <= 0:
        return False
    expected = factors / factors.mean()
    return bool(np.ptp(expected) > tolerance) and bool(
        (np.abs(weights / weights.mean() - expected) <= tolerance).all()
    )


def alike_groups(probe: StepProbe, tensor: int) -> tuple[tuple[int, ...], ...]:
    """Ranks that use the same gradient of a tensor, together."""
    groups: list[list[int]] = []
    norms = np.full(2, np.nan)
    for index in range(probe.num_ranks):
        for group in groups:
            pair = probe.final[[probe.ranks.index(group[0]), index], tensor]
            if _spread(pair, norms) <= EQUAL:
                group.append(probe.ranks[index])
                break
        else:
            groups.append([probe.ranks[index]])
    return tuple(map(tuple, groups))


def _spread(values: NDArray[np.float64], norms: NDArray[np.float64]) -> float:
    """The largest relative distance of a row of ``values`` from the first one, by coordinates and
    by ``norms`` (which see what no coordinate does: few rows of an embedding have a gradient)."""
    is_finite = np.isfinite(values)
    if (is_finite.any(axis=1) != is_finite.any()).any():
        return 1.0
    known = values[:, is_finite.all(axis=0)]
    sizes = np.linalg.norm(known, axis=1)
    gaps = np.linalg.norm(known - known[0], axis=1)
    by_values = _relative(gaps, np.maximum(sizes, sizes[0]))
    by_norms = _relative(np.abs(norms - norms[0]), np.maximum(norms, norms[0]))
    return float(np.nanmax([by_values, by_norms, 0.0]))


def _relative(gaps: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    known = np.isfinite(gaps) & (sizes > 0)
    return float(np.max(gaps[known] / sizes[known])) if known.any() else 0.0
