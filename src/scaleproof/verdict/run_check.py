"""Runs one check on one study: whatever happens, a finding comes out."""

import traceback
from typing import Any

import msgspec

from scaleproof.checks.check import AbstractCheck, Judgement, Need, Outcome
from scaleproof.checks.needs import BASELINE, OWN_DEVICES
from scaleproof.errors import EvidenceError, UsageError
from scaleproof.evidence.study import Study
from scaleproof.verdict.answers import Finding

_REMEDIES = {
    BASELINE: "Compare with one device: scaleproof compare, with --devices 1,N.",
    OWN_DEVICES: "Run the study again without --share-device, a device for every rank: ranks that "
    "share one say nothing about speed.",
}
"""What would make the question arise. Other structural needs are as they should be."""


def run_check(check: AbstractCheck[Any], study: Study, *, blocks: bool) -> Finding:
    """Look at the needs, measure, judge.

    ``EvidenceError`` and ``UsageError`` pass through: then nothing can be judged. Any other
    exception of the check becomes the outcome ``error``.
    """
    measurement: dict[str, Any] = {}
    unmet: Need | None = None
    try:
        unmet = next((need for need in check.needs if not need.is_met(study)), None)
        if unmet is None:
            measured = check.measure(study)
            measurement = msgspec.to_builtins(measured)
            judgement = check.judge(measured)
        else:
            judgement = _judge_unmet(unmet, study)
    except (EvidenceError, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what others found
        judgement = _judge_bug(check, error)
    return Finding(
        check=check.name,
        question=check.question,
        family=check.family,
        outcome=judgement.outcome,
        sentence=judgement.sentence,
        remedy=judgement.remedy,
        p_value=judgement.p_value,
        is_evidence_missing=(
            unmet is not None
            and unmet.kind == "evidence"
            and judgement.outcome is Outcome.NOT_APPLICABLE
        ),
        blocks=blocks,
        measurement=measurement,
    )


def _judge_unmet(need: Need, study: Study) -> Judgement:
    why = need.why(study) if need.why is not None else ""
    reason = f": {why}" if why else ""
    if need.kind == "structure":
        return Judgement(
            outcome=Outcome.NOT_APPLICABLE,
            sentence=f"This needs {need.text}{reason}.",
            remedy=_REMEDIES.get(need, ""),
        )
    return Judgement(
        outcome=Outcome.NOT_APPLICABLE,
        sentence=f"Missing: {need.text}{reason}.",
        remedy="Run the study again to its end and copy the whole folder.",
    )


def _judge_bug(check: AbstractCheck[Any], error: Exception) -> Judgement:
    last_line = traceback.format_exception_only(error)[-1].strip()
    return Judgement(
        outcome=Outcome.ERROR,
        sentence=f"The check {check.name} broke: {last_line}.",
        remedy="This is a bug of ours: report it with the study.",
    )
