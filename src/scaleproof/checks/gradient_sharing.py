"""What the probes of a run say about who shares gradients with whom: facts, without opinion."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.gradient_weights import (
    EQUAL,
    StepWeights,
    alike_groups,
    final_distances,
    final_factors,
    fit_weights,
    has_weight,
    local_distance,
)
from scaleproof.checks.model_parallel import is_one_model
from scaleproof.checks.probes import StepProbe, parallelism_of, step_probes
from scaleproof.checks.replicas_over_time import are_averaged_later, begin_unlike
from scaleproof.evidence.study import Run

_MAX_RESIDUAL = 0.05
"""Above it, what a rank used is no weighted sum of the ranks' gradients: weights say nothing."""

_MAX_ERROR = 0.01
"""Standard error, as a share of the ranks' average weight, up to which a weight is known."""


@final
class Unshared(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor whose final gradients are not the same on all ranks: ``distance``, relative to the
    larger one, at most over steps; ``step``, the first one at which they are not equal."""

    tensor: str
    step: int
    distance: float


@final
class WeightsSeen(msgspec.Struct, frozen=True, kw_only=True):
    """How much each rank's gradient counted in what ``rank`` used at ``step``, where ranks use
    other gradients than each other; ``weights`` is None when a weighted sum does not explain it.
    ``groups``: ranks that used the same."""

    step: int
    rank: int
    weights: tuple[float, ...] | None
    groups: tuple[tuple[int, ...], ...]


@final
class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """The rank whose gradient counts least in what ``user`` used: ``weight`` is a multiple of what
    the ranks count on average."""

    step: int
    user: int
    rank: int
    weight: float


@final
class OptimizerSync(msgspec.Struct, frozen=True, kw_only=True):
    """What the probes of one optimizer of one run say.

    ``local_distance``: how far the ranks' own gradients were apart at most, relative to the larger
    one; gradients that are alike can't be seen to be shared. ``begin_unlike``: the tensors in
    question were not the same on all ranks before training. ``are_averaged``: they were, later,
    at a snapshot.
    """

    run: str
    where: str
    ranks: tuple[int, ...]
    num_steps: int
    local_distance: float
    num_tensors: int
    num_backwards: int
    unshared: tuple[Unshared, ...]
    seen: WeightsSeen | None
    left_out: LeftOut | None
    begin_unlike: bool
    are_averaged: bool
    parallelism: tuple[str, ...]
    is_one_model: bool = False
    """The ranks hold parts of one copy of the model: there is nothing to average."""


def gradient_sharing(run: Run) -> Iterator[OptimizerSync]:
    """One item per optimizer that has probes of all ranks."""
    by_optimizer: dict[int, _Tally] = {}
    for probe in step_probes(run):
        by_optimizer.setdefault(probe.optimizer, _Tally(first=probe)).add(probe)
    for _, tally in sorted(by_optimizer.items()):
        yield tally.result(run)


@final
@dataclass(slots=True, kw_only=True)
class _Tally:
    """Gathers the probes of one optimizer, one at a time."""

    first: StepProbe
    num_steps: int = 0
    local_distance: float = 0.0
    num_backwards: int = 0
    seen: WeightsSeen | None = None
    left_out: LeftOut | None = None
    unshared: dict[str, Unshared] = field(default_factory=dict[str, Unshared])
    names: set[str] = field(default_factory=set[str])

    def add(self, probe: StepProbe) -> None:
        self.num_steps += 1
        self.num_backwards = max(self.num_backwards, probe.num_backwards)
        names = zip(probe.names, has_weight(probe), strict=True)
        self.names |= {name for name, is_there in names if is_there}
        distances, factors = final_distances(probe), final_factors(probe)
        fit = fit_weights(probe)
        if fit.is_determined or not probe.is_sharded.all():
            self.local_distance = max(self.local_distance, local_distance(probe))
        self._look_for_left_out(probe, fit)
        is_scaled = bool(np.isfinite(factors).all() and (np.abs(factors - 1) > EQUAL).any())
        if is_scaled or not (distances > EQUAL).any():  # scaled: after it was shared
            return
        for name, distance in zip(probe.names, distances.tolist(), strict=True):
            if distance > EQUAL:
                before = self.unshared.get(name)
                self.unshared[name] = Unshared(
                    tensor=name,
                    step=probe.step if before is None else before.step,
                    distance=max(distance, 0.0 if before is None else before.distance),
                )
        if self.seen is None:
            self.seen = _weights_seen(probe, distances)

    def _look_for_left_out(self, probe: StepProbe, fit: StepWeights) -> None:
        num_samples = probe.column("num_samples")
        means = np.abs(fit.weights).mean(axis=1)
        is_sum = (fit.residuals <= _MAX_RESIDUAL) & (means > 0)
        for user, rank in product(np.flatnonzero(is_sum).tolist(), range(probe.num_ranks)):
            if num_samples[rank] != 0 and fit.errors[user, rank] <= _MAX_ERROR * means[user]:
                share = abs(float(fit.weights[user, rank])) / float(means[user])
                share = round(share, 3)  # so that of equal ones, the first step is kept
                if self.left_out is None or share < self.left_out.weight:
                    self.left_out = LeftOut(
                        step=probe.step,
                        user=probe.ranks[user],
                        rank=probe.ranks[rank],
                        weight=share,
                    )

    def result(self, run: Run) -> OptimizerSync:
        unshared = tuple(self.unshared.values())
        names = frozenset(self.unshared)
        first_step = min((tensor.step for tensor in unshared), default=0)
        return OptimizerSync(
            run=run.name,
            where=self.first.where,
            ranks=self.first.ranks,
            num_steps=self.num_steps,
            local_distance=self.local_distance,
            num_tensors=len(self.names),
            num_backwards=self.num_backwards,
            unshared=unshared,
            seen=self.seen,
            left_out=self.left_out,
            begin_unlike=bool(names) and begin_unlike(run, names),
            are_averaged=bool(names) and are_averaged_later(run, names, first_step),
            parallelism=tuple(sorted(parallelism_of(run))),
            is_one_model=is_one_model(run),
        )


def _weights_seen(probe: StepProbe, distances: NDArray[np.float64]) -> WeightsSeen:
    fit = fit_weights(probe, distances > EQUAL)
    # The rank whose weights are the furthest from equal ones: some ranks may be right.
    unevenness = np.nan_to_num(fit.weights.max(axis=1) - fit.weights.min(axis=1), nan=-1.0)
    row = int(np.argmax(unevenness.round(3)))
    is_sum = fit.residuals[row] <= _MAX_RESIDUAL and bool(np.isfinite(fit.weights[row]).all())
    return WeightsSeen(
        step=probe.step,
        rank=probe.ranks[row],
        weights=tuple(float(weight) for weight in fit.weights[row]) if is_sum else None,
        groups=alike_groups(probe, int(np.argmax(distances))),
    )
