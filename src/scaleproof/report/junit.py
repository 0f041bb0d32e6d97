"""The report as JUnit XML, for continuous integration.

One test case per check, one for the runs and one for the verdict; the last one passes only on
*adopt* - that of a script observed alone on *sound* - so that a suite is green exactly when
scaleproof says yes. A fail that doesn't block, and whatever is undecided or not applicable, is a
skip with its reason.
"""

import re
from xml.etree import ElementTree

from scaleproof.checks.check import Outcome
from scaleproof.report import words
from scaleproof.report.summary import Summary
from scaleproof.verdict.answers import Decision, Finding

# What XML 1.0 has no way to write, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def render(summary: Summary) -> str:
    """A ``testsuites`` document with one suite."""
    cases = [
        *(_case_of(finding) for finding in summary.verdict.findings),
        _runs_case(summary),
        _verdict_case(summary),
    ]
    counts = {
        attribute: str(sum(case.find(tag) is not None for case in cases))
        for attribute, tag in _COUNTED.items()
    }
    counts = {"tests": str(len(cases)), **counts}
    root = ElementTree.Element("testsuites", {"name": "scaleproof", **counts})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": _legal(words.title(summary)),
            "timestamp": summary.created_at.removesuffix("+00:00"),
            **counts,
        },
    )
    suite.extend(cases)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _case_of(finding: Finding) -> ElementTree.Element:
    case = _case(finding.question.value, finding.check)
    match finding.outcome:
        case Outcome.PASS:
            ElementTree.SubElement(case, "system-out").text = _legal(finding.sentence)
        case Outcome.FAIL if finding.blocks:
            _add(case, "failure", finding.sentence, finding.remedy, kind="fail")
        case Outcome.ERROR:
            _add(case, "error", finding.sentence, finding.remedy, kind="check-broke")
        case _:
            sentence = f"{words.outcome_word(finding)}: {finding.sentence}"
            _add(case, "skipped", sentence, finding.remedy)
    return case


def _runs_case(summary: Summary) -> ElementTree.Element:
    case = _case("runs", "every-run-finished")
    failed = summary.verdict.failed_runs
    stopped = [f"{name} did not finish." for name in summary.verdict.unfinished_runs]
    if failed or stopped:
        _add(case, "error", " ".join((*failed, *stopped)), "", kind="run-failed")
    return case


def _verdict_case(summary: Summary) -> ElementTree.Element:
    verdict = summary.verdict
    case = _case("verdict", "sound" if summary.is_alone else "adopt")
    if words.TONES[verdict.standing] is Decision.ADOPT:
        ElementTree.SubElement(case, "system-out").text = _legal(verdict.headline)
    else:
        steps = "\n".join(verdict.next_steps)
        _add(case, "failure", verdict.headline, steps, kind=verdict.standing.value)
    return case


def _case(class_name: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": _legal(class_name), "name": _legal(name)})


def _add(
    case: ElementTree.Element, tag: str, sentence: str, remedy: str, *, kind: str = ""
) -> None:
    attributes = {"message": _legal(sentence)} | ({"type": kind} if kind else {})
    element = ElementTree.SubElement(case, tag, attributes)
    element.text = _legal(f"{sentence}\nTo do: {remedy}" if remedy else sentence)


def _legal(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
