"""How many repetitions a t-interval needs to clear a limit.

Formula: the smallest n with ``sqrt((t(df(n)) * s)^2 / n + h^2) <= g``, where ``g`` is how far the
mean lies from the limit, ``s`` the standard deviation of one repetition, ``t`` the quantile of
Student's distribution, ``df(n) = f * (n - 1)`` and ``h`` a half-width that repeating can't shrink.
Source: the inverted t-interval (Cochran, Sampling Techniques, 3rd ed. 1977, section 4.4).

Assumes that the mean and the standard deviation seen so far are the true ones. They are not: the
number is a plan, not a promise, and after few repetitions it can be off by a factor of two.
"""

from bisect import bisect_left

import numpy as np

from scaleproof.stats.numerics import t_quantile

MAX_REPETITIONS = 1000
"""Nobody repeats a training more often; past it the answer is "this way can't decide"."""


def repetitions_to_decide(
    *,
    gap: float,
    standard_deviation: float,
    tail: float,
    fixed_half_width: float = 0.0,
    df_factor: int = 1,
) -> int | None:
    """Smallest number of repetitions, from 2 to ``MAX_REPETITIONS``, that decides; else None.

    ``gap`` is the absolute distance of the mean from the limit, in the unit of
    ``standard_deviation``; ``tail`` the probability left outside on the side of the limit (0.05
    for a one-sided bound of 95 %); ``df_factor`` the degrees of freedom each repetition adds.
    """
    if gap <= 0 or not np.isfinite(gap) or not np.isfinite(standard_deviation):
        return None

    def decides(number: int) -> bool:
        run = t_quantile(tail, df_factor * (number - 1)) * standard_deviation / np.sqrt(number)
        return bool(np.hypot(run, fixed_half_width) <= gap)

    # The half-width only shrinks with the number, so that bisection finds the smallest one.
    number = bisect_left(range(MAX_REPETITIONS + 1), x=True, lo=2, key=decides)
    return number if number <= MAX_REPETITIONS else None
