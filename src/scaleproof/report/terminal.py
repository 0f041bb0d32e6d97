"""The report on a terminal: the verdict, the four answers, the evidence, what to do next.

Made for 80 columns, with and without colour. Nothing from the evidence is ever read as markup or
as a control sequence of the terminal.
"""

import rich.box
import rich.table
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from scaleproof.report import tables, words
from scaleproof.report.summary import Summary
from scaleproof.report.tables import Table
from scaleproof.verdict.answers import Answer, Decision, Finding

_DECISION_STYLES = {
    Decision.ADOPT: "bold green",
    Decision.REJECT: "bold red",
    Decision.UNDECIDED: "bold yellow",
}
_ANSWER_STYLES = {
    Answer.YES: "green",
    Answer.NO: "red",
    Answer.UNDECIDED: "yellow",
    Answer.NOT_APPLICABLE: "dim",
}
_OUTCOME_STYLES = {
    "Fail": "bold red",
    "Check broke": "bold red",
    "Warning": "bold yellow",
    "Undecided": "yellow",
    "No evidence": "yellow",
}
_MOST_CONFUSIONS = 5
_ASCII = str.maketrans({"×": "x", "−": "-", "–": "-", "→": "->", "…": "...", "µ": "u"})


def render(summary: Summary, console: Console) -> None:
    """Print the report to ``console``."""
    _Terminal(console).render(summary)


class _Terminal:
    """Prints to one console, in characters that its encoding has."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def render(self, summary: Summary) -> None:
        self._verdict(summary)
        self._evidence(summary)
        self._next_steps(summary)

    def _verdict(self, summary: Summary) -> None:
        verdict = summary.verdict
        headline = self._text(
            f"{words.DECISIONS[verdict.decision].upper()}  {words.reason(verdict)}",
            _DECISION_STYLES[verdict.decision],
        )
        self._console.print(headline)
        self._console.print(self._text(words.title(summary), "dim"))
        self._console.print()
        grid = rich.table.Table.grid(padding=(0, 2))
        for answer in verdict.answers:
            grid.add_row(
                self._text(words.QUESTIONS[answer.question], "bold"),
                self._text(words.ANSWERS[answer.answer], _ANSWER_STYLES[answer.answer]),
                self._text(answer.sentence),
            )
        self._console.print(grid)
        for notice in words.notices(summary):
            self._console.print()
            self._console.print(self._text(notice, "yellow"))

    def _evidence(self, summary: Summary) -> None:
        self._heading("Evidence")
        self._table(tables.side_by_side(summary))
        self._note(words.quality_source(summary))
        self._table(tables.speed(summary))
        self._note(words.speed_source(summary))
        self._table(tables.by_class(summary, ("recall",)))
        self._note(words.classes_source(summary))
        self._table(tables.confusions(summary, most=_MOST_CONFUSIONS))
        for arm in summary.arms:
            self._note(f"{arm.name}: {words.learning_rate(arm)}")
        self._findings(words.group_findings(summary.verdict.findings))

    def _findings(self, groups: words.FindingGroups) -> None:
        if groups.problems or groups.open:
            self._heading("What the checks found")
        for finding in (*groups.problems, *groups.open):
            word = words.outcome_word(finding)
            line = self._text(f"{word}  ", _OUTCOME_STYLES[word]).append_text(
                self._text(finding.check, "bold")
            )
            self._console.print(line)
            self._indented(finding.sentence)
            if finding.remedy:
                self._indented(f"To do: {finding.remedy}")
        if groups.passes:
            self._heading("Checks that passed")
            self._lines(groups.passes, no_wrap=True)
        if groups.not_applicable:
            self._heading("Checks that do not apply")
            self._lines(groups.not_applicable, style="dim")

    def _next_steps(self, summary: Summary) -> None:
        if not summary.verdict.next_steps:
            return
        self._heading("What to do next")
        grid = rich.table.Table.grid(padding=(0, 1))
        for number, step in enumerate(summary.verdict.next_steps, start=1):
            grid.add_row(self._text(f"{number}."), self._text(step))
        self._console.print(grid)

    def _lines(
        self, findings: tuple[Finding, ...], *, style: str = "", no_wrap: bool = False
    ) -> None:
        name_width = max(len(finding.check) for finding in findings)
        rest_width = max(self._console.width - name_width - 2, 20)
        grid = rich.table.Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, min_width=name_width)
        grid.add_column(
            no_wrap=no_wrap,
            overflow="ellipsis" if no_wrap else "fold",
            max_width=rest_width if no_wrap else None,
        )
        for finding in findings:
            grid.add_row(self._text(finding.check, style), self._text(finding.sentence, style))
        self._console.print(grid)

    def _table(self, table: Table | None) -> None:
        if table is None:
            return
        printed = rich.table.Table(
            title=self._text(table.title, "bold"),
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for index, column in enumerate(table.columns):
            printed.add_column(
                self._text(column),
                justify="right" if table.numeric and index > 0 else "left",
                overflow="fold",
            )
        for row in table.rows:
            printed.add_row(*map(self._text, row))
        self._console.print()
        self._console.print(printed)

    def _heading(self, heading: str) -> None:
        self._console.print()
        self._console.print(self._text(heading, "bold underline"))

    def _note(self, note: str) -> None:
        if note:
            self._console.print(self._text(note, "dim"))

    def _indented(self, sentence: str) -> None:
        self._console.print(Padding(self._text(sentence), (0, 0, 0, 4)))

    def _text(self, text: str, style: str = "") -> Text:
        visible = words.visible(text)
        encoding = self._console.encoding
        if not encoding.lower().startswith("utf"):
            visible = visible.translate(_ASCII).encode(encoding, "replace").decode(encoding)
        return Text(visible, style=style)
