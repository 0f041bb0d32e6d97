"""How the ranks' gradients were weighted and scaled at each probed step: facts, without opinion."""

from collections import Counter
from collections.abc import Iterator
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.gradient_weights import (
    StepWeights,
    clip_factors,
    final_factors,
    fit_weights,
    has_weight,
    joined,
)
from scaleproof.checks.probes import StepProbe, step_probes
from scaleproof.evidence.observations import StepFlag
from scaleproof.evidence.study import Run

_FITS = 0.05
"""Residual above which tensors are looked at one by one: some may be weighted differently."""

_REDUCED = 1e-3
"""Share of a gradient that another reduction may leave over, and be it."""

_MAX_STEPS_BY_TENSOR = 3
"""A large model has a thousand tensors: as many steps of each optimizer are enough to tell."""


@final
class Weighting(msgspec.Struct, frozen=True, kw_only=True):
    """How ranks count in what was used at one step. Tuples are by rank.

    ``tensor``: empty for all together. ``shares``: weights over their sum, averaged over users;
    None where not determined. ``totals``: sum of all weights in what each rank used.
    ``error``: the largest standard error of a weight over the mean weight.
    ``user_factors``: what each rank used, as a multiple of what the first rank used.
    ``samples``: None when they are not known, or there were none.
    ``clip_factor``: what clipping multiplied with; None when it is unknown or the ranks differ in
    it, 1 when nothing was clipped.
    """

    run: str
    where: str
    optimizer: int
    step: int
    ranks: tuple[int, ...]
    tensor: str
    shares: tuple[float, ...] | None
    totals: tuple[float, ...]
    error: float
    residual: float
    user_factors: tuple[float, ...]
    samples: tuple[int, ...] | None
    clip_factor: float | None
    clip_factors: tuple[float, ...] | None
    num_backwards: int
    most_backwards: int
    """At any step of the optimizer: the last one of an epoch often has fewer."""
    grad_scales: tuple[float, ...]
    is_loss_a_mean: bool
    has_gradients: bool
    """Some rank had one that is not 0, and some optimizer used one."""
    reduction: str
    """"largest", "smallest" or "product" of the ranks' values, where what was used is a multiple of
    that, value by value; empty where it is not, or where weights explain it."""

    @property
    def total(self) -> float:
        return float(np.mean(self.totals))


def weightings(run: Run) -> Iterator[Weighting]:
    """Of every step at which the ranks shared their gradients: for all tensors together or, where
    one set of weights does not explain all of them, tensor by tensor."""
    num_by_tensor: Counter[int] = Counter()
    most_backwards = _most_backwards(run)
    for probe in step_probes(run):
        if not np.isfinite(final_factors(probe)).all():
            continue
        fit = fit_weights(probe)
        is_explained = not fit.residual > _FITS  # NaN: nothing to fit, by tensor neither
        if is_explained:
            yield _weighting(probe, fit, "", most_backwards[probe.optimizer])
            continue
        num_by_tensor[probe.optimizer] += 1
        if num_by_tensor[probe.optimizer] > _MAX_STEPS_BY_TENSOR:
            continue
        for index in np.flatnonzero(has_weight(probe)).tolist():
            chosen = np.arange(len(probe.names)) == index
            fit = fit_weights(probe, chosen)
            yield _weighting(probe, fit, probe.names[index], most_backwards[probe.optimizer])


def _most_backwards(run: Run) -> dict[int, int]:
    """By optimizer."""
    most: dict[int, int] = {}
    for rank in run.ranks:
        table = rank.observed_steps
        for optimizer in np.unique(table["optimizer"]).tolist():
            count = int(table["num_backwards"][table["optimizer"] == optimizer].max())
            most[optimizer] = max(count, most.get(optimizer, 0))
    return most


def _weighting(probe: StepProbe, fit: StepWeights, tensor: str, most_backwards: int) -> Weighting:
    sums = fit.totals
    is_usable = fit.is_determined and bool((sums > 0).all())
    shares = errors = None
    if is_usable:
        shares = (fit.weights / sums[:, None]).mean(axis=0)
        errors = fit.errors / sums[:, None] * probe.num_ranks
    num_samples = probe.column("num_samples")
    is_counted = bool((num_samples >= 0).all() and num_samples.sum() > 0)
    each = clip_factors(probe)
    is_clipped = any(flags & StepFlag.CLIPPED for flags in probe.flags)
    common = _common(each) if is_clipped else 1.0
    return Weighting(
        run=probe.run,
        where=probe.where,
        optimizer=probe.optimizer,
        step=probe.step,
        ranks=probe.ranks,
        tensor=tensor,
        shares=None if shares is None else _floats(shares),
        totals=_floats(sums),
        error=0.0 if errors is None else float(np.max(errors)),
        residual=fit.residual,
        user_factors=_floats(final_factors(probe)),
        samples=tuple(int(n) for n in num_samples) if is_counted else None,
        clip_factor=common,
        clip_factors=_floats(each) if np.isfinite(each).all() else None,
        num_backwards=probe.num_backwards,
        most_backwards=max(most_backwards, probe.num_backwards),
        grad_scales=probe.grad_scales,
        is_loss_a_mean=probe.is_loss_a_mean,
        has_gradients=_has_any(probe.local, probe.local_norms)
        and _has_any(probe.final, probe.final_norms),
        reduction=_reduction(probe, tensor) if fit.residual > _FITS else "",
    )


def _has_any(*sizes: NDArray[np.float64]) -> bool:
    return any(bool(np.nan_to_num(size).any()) for size in sizes)


def _reduction(probe: StepProbe, tensor: str) -> str:
    chosen = [not tensor or name == tensor for name in probe.names]
    used, own = joined(probe.final[:, chosen]), probe.local[:, chosen]
    known = np.isfinite(used) & np.isfinite(own).all(axis=0)
    if not known.any():
        return ""
    used, own = used[known], own[:, known]
    reductions = {"largest": own.max(axis=0), "smallest": own.min(axis=0), "product": own.prod(0)}
    for name, values in reductions.items():
        size = float(values @ values)
        ratio = float(values @ used) / size if size > 0 else 0.0
        rest = float(np.linalg.norm(used - ratio * values))
        if ratio > 0 and rest <= _REDUCED * float(np.linalg.norm(used)):
            return name
    return ""


def _common(factors: NDArray[np.float64]) -> float | None:
    if not np.isfinite(factors).all() or np.ptp(factors) > 1e-3 * factors.max():
        return None
    return float(factors.mean())


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
