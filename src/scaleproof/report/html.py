"""The report as one self-contained HTML page: no script, nothing loaded from anywhere."""

import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from scaleproof.report import tables, words
from scaleproof.report.charts import draw_charts
from scaleproof.report.summary import Summary

_MOST_CONFUSIONS = 12
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:%|pp|µs|ms|s|min|h)(?!\w))")


def render(summary: Summary) -> str:
    """The whole page."""
    folder = files("scaleproof.report")
    template = _environment().from_string(
        folder.joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        css=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        summary=summary,
        verdict=summary.verdict,
        title=words.title(summary),
        words=words,
        tied=_tied,
        notices=words.notices(summary),
        groups=words.group_findings(summary.verdict.findings),
        charts=draw_charts(summary),
        side_by_side=tables.side_by_side(summary),
        speed=tables.speed(summary),
        by_class=tables.by_class(summary, ("recall", "precision", "f1")),
        confusions=tables.confusions(summary, most=_MOST_CONFUSIONS),
        matrices=_matrices(summary),
        arms=tables.arms(summary),
        environment=tables.environment(summary),
    )


def _matrices(summary: Summary) -> list[tables.Table]:
    quality = summary.quality
    if quality is None:
        return []
    arms = [arm for arm in (quality.baseline, quality.candidate) if arm is not None]
    found = (tables.matrix(quality, arm) for arm in arms)
    return [table for table in found if table is not None]


def _environment() -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _tied(cell: str) -> str:
    """A number and its unit stay on one line."""
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", cell)


def _finalize(value: Any) -> Any:
    """Every text but our own markup, before it is escaped."""
    return words.visible(value) if isinstance(value, str) and not _is_markup(value) else value


def _is_markup(value: str) -> bool:
    return isinstance(value, Markup)
