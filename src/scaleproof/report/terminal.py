"""The report on a terminal: the verdict, the four answers, the evidence, what to do next.

Made for 80 columns, with and without colour. Nothing from the evidence is ever read as markup or
as a control sequence of the terminal.
"""

import rich.box
import rich.table
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from scaleproof.report import checked_words, observed_tables, tables, words
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
        groups = words.shown_groups(summary)
        self._verdict(summary)
        if summary.checked is not None:  # one screen: the page has the rest
            self._checked(summary, groups)
            return
        if summary.is_alone:  # whether it is sound is all that was asked
            self._findings(groups)
            self._evidence(summary)
        else:
            self._evidence(summary)
            self._findings(groups)
        self._quiet_findings(groups)
        self._next_steps(summary)

    def _verdict(self, summary: Summary) -> None:
        verdict = summary.verdict
        headline = self._text(
            f"{verdict.standing.word.upper()}  {words.reason(verdict)}",
            _DECISION_STYLES[words.TONES[verdict.standing]],
        )
        self._console.print(headline)
        self._console.print(self._text(words.title(summary), "dim"))
        self._console.print()
        answers = words.shown_answers(summary)
        grid = rich.table.Table.grid(padding=(0, 2))
        for answer in answers:
            grid.add_row(
                self._text(words.QUESTIONS[answer.question], "bold"),
                self._text(words.ANSWERS[answer.answer], _ANSWER_STYLES[answer.answer]),
                self._text(answer.sentence),
            )
        if answers:
            self._console.print(grid)
        self._note(words.not_asked(summary))
        for notice in words.notices(summary):
            self._console.print()
            self._console.print(self._text(notice, "yellow"))

    def _checked(self, summary: Summary, groups: words.FindingGroups) -> None:
        for sentence in checked_words.sentences(summary.checked):
            self._console.print()
            self._note(sentence)
        self._findings(groups)
        passed = [finding.check for finding in groups.passes]
        if passed:
            self._console.print()
            self._note(f"Passed: {', '.join(passed)}.")
        if groups.not_applicable:
            self._note(f"{len(groups.not_applicable)} more do not apply; the report says why.")
        self._next_steps(summary)

    def _evidence(self, summary: Summary) -> None:
        if summary.is_alone and summary.observed is not None and not summary.observed.arms:
            return  # nothing trained
        self._heading("Evidence")
        self._table(tables.side_by_side(summary))
        self._note(words.quality_source(summary))
        self._table(tables.speed(summary))
        self._note(words.speed_source(summary))
        self._table(tables.by_class(summary, ("recall",)))
        self._note(words.classes_source(summary))
        self._table(tables.confusions(summary, most=_MOST_CONFUSIONS))
        for line in words.learning_rates(summary):
            self._note(line)
        self._observed(summary)

    def _observed(self, summary: Summary) -> None:
        self._table(observed_tables.what_ran(summary))
        for table in observed_tables.phases(summary):
            self._table(table)
        for sentence in observed_tables.cost(summary):
            self._note(sentence)

    def _findings(self, groups: words.FindingGroups) -> None:
        if groups.problems or groups.open:
            self._heading("What the checks found")
        for finding in words.told_once((*groups.problems, *groups.open)):
            line = self._text(f"{finding.outcome}  ", _OUTCOME_STYLES[finding.outcome])
            self._console.print(line.append_text(self._text(finding.names, "bold")))
            self._indented(finding.sentence)
            if finding.remedy:
                self._indented(f"To do: {finding.remedy}")
            self._indented(words.consequences_of(finding, groups.consequences))

    def _quiet_findings(self, groups: words.FindingGroups) -> None:
        if groups.passes:
            self._heading(words.passes_heading(groups))
            self._lines(groups.passes)
        if groups.not_applicable:
            self._heading("Checks that do not apply")
        for finding in words.told_once(groups.not_applicable):
            self._note(finding.sentence)
            self._indented(finding.names, "dim")

    def _next_steps(self, summary: Summary) -> None:
        if not summary.verdict.next_steps:
            return
        self._heading("What to do next")
        grid = rich.table.Table.grid(padding=(0, 1))
        for number, step in enumerate(summary.verdict.next_steps, start=1):
            grid.add_row(self._text(f"{number}."), self._text(step))
        self._console.print(grid)

    def _lines(self, findings: tuple[Finding, ...]) -> None:
        """One line each, cut off where the console ends."""
        name_width = max(len(finding.check) for finding in findings)
        grid = rich.table.Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, min_width=name_width)
        grid.add_column(
            no_wrap=True,
            overflow="ellipsis",
            max_width=max(self._console.width - name_width - 2, 20),
        )
        for finding in findings:
            grid.add_row(self._text(finding.check), self._text(finding.sentence))
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

    def _indented(self, sentence: str, style: str = "") -> None:
        if sentence:
            self._console.print(Padding(self._text(sentence, style), (0, 0, 0, 4)))

    def _text(self, text: str, style: str = "") -> Text:
        visible = words.visible(text)
        encoding = self._console.encoding
        if not encoding.lower().startswith("utf"):
            visible = visible.translate(_ASCII).encode(encoding, "replace").decode(encoding)
        return Text(visible, style=style)
