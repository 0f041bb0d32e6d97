"""Every fault once, at its root: what another fault brought about is named there, and only there.

A check names the checks whose fault brings its own about (``consequence_of``).
"""

from collections.abc import Mapping, Sequence

import msgspec

from scaleproof.checks.check import Outcome
from scaleproof.checks.wording import listed
from scaleproof.verdict.answers import Finding


def trace_to_roots(
    findings: Sequence[Finding], causes: Mapping[str, Sequence[str]]
) -> list[Finding]:
    """The findings, those brought about by another no longer counting on their own.

    ``causes``: for each check, those that may bring its fault about; without cycles. A finding
    that blocks is taken back only for one that blocks too: what merely advises must not hide it.
    """
    failed = {finding.check: finding for finding in findings if finding.outcome is Outcome.FAIL}

    def roots(finding: Finding) -> tuple[str, ...]:
        direct = [failed[name] for name in causes.get(finding.check, ()) if name in failed]
        direct = [cause for cause in direct if cause.blocks or not finding.blocks]
        found = (name for cause in direct for name in roots(cause) or (cause.check,))
        return tuple(dict.fromkeys(found))

    roots_of = {
        finding.check: roots(finding)
        for finding in findings
        if finding.outcome in (Outcome.FAIL, Outcome.UNDECIDED)
    }
    traced: list[Finding] = []
    for finding in findings:
        own_roots = roots_of.get(finding.check, ())
        if own_roots:
            finding = msgspec.structs.replace(
                finding,
                outcome=Outcome.NOT_APPLICABLE,
                sentence=f"A consequence of {listed(own_roots)}: {finding.sentence}",
                remedy="",
                consequence_of=own_roots,
            )
        elif finding.outcome is Outcome.FAIL:
            brought = tuple(name for name, its in roots_of.items() if finding.check in its)
            finding = msgspec.structs.replace(finding, consequences=brought)
        traced.append(finding)
    return traced
