"""One Vega-Lite chart as an SVG element that lives inside an HTML page: it takes the page's
colours, scales to the width it is given and needs nothing from outside."""

import re
from typing import Any

import vl_convert
from markupsafe import Markup

from scaleproof.report import numbers, words

AnyChart = Any
"""A chart of Altair's, whose own types are incomplete."""

WIDTH = 340
"""Logical width: about what a phone shows, so that text keeps its size there."""
FONT_SIZE = 11

# Vega writes colours as they are, so they can be names that the page's style sheet gives a value,
# one in light and one in dark mode.
BASELINE = "var(--baseline)"
CANDIDATE = "var(--candidate)"
INK = "currentColor"

_ROOT = re.compile(r"\A<svg [^>]*viewBox=\"([-\d. ]+)\"[^>]*>")
_ROLES = re.compile(r' (?:role="graphics-[a-z]+"|aria-[a-z]+="[a-z ]*")')


_LOOK: dict[str, Any] = {
    "width": WIDTH,
    "padding": 2,
    "autosize": {"type": "fit", "contains": "padding"},
    "config": {
        "background": "transparent",
        # The width that vl-convert measures text with.
        "font": "Arial, Helvetica, sans-serif",
        "aria": False,
        "view": {"stroke": None},
        "text": {"color": INK, "fontSize": FONT_SIZE},
        "axis": {
            "labelColor": INK,
            "titleColor": INK,
            "labelFontSize": FONT_SIZE,
            "titleFontSize": FONT_SIZE,
            "titleFontWeight": "normal",
            "gridColor": "var(--grid)",
            "domainColor": "var(--grid)",
            "tickColor": "var(--grid)",
        },
    },
}


def to_svg(chart: AnyChart, *, key: str, title: str, description: str) -> Markup:
    """The chart as markup; ``title`` and ``description`` are what a screen reader says of it."""
    spec: dict[str, Any] = chart.to_dict()
    drawn = vl_convert.vegalite_to_svg(spec | _LOOK)
    root = _ROOT.match(drawn)
    assert root is not None and "id=" not in drawn, "the SVG is not what vl-convert used to write"
    body = _ROLES.sub("", drawn[root.end() :])
    title_id, description_id = f"{key}-title", f"{key}-description"
    head = Markup(
        '<svg viewBox="{}" role="img" aria-labelledby="{} {}"><title id="{}">{}</title>'
        '<desc id="{}">{}</desc>'
    ).format(root[1], title_id, description_id, title_id, title, description_id, description)
    return head + Markup(body)


def unique_labels(names: tuple[str, ...], most: int) -> tuple[str, ...]:
    """Names cut to ``most`` characters, told apart by their index where the cut made them equal."""
    short = [numbers.shortened(words.visible(name), most) for name in names]
    return tuple(
        label if short.count(label) == 1 else f"{index} {label}"
        for index, label in enumerate(short)
    )
