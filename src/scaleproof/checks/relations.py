"""What the facts of a replayed step come to: the same gradient as one device's, a multiple of it,
other proportions of the ranks' gradients, or something that can't be told."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import final

import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.reference_numbers import FITS, NOISES, Fit, TensorFacts
from scaleproof.checks.replayed import ComparedStep
from scaleproof.checks.wording import counted, listed

AGREES = 1e-4
"""Of the reference: what float32 and another order of the items leave is a hundredth of it."""

_EXPLAINED = 0.05
"""Share of what was used that may be left over by weights: reductions in 16 bits, compression."""

_NEAR = 0.02
"""Relative distance of a factor from the number it is taken for."""

_POINTS_ALONG = 0.9
"""Cosine with the reference from which a multiple of it means something, whatever is left over."""

_SURE = 3.0
"""Standard errors, or times what is left over."""


class Relation(Enum):
    """Of the gradient that was used at one step to that of a single device."""

    SAME = auto()
    SCALED = auto()
    MISWEIGHTED = auto()
    ONE_TENSOR_SCALED = auto()
    ONE_TENSOR_MISWEIGHTED = auto()
    ONE_SIDED = auto()
    """Some tensor has a gradient on the ranks alone, or on one device alone."""
    COUPLED = auto()
    """One device's gradient is no weighted sum of those of the ranks, at least in one tensor."""
    RANDOM = auto()
    """It differs, and random numbers were drawn."""
    UNTOLD = auto()
    """Nothing to compare, or what was used is no weighted sum of the ranks' gradients."""


TOLD = frozenset(Relation) - {Relation.COUPLED, Relation.RANDOM, Relation.UNTOLD}


def relation_of(step: ComparedStep, tolerance: float) -> Relation:
    """``tolerance``: of a factor, and of an even weight."""
    relation = _of_both_sides(step, tolerance)
    is_same = relation is Relation.SAME and not step.is_random
    return Relation.ONE_SIDED if is_same and step.one_sided else relation


def _of_both_sides(step: ComparedStep, tolerance: float) -> Relation:
    """Of the tensors that have a gradient on the ranks and on one device."""
    if step.why_not:
        return Relation.UNTOLD
    if step.error <= noise_of(step):
        return _of_single_tensors(step, tolerance) or Relation.SAME
    if step.is_random:
        is_factor = step.rest <= noise_of(step) and bool(name_of_factor(step.ratio, step))
        return Relation.SCALED if is_factor else Relation.RANDOM
    if step.rest <= noise_of(step):
        return _of_factor(step, step.ratio, 0.0, tolerance)
    if step.in_reference.residual <= fits(step):
        return _of_weights(step, tolerance)
    # A tensor that is off alone leaves the reference as it is; here that is the odd one.
    is_multiple = step.cosine > _POINTS_ALONG and _SURE * step.in_reference.residual < abs(
        step.ratio - 1
    )
    if is_multiple and name_of_factor(step.ratio, step):
        return Relation.SCALED
    return Relation.COUPLED if np.isfinite(step.in_reference.residual) else Relation.UNTOLD


def noise_of(step: ComparedStep) -> float:
    """Distance from the reference, relative to it, that is no difference."""
    return max(AGREES, min(NOISES * (step.noise or 0.0), _MOST_NOISE))


_MOST_NOISE = 0.05
"""More than that between two replays is no rounding: they drew other random numbers, or diverge."""


def fits(step: ComparedStep) -> float:
    """Residual up to which the reference is a weighted sum of the ranks' gradients."""
    return max(FITS, min(NOISES * (step.noise or 0.0), _MOST_NOISE))


def shares(fit: Fit) -> NDArray[np.float64]:
    """The weights over their sum; NaN where they are not determined or add up to nothing."""
    if fit.weights is None or not fit.total > 0:
        return np.full(0 if fit.weights is None else len(fit.weights), np.nan)
    return np.array(fit.weights) / fit.total


def factor_of(step: ComparedStep) -> float:
    """What was used, as a multiple of the reference."""
    if step.rest <= noise_of(step) or step.effective.weights is None:
        return step.ratio
    if step.in_reference.weights is None or not step.in_reference.total > 0:
        return step.ratio
    return step.effective.total / step.in_reference.total


def name_of_factor(factor: float, step: ComparedStep) -> str:
    """What the factor is, in words; empty when it is none of the numbers that such faults leave."""
    for number, words in _named_factors(step):
        if abs(factor - number) <= _NEAR * number:
            return words
    return ""


def is_spread_over_ranks(step: ComparedStep, factor: float) -> bool:
    """The factor is 1/N: what a loss that is summed over its items brings along."""
    return abs(factor * len(step.ranks) - 1) <= _NEAR


def worst_tensor(step: ComparedStep) -> TensorFacts:
    """The first that is off in the order of backward: what is off below it, it may have caused."""
    return [tensor for tensor in step.off if tensor.reference.residual <= FITS][-1]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """How many of the steps that could be told bear a fault; it counts as one when they are
    ``min_steps`` and ``min_share`` of them."""

    found: tuple[ComparedStep, ...]
    num_told: int
    min_steps: int
    min_share: float

    @property
    def is_frequent(self) -> bool:
        return bool(self.found) and len(self.found) >= self.min_share * self.num_told

    @property
    def is_fault(self) -> bool:
        return self.is_frequent and len(self.found) >= self.min_steps

    @property
    def words(self) -> str:
        return f"at {len(self.found):,} of {counted(self.num_told, 'compared step')}"


def series_of(steps: Iterable[ComparedStep]) -> Iterator[tuple[ComparedStep, ...]]:
    """Of each optimizer of each run."""
    series: dict[tuple[str, int], list[ComparedStep]] = {}
    for step in steps:
        series.setdefault((step.run, step.optimizer), []).append(step)
    return map(tuple, series.values())


def where_words(step: ComparedStep) -> str:
    """``observed-seed0, step 1, SGD of train.py:41, the backward at train.py:61``."""
    backward = f", the backward at {step.backward_where}" if step.backward_where else ""
    return f"{step.run}, step {step.step}, {step.where}{backward}"


def sameness_words(told: Sequence[ComparedStep]) -> str:
    """How near the steps came to the reference."""
    worst = max(step.error for step in told)
    noises = [step.noise for step in told if step.noise is not None]
    rounding = f", rounding {max(noises):.1e}" if noises else ""
    return f"largest difference {worst:.1e} of it{rounding}"


def steps_words(steps: Sequence[ComparedStep]) -> str:
    """``step 4``, ``steps 4, 8 and 12``."""
    numbers = sorted({step.step for step in steps})
    return f"step{'' if len(numbers) == 1 else 's'} {listed(numbers)}"


def _of_weights(step: ComparedStep, tolerance: float) -> Relation:
    """The reference is a weighted sum of the sources."""
    effective, reference = shares(step.effective), shares(step.in_reference)
    is_known = effective.shape == reference.shape and bool(
        np.isfinite(effective).all() and np.isfinite(reference).all() and len(effective)
    )
    if not step.effective.residual <= _EXPLAINED or not is_known:
        return _of_single_tensors(step, tolerance) or Relation.UNTOLD
    if are_apart(step.effective, step.in_reference, tolerance):
        return Relation.MISWEIGHTED
    left_over = max(step.effective.residual, step.in_reference.residual)
    return _of_factor(step, factor_of(step), left_over, tolerance)


def are_apart(effective: Fit, reference: Fit, tolerance: float) -> bool:
    """The proportions of the weights differ by more than ``tolerance`` of an even one, and than
    their errors and what they leave over may have moved them."""
    gaps = np.abs(shares(effective) - shares(reference)) * len(shares(effective))
    error = float(np.hypot(effective.error, reference.error))
    left_over = max(effective.residual, reference.residual)
    return bool(gaps.max(initial=0.0) > max(tolerance, _SURE * error, _SURE * left_over))


def _of_factor(step: ComparedStep, factor: float, left_over: float, tolerance: float) -> Relation:
    if abs(factor - 1) > max(tolerance, _SURE * left_over):
        return Relation.SCALED
    return _of_single_tensors(step, tolerance) or Relation.SAME


def _of_single_tensors(step: ComparedStep, tolerance: float) -> Relation | None:
    """None where all tensors are as the rest is, or weights are not determined."""
    if not step.off or len(step.off) == step.num_tensors:
        return None
    if step.off[-1].reference.residual > FITS:  # the first in the order of backward
        return Relation.COUPLED
    if not any(tensor.reference.residual <= FITS for tensor in step.off):
        return None
    worst = worst_tensor(step)
    if worst.rest <= max(tolerance, noise_of(step)):
        return Relation.ONE_TENSOR_SCALED
    return Relation.ONE_TENSOR_MISWEIGHTED


def _named_factors(step: ComparedStep) -> Iterator[tuple[float, str]]:
    num_ranks, num_backwards = len(step.ranks), step.num_backwards
    ranks = f"the number of ranks, {num_ranks}"
    backwards = f"the number of backwards of a step, {num_backwards}"
    if num_backwards == num_ranks:
        ranks = f"{ranks}, which is that of the backwards of a step too"
    yield num_ranks, ranks
    yield 1 / num_ranks, f"1 over {ranks}"
    if num_backwards > 1:
        yield num_backwards, backwards
        yield 1 / num_backwards, f"1 over {backwards}"
        both = f"{num_ranks} ranks times {num_backwards} backwards of a step"
        yield num_ranks * num_backwards, both
        yield 1 / (num_ranks * num_backwards), f"1 over {both}"
    yield num_ranks**2, f"the number of ranks squared, {num_ranks}²"
    yield 1 / num_ranks**2, f"1 over the number of ranks squared, {num_ranks}²"
    for counts, noun in ((step.num_samples, "samples"), (step.num_items, "items of the loss")):
        if counts and min(counts) > 1:
            for number, whose in ((max(counts), "a rank"), (sum(counts), "all ranks")):
                yield number, f"the {number} {noun} of {whose}"
                yield 1 / number, f"1 over the {number} {noun} of {whose}"
