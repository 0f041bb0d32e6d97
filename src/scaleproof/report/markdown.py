"""The report as GitHub-flavoured Markdown, for a pull request or a job summary.

Text from the evidence can't become markup, a table border, a mention or a link to an issue.
"""

import re
from collections.abc import Iterable

from scaleproof.report import checked_words, observed_tables, tables, words
from scaleproof.report.numbers import counted
from scaleproof.report.summary import Summary
from scaleproof.report.tables import Table
from scaleproof.verdict.answers import Decision

_DECISION_MARKS = {Decision.ADOPT: "✅", Decision.REJECT: "❌", Decision.UNDECIDED: "❔"}
_MOST_CONFUSIONS = 5
_SPECIAL = re.compile(r"([\\`*_\[\]~|#$])")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_MENTION = re.compile(r"@(?=\w)|(?<=\\#)(?=\d)|(?<=http)(?=s?://)|(?<=www)(?=\.)")


def render(summary: Summary) -> str:
    """The whole report, ending in a line feed."""
    verdict = summary.verdict
    mark, word = _DECISION_MARKS[words.TONES[verdict.standing]], verdict.standing.word
    blocks = [
        f"## {mark} {word}: {_escape(words.reason(verdict))}",
        _escape(words.title(summary)),
        _answers(summary),
        _escape(words.not_asked(summary)),
        *(f"> **Note:** {_escape(notice)}" for notice in words.notices(summary)),
        *([] if words.trained_nothing(summary) else ["### Evidence", *_evidence(summary)]),
        *_findings(words.shown_groups(summary)),
        *_next_steps(verdict.next_steps),
        _details("Arms and environment", [tables.arms(summary), tables.environment(summary)]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _answers(summary: Summary) -> str:
    table = Table(
        title="",
        columns=("Question", "Answer", "Why"),
        rows=tuple(
            (words.QUESTIONS[answer.question], words.ANSWERS[answer.answer], answer.sentence)
            for answer in words.shown_answers(summary)
        ),
        numeric=False,
    )
    return _table(table) if table.rows else ""


def _evidence(summary: Summary) -> Iterable[str]:
    yield _titled(tables.side_by_side(summary))
    yield _escape(words.quality_source(summary))
    yield _titled(tables.speed(summary))
    yield _escape(words.speed_source(summary))
    yield "\n".join(f"- {_escape(line)}" for line in words.learning_rates(summary))
    yield "\n\n".join(map(_escape, checked_words.sentences(summary.checked)))
    yield _titled(checked_words.replays_table(summary.checked))
    yield _titled(observed_tables.what_ran(summary))
    for table in observed_tables.phases(summary):
        yield _titled(table)
    yield "\n\n".join(_escape(sentence) for sentence in observed_tables.cost(summary))
    yield _details(
        "Class by class",
        [
            tables.by_class(summary, ("recall", "precision", "f1")),
            tables.confusions(summary, most=_MOST_CONFUSIONS),
        ],
        note=words.classes_source(summary),
    )


def _findings(groups: words.FindingGroups) -> Iterable[str]:
    shown = words.told_once((*groups.problems, *groups.open))
    if shown:
        yield "### What the checks found"
        yield "\n".join(_finding(finding, groups) for finding in shown)
    quiet = words.told_once((*groups.consequences, *groups.passes, *groups.not_applicable))
    if quiet:
        rows = tuple((f.names, f.outcome, f.sentence) for f in quiet)
        passed = Table(title="", columns=("Check", "Outcome", "Why"), rows=rows, numeric=False)
        num_passed, num_moot = len(groups.passes), len(groups.not_applicable)
        heading = words.passes_heading(groups)
        num_sound = f" ({heading.partition(': ')[2]})" if ":" in heading else ""
        yield _details(
            f"{counted(num_passed, 'check')} passed{num_sound}, {num_moot} "
            f"{'does' if num_moot == 1 else 'do'} not apply",
            [passed],
        )


def _finding(finding: words.SharedFinding, groups: words.FindingGroups) -> str:
    parts = [
        f"- **{finding.outcome}: {_escape(finding.names)}.**",
        _escape(finding.sentence),
        f"*To do:* {_escape(finding.remedy)}" if finding.remedy else "",
        _escape(words.consequences_of(finding, groups.consequences)),
    ]
    return " ".join(part for part in parts if part)


def _next_steps(steps: tuple[str, ...]) -> Iterable[str]:
    if steps:
        yield "### What to do next"
        yield "\n".join(f"{number}. {_escape(step)}" for number, step in enumerate(steps, start=1))


def _details(title: str, contents: list[Table | None], note: str = "") -> str:
    """Folded away until clicked; nothing when there is nothing in it."""
    shown = [_titled(table) for table in contents if table is not None]
    if not shown:
        return ""
    parts = [f"<details><summary>{_escape(title)}</summary>", *shown, _escape(note), "</details>"]
    return "\n\n".join(part for part in parts if part)


def _titled(table: Table | None) -> str:
    if table is None:
        return ""
    return f"**{_escape(table.title)}**\n\n{_table(table)}" if table.title else _table(table)


def _table(table: Table) -> str:
    rule = [":--", *(("--:" if table.numeric else ":--") for _ in table.columns[1:])]
    lines = [map(_escape, table.columns), rule, *(map(_escape, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    line = words.visible(text).translate(_ENTITIES)
    return _MENTION.sub(r"\g<0><!-- -->", _SPECIAL.sub(r"\\\1", line))
