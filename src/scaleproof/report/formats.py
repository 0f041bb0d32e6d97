"""The formats a report can have, by name."""

import io

from rich.console import Console

from scaleproof.errors import UsageError
from scaleproof.report import json_report, junit, markdown, terminal
from scaleproof.report.summary import Summary

FORMATS: tuple[str, ...] = ("terminal", "html", "json", "markdown", "junit")

_TERMINAL_WIDTH = 80


def render_text(summary: Summary, format: str) -> str:  # noqa: A002 - the option's own name
    """The report in one of ``FORMATS``; the terminal's without colour and 80 columns wide.

    Raises ``UsageError`` for another name.
    """
    match format:
        case "terminal":
            return _terminal(summary)
        case "html":
            # Deferred: jinja2, altair and vl-convert take half a second that no other format needs.
            from scaleproof.report import html

            return html.render(summary)
        case "json":
            return json_report.render(summary)
        case "markdown":
            return markdown.render(summary)
        case "junit":
            return junit.render(summary)
        case _:
            raise UsageError(
                f"there is no report format {format!r}, expected one of {', '.join(FORMATS)}. "
                "Choose one with --format."
            )


def _terminal(summary: Summary) -> str:
    file = io.StringIO()
    console = Console(file=file, width=_TERMINAL_WIDTH, color_system=None, force_terminal=False)
    terminal.render(summary, console)
    return file.getvalue()
