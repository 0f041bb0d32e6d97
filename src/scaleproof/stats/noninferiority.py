"""Is the candidate as good as the baseline, within a margin? Shown by an interval over seeds.

Formula: ``d_s`` is candidate minus baseline for seed s, higher is better, n seeds. Two errors are
independent and add in quadrature, each with its own quantile (MOVER: Zou and Donner, Construction
of confidence intervals for general functions of parameters, Stat. Med. 27, 2008)::

    mean(d) ± sqrt((t_df * s / sqrt(n))^2 + (z * e)^2)

``s`` is the standard deviation over seeds. ``e`` is the part that more seeds can't shrink: all
seeds score the same samples, and other samples would have favoured another arm. Two-way random
effects (Searle, Casella and McCulloch, Variance components, 1992; the crossed case in Owen, The
pigeonhole bootstrap, Ann. Appl. Stat. 1, 2007) give it from the differences per seed and sample::

    e^2 = max(0, MS_samples - MS_residual) / (num_seeds * num_samples)

The flips of single samples that differ from seed to seed are in ``s`` already; adding the plain
standard error over samples would count them twice. With one seed ``s`` is unknown: only ``e`` is
left, then the plain standard error, flips of this one seed included.

Each bound holds ``confidence`` on its own side; both together make the interval of two one-sided
tests (Schuirmann, J. Pharmacokin. Biopharm. 15, 1987), 90 % wide for bounds of 95 %.

Differences of proportions need more: with near-zero discordance ``s`` and ``e`` are often exactly
0, and an interval without width would prove anything. As in Tango's score interval (Stat. Med. 17,
1998) each candidate value x is tested with a spread that x itself allows: a mean difference of x
needs a share of at least ``|x|`` discordant samples, so one run's variance is at least
``|x| (1 - |x|) / num_samples`` (that of one half for larger ones). With no discordance at all this
is Wilson's interval at 0.

Assumes near-normal seed means, seeds that are exchangeable, and samples drawn from what the model
is meant for. What the numbers do not mean: that the arms are equal; that a group of samples too
rare for the evaluation set is treated alike; with one seed, anything about the next run.
"""

from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import EvidenceError, UsageError
from scaleproof.stats.numerics import find_root, normal_quantile, t_quantile
from scaleproof.stats.sample_size import repetitions_to_decide

_LOWEST_LOG10_P = -300.0
_HAIR = 1e-12


@final
class NonInferiority(msgspec.Struct, frozen=True, kw_only=True):
    """Where the true mean difference lies, and what that says about ``-margin``.

    ``low`` and ``high`` hold ``confidence`` each. ``p_value_not_worse`` is against "the difference
    is ``-margin`` or lower", ``p_value_worse`` against "it is ``-margin`` or higher".
    ``run_standard_error`` is None with one seed: run-to-run variation is unknown, and the interval
    leaves it out. ``seeds_to_decide``: the smallest number of seeds at which, should mean and
    spread stay as they are, one bound would clear ``-margin``; None when the spread is unknown (one
    seed), the mean sits on the margin, or 1000 would not do.
    """

    num_seeds: int
    mean_difference: float
    low: float
    high: float
    p_value_not_worse: float
    p_value_worse: float
    run_standard_error: float | None
    item_standard_error: float
    seeds_to_decide: int | None


@final
class RunSpread(msgspec.Struct, frozen=True, kw_only=True):
    """Standard deviation of a difference over seeds, and the degrees of freedom behind it."""

    standard_deviation: float
    degrees_of_freedom: int


@final
class _Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that makes the mean difference uncertain; ``own`` is None with one seed."""

    num_seeds: int
    own: float | None
    pooled: RunSpread | None
    item_standard_error: float
    num_samples: int | None

    def run(self, value: float) -> RunSpread | None:
        """Of one seed, were the true difference ``value``; None with one seed."""
        if self.own is None:
            return None
        least = 0.0 if self.num_samples is None else _least_deviation(value, self.num_samples)
        own_df = self.num_seeds - 1
        if self.pooled is None:
            return RunSpread(standard_deviation=max(self.own, least), degrees_of_freedom=own_df)
        known = max(self.pooled.standard_deviation, least)
        if self.own > known:
            return RunSpread(standard_deviation=self.own, degrees_of_freedom=own_df)
        return RunSpread(
            standard_deviation=known, degrees_of_freedom=self.pooled.degrees_of_freedom
        )

    def item_error(self, value: float) -> float:
        """Standard error that more seeds don't shrink, were the true difference ``value``."""
        if self.own is None and self.num_samples is not None:
            return max(self.item_standard_error, _least_deviation(value, self.num_samples))
        return self.item_standard_error

    def half_width(self, value: float, tail: float) -> float:
        """Half-width that leaves ``tail`` outside, were the true difference ``value``."""
        item = normal_quantile(tail) * self.item_error(value)
        run = self.run(value)
        if run is None:
            return item
        quantile = t_quantile(tail, run.degrees_of_freedom)
        return float(np.hypot(quantile * run.standard_deviation / np.sqrt(self.num_seeds), item))

    def lower_bound(self, mean: float, tail: float) -> float:
        """The lowest value that the mean difference doesn't refute."""
        if self.num_samples is None:
            return mean - self.half_width(mean, tail)

        def excess(value: float) -> float:
            return mean - value - self.half_width(value, tail)

        if excess(-1.0) <= 0:
            return -1.0
        # Just below the mean: with a mean and a spread of 0, the mean itself is a root as well.
        top = mean - _HAIR
        return find_root(excess, -1.0, top) if excess(top) < 0 else mean

    def p_value(self, mean: float, limit: float) -> float:
        """One-sided p-value against ``limit`` for a mean beyond it, by inverting the bound."""
        gap = abs(mean - limit)
        if gap == 0:
            return 0.5
        if self.half_width(limit, 0.25) == 0:
            return 0.0

        def excess(log10_p: float) -> float:
            return self.half_width(limit, 10.0**log10_p) - gap

        if excess(_LOWEST_LOG10_P) <= 0:
            return 0.0
        return 10.0 ** find_root(excess, _LOWEST_LOG10_P, float(np.log10(0.5)))


def measure_noninferiority(
    differences: NDArray[np.float64],
    *,
    margin: float,
    confidence: float = 0.95,
    item_standard_error: float = 0.0,
    num_samples: int | None = None,
    pooled: RunSpread | None = None,
) -> NonInferiority:
    """Test whether the mean of ``differences`` lies above ``-margin``.

    ``differences`` has shape ``(num_seeds,)``: candidate minus baseline, higher is better.
    ``item_standard_error`` comes from ``paired_item_standard_error``. ``num_samples`` is given when
    a difference is one of proportions over so many samples. ``pooled``, from ``pool_run_spread``,
    is what several classes together say about the spread of one: the larger of it and the spread
    of ``differences`` is used, with its own degrees of freedom.

    One seed without any ``item_standard_error`` or ``num_samples`` says nothing: (-inf, inf).

    Raises ``EvidenceError`` without differences or when one is not finite, ``UsageError`` for a
    negative margin or a confidence outside 0.5 to 1.
    """
    _check_request(differences, margin, confidence)
    num_seeds = len(differences)
    mean = float(np.mean(differences))
    tail = 1 - confidence
    spread = _Spread(
        num_seeds=num_seeds,
        own=float(np.std(differences, ddof=1)) if num_seeds > 1 else None,
        pooled=pooled if num_seeds > 1 else None,
        item_standard_error=item_standard_error,
        num_samples=num_samples,
    )
    low, high, p_not_worse, p_worse = -np.inf, np.inf, 1.0, 1.0
    if num_seeds > 1 or item_standard_error > 0 or num_samples is not None:
        low = spread.lower_bound(mean, tail)
        high = -spread.lower_bound(-mean, tail)
        p_value = spread.p_value(mean, -margin)
        p_not_worse = p_value if mean >= -margin else 1 - p_value
        p_worse = 1 - p_not_worse
    at_mean, at_margin = spread.run(mean), spread.run(-margin)
    run_standard_error = seeds_to_decide = None
    if at_mean is not None and at_margin is not None:
        run_standard_error = at_mean.standard_deviation / float(np.sqrt(num_seeds))
        seeds_to_decide = repetitions_to_decide(
            gap=abs(mean + margin),
            standard_deviation=at_margin.standard_deviation,
            tail=tail,
            fixed_half_width=normal_quantile(tail) * spread.item_error(-margin),
            df_factor=at_margin.degrees_of_freedom // (num_seeds - 1),
        )
    return NonInferiority(
        num_seeds=num_seeds,
        mean_difference=mean,
        low=low,
        high=high,
        p_value_not_worse=p_not_worse,
        p_value_worse=p_worse,
        run_standard_error=run_standard_error,
        item_standard_error=spread.item_error(mean),
        seeds_to_decide=seeds_to_decide,
    )


def paired_item_standard_error(differences_per_item: NDArray[np.float64]) -> float:
    """The error of the mean difference that more seeds on the same samples can't shrink.

    ``differences_per_item`` has shape ``(num_seeds, num_samples)``. With one seed: the plain
    standard error over samples. 0 for a single sample: its spread is unknown.
    """
    num_seeds, num_samples = differences_per_item.shape
    if num_samples < 2:
        return 0.0
    item_means = differences_per_item.mean(axis=0)
    mean_square_items = num_seeds * float(item_means.var(ddof=1))
    if num_seeds == 1:
        return float(np.sqrt(mean_square_items / num_samples))
    excess = mean_square_items - _mean_square_residual(differences_per_item)
    return float(np.sqrt(max(0.0, excess) / (num_seeds * num_samples)))


def flip_standard_deviation(differences_per_item: NDArray[np.float64]) -> float:
    """Spread over seeds of one seed's mean difference, if each sample flipped on its own.

    ``differences_per_item`` has shape ``(num_seeds, num_samples)``; 0 where that is too few to
    tell. Runs really vary more: samples flip together (Jordan, On the variance of neural network
    training, 2023, arXiv 2304.01910).
    """
    num_seeds, num_samples = differences_per_item.shape
    if num_seeds < 2 or num_samples < 2:
        return 0.0
    return float(np.sqrt(_mean_square_residual(differences_per_item) / num_samples))


def pool_run_spread(
    own: NDArray[np.float64], flips: NDArray[np.float64], *, num_seeds: int
) -> tuple[RunSpread, ...]:
    """What all classes together say about the spread over seeds of each; needs two seeds.

    ``own`` and ``flips`` have shape ``(num_classes,)``: the standard deviation over seeds, and
    ``flip_standard_deviation``. A few seeds tell a class's spread badly, but its flips well, and
    how much more than its flips a class varies is much alike for all: one factor,
    ``sum(own^2) / sum(flips^2)``, at least 1, for all classes.

    Degrees of freedom: ``(num_classes - 1) * (num_seeds - 1)``, at least ``num_seeds - 1``: what
    one class gains another loses, so one class in the sum is not free.
    """
    flip_variances = flips**2
    total = float(flip_variances.sum())
    factor = max(1.0, float((own**2).sum()) / total) if total > 0 else 1.0
    df = max(1, len(own) - 1) * (num_seeds - 1)
    return tuple(
        RunSpread(standard_deviation=float(deviation), degrees_of_freedom=df)
        for deviation in np.sqrt(factor * flip_variances)
    )


def _mean_square_residual(differences_per_item: NDArray[np.float64]) -> float:
    num_seeds, num_samples = differences_per_item.shape
    residuals = (
        differences_per_item
        - differences_per_item.mean(axis=0, keepdims=True)
        - differences_per_item.mean(axis=1, keepdims=True)
        + differences_per_item.mean()
    )
    return float((residuals**2).sum()) / ((num_seeds - 1) * (num_samples - 1))


def _least_deviation(value: float, num_samples: int) -> float:
    """Least standard deviation of one run's difference of proportions, were ``value`` true."""
    share = min(abs(value), 0.5)  # no less beyond one half, so that it only grows with the value
    return float(np.sqrt(share * (1 - share) / num_samples))


def _check_request(differences: NDArray[np.float64], margin: float, confidence: float) -> None:
    if not 0.5 < confidence < 1:
        raise UsageError(
            f"confidence is {confidence}, expected a number between 0.5 and 1, such as 0.95."
        )
    if not (np.isfinite(margin) and margin >= 0):
        raise UsageError(f"the margin is {margin}, expected a number that is not negative.")
    if len(differences) == 0:
        raise EvidenceError(
            "there is no difference between the arms to test, expected one per seed. "
            "Finish a run of both arms with the same seed."
        )
    wrong = np.flatnonzero(~np.isfinite(differences))
    if len(wrong):
        raise EvidenceError(
            f"the difference of seed number {wrong[0]} is {differences[wrong[0]]}, expected a "
            "finite number. Judge runs that diverged before testing how far they are apart."
        )
