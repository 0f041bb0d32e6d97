# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
"""The functions of scipy that intervals need, with types: scipy has none."""

from collections.abc import Callable
from typing import cast

from scipy.optimize import brentq
from scipy.special import ndtri, stdtr, stdtrit


def normal_quantile(tail: float) -> float:
    """The point a standard normal variable exceeds with probability ``tail``."""
    return -float(ndtri(tail))


def t_quantile(tail: float, df: int) -> float:
    """The point a t variable with ``df`` degrees of freedom exceeds with probability ``tail``."""
    return -float(stdtrit(df, tail))


def t_probability_below(value: float, df: int) -> float:
    """Probability that a t variable with ``df`` degrees of freedom is below ``value``."""
    return float(stdtr(df, value))


def find_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where ``function``, of opposite signs at ``low`` and ``high``, is 0 (Brent's method)."""
    return cast(float, brentq(function, low, high, xtol=1e-14))
