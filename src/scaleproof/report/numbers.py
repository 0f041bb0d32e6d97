"""Numbers as people read them: the one place where a report rounds.

A number that is missing or not finite is a word or a dash, never ``nan``.
"""

import math

from typing_extensions import TypeIs

from scaleproof.checks import wording
from scaleproof.checks.wording import counted as counted
from scaleproof.checks.wording import listed as listed

MISSING = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """``0.8168`` as ``81.7 %``."""
    if not _is_number(share):
        return MISSING
    return f"{_signless_zero(100 * share, digits)} %"


def percent_change(share: float | None, digits: int = 1) -> str:
    """A difference of two shares, with its sign, in percentage points: ``+1.2 pp``."""
    if not _is_number(share):
        return MISSING
    return f"{_signed(100 * share, digits)} pp"


def percent_relative(share: float | None, digits: int = 1) -> str:
    """A change relative to what was before, with its sign: ``−45.1 %``."""
    if not _is_number(share):
        return MISSING
    return f"{_signed(100 * share, digits)} %"


def percent_interval(low: float, high: float) -> str:
    """``37.9 % to 42.4 %``; a side that is not finite is "unbounded"."""
    return f"{_bound(low, percent(low))} to {_bound(high, percent(high))}"


def plain(value: float | None, digits: int = 3) -> str:
    """A loss or a score between 0 and 1: ``0.563``."""
    if not _is_number(value):
        return MISSING
    return _signless_zero(value, digits)


def plain_change(value: float | None, digits: int = 3) -> str:
    """A difference of two such numbers, with its sign."""
    return _signed(value, digits) if _is_number(value) else MISSING


def times(factor: float | None) -> str:
    """``1.847`` as ``1.85×``."""
    return wording.times(factor) if _is_number(factor) else MISSING


def times_interval(low: float, high: float) -> str:
    return f"{_bound(low, times(low))} to {_bound(high, times(high))}"


def seconds(time_s: float | None) -> str:
    """Three significant digits and the unit that suits: ``12.4 ms``, ``7.02 s``, ``3 min 4 s``."""
    if not _is_number(time_s):
        return MISSING
    if abs(time_s) < 1e-3:
        return f"{_significant(1e6 * time_s)} µs"
    if abs(time_s) < 1:
        return f"{_significant(1e3 * time_s)} ms"
    if abs(time_s) < 120:
        return f"{_significant(time_s)} s"
    minutes, rest_s = divmod(round(time_s), 60)
    if minutes < 120:
        return f"{minutes} min {rest_s} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def megabytes(num_bytes: int) -> str:
    """``20 MB``: millions of bytes, one decimal below 10."""
    value = num_bytes / 1e6
    return f"{value:.1f} MB" if value < 10 else f"{value:,.0f} MB"


def count(number: int) -> str:
    """``50,000``."""
    return f"{number:,}"


def amount(value: float, noun: str) -> str:
    """As ``counted`` for what need not be whole: ``0.5 epochs``."""
    return f"{value:g} {noun}{'' if value == 1 else 's'}"


def rate(value: float) -> str:
    """A learning rate, three significant digits: ``0.00141``."""
    return f"{value:.3g}"


def shortened(text: str, most: int) -> str:
    """Cut in the middle, where names differ least, to ``most`` characters."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def _is_number(value: float | None) -> TypeIs[float]:
    return value is not None and math.isfinite(value)


def _bound(value: float, text: str) -> str:
    return text if math.isfinite(value) else "unbounded"


def _signless_zero(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _significant(value: float, digits: int = 3) -> str:
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")
