# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
"""How sure a share is: k of n samples, or one share per repetition.

Formulas: Wilson's interval for k of n (Wilson, Probable inference, the law of succession and
statistical inference, JASA 22, 1927); the exact binomial tail ``P(X <= k)`` and ``P(X >= k)``;
the t-interval ``mean +- t * s / sqrt(n)`` for repetitions; Fisher's exact test that one share is
larger than another; Holm's step-down correction (Holm, A simple sequentially rejective multiple
test procedure, Scand. J. Stat. 6, 1979).

Assumes independent samples, and for the t-interval repetitions that are about normal.

What the numbers do not mean: an interval for k of n says nothing about another seed, and an
interval over seeds nothing about other evaluation samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr, bdtrc, stdtr, stdtrit
from scipy.stats import fisher_exact
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


def wilson_interval(num_hits: float, num_samples: float, *, error: float) -> tuple[float, float]:
    """Two-sided interval of ``num_hits / num_samples`` that misses with probability ``error``."""
    limits: Any = proportion_confint(num_hits, num_samples, alpha=error, method="wilson")
    return float(limits[0]), float(limits[1])


def chance_of_at_most(num_hits: int, num_samples: int, share: float) -> float:
    """``P(X <= num_hits)`` for ``num_samples`` tries with probability ``share`` each."""
    return float(bdtr(num_hits, num_samples, share))


def chance_of_at_least(num_hits: int, num_samples: int, share: float) -> float:
    """``P(X >= num_hits)`` for ``num_samples`` tries with probability ``share`` each."""
    return 1.0 if num_hits <= 0 else float(bdtrc(num_hits - 1, num_samples, share))


def mean_interval(values: Sequence[float], *, error: float) -> tuple[float, float]:
    """Two-sided t-interval of the mean of two or more values; of no width when all are equal."""
    mean, standard_error = _mean_and_error(values)
    half_width = float(stdtrit(len(values) - 1, 1 - error / 2)) * standard_error
    return mean - half_width, mean + half_width


def chance_mean_reaches(limit: float, values: Sequence[float]) -> float:
    """One-sided p-value of two or more values with a mean this far below ``limit``."""
    mean, standard_error = _mean_and_error(values)
    if standard_error == 0:
        return 1.0 if mean >= limit else 0.0
    return float(stdtr(len(values) - 1, (mean - limit) / standard_error))


def chance_of_larger_share(hits: int, samples: int, other_hits: int, other_samples: int) -> float:
    """One-sided p-value (Fisher's exact test) of ``hits / samples`` above the other share."""
    table = [[hits, samples - hits], [other_hits, other_samples - other_hits]]
    result: Any = fisher_exact(table, alternative="greater")
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Each p-value corrected for the number of them; the order is kept."""
    if not p_values:
        return ()
    result: Any = multipletests(p_values, method="holm")
    return tuple(float(p) for p in result[1])


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    array = np.asarray(values, dtype=np.float64)
    assert array.size >= 2, "a spread needs two values"
    if np.ptp(array) == 0:  # the mean of equal floats may differ from them in the last digit
        return float(array[0]), 0.0
    return float(array.mean()), float(array.std(ddof=1)) / len(array) ** 0.5
