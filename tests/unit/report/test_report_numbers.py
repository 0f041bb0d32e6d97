import math

import pytest

from scaleproof.report import numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.percent(0.81666), "81.7 %"),
        (numbers.percent(None), numbers.MISSING),
        (numbers.percent(math.nan), numbers.MISSING),
        (numbers.percent_change(-0.0123), "−1.2 pp"),
        (numbers.percent_change(-1e-9), "0.0 pp"),
        (numbers.percent_relative(0.5), "+50.0 %"),
        (numbers.percent_interval(-math.inf, 0.4), "unbounded to 40.0 %"),
        (numbers.times_interval(1.79, math.inf), "1.79× to unbounded"),
        (numbers.plain(-0.0001), "0.000"),
        (numbers.plain(math.inf), numbers.MISSING),
        (numbers.seconds(0), "0 µs"),
        (numbers.seconds(0.01244), "12.4 ms"),
        (numbers.seconds(7.0234), "7.02 s"),
        (numbers.seconds(119.6), "120 s"),
        (numbers.seconds(184), "3 min 4 s"),
        (numbers.seconds(9_000), "2 h 30 min"),
        (numbers.seconds(None), numbers.MISSING),
        (numbers.counted(1, "device"), "1 device"),
        (numbers.counted(50_000, "device"), "50,000 devices"),
        (numbers.amount(0.5, "epoch"), "0.5 epochs"),
        (numbers.rate(0.00141421), "0.00141"),
        (numbers.listed(["a", "b", "c"], most=2), "a, b and 1 more"),
        (numbers.listed(["a"]), "a"),
        (numbers.listed([]), ""),
        (numbers.shortened("short", 5), "short"),
    ],
)
def test_numbers_read_as_written(text, expected):
    assert text == expected


def test_shortened_keeps_both_ends_and_the_limit():
    text = numbers.shortened("a" * 100 + "z", 20)
    assert len(text) == 20
    assert text.startswith("aaa") and text.endswith("az") and "…" in text
