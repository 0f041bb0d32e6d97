"""How checks put numbers and lists into a sentence: rounded here and nowhere else."""

from collections.abc import Sequence


def percent(share: float, digits: int = 1) -> str:
    """``0.986`` as ``98.6 %``."""
    return f"{100 * share:.{digits}f} %"


def short_percent(share: float) -> str:
    """One decimal only where it says something: ``0.12`` as ``12 %``, ``0.125`` as ``12.5 %``."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def signed(value: float, digits: int) -> str:
    """``value`` with its sign; what rounds to zero is ``+0.0``, never a negative zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def times(factor: float) -> str:
    """``1.847`` as ``1.85×``."""
    return f"{factor:.2f}×"


def counted(number: int, noun: str) -> str:
    """``1 sample``, ``1,200 samples``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: Sequence[object], *, most: int = 3) -> str:
    """``a, b and c``; beyond ``most`` items, ``a, b, c and 4 more``."""
    words = [str(item) for item in items[:most]]
    if len(items) > most:
        words.append(f"{len(items) - most:,} more")
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
