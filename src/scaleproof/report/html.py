"""The report as one self-contained HTML page: no script, nothing loaded from anywhere."""

import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from scaleproof.report import checked_words, observed_tables, tables, words
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
        answers=words.shown_answers(summary),
        notices=words.notices(summary),
        groups=words.shown_groups(summary),
        charts=draw_charts(summary),
        side_by_side=tables.side_by_side(summary),
        speed=tables.speed(summary),
        by_class=tables.by_class(summary, ("recall", "precision", "f1")),
        confusions=tables.confusions(summary, most=_MOST_CONFUSIONS),
        matrices=_matrices(summary),
        replayed=checked_words.sentences(summary.checked),
        replays=checked_words.replays_table(summary.checked),
        what_ran=observed_tables.what_ran(summary),
        phases=observed_tables.phases(summary),
        cost=observed_tables.cost(summary),
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


def _finalize(value: Any) -> Any:
    """Every text but our own markup, before it is escaped: nothing in it acts, and a number and
    its unit stay on one line."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", words.visible(value))
