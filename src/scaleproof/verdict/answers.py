"""What the judge hands to the reports: findings, answers to the four questions, the verdict."""

from enum import StrEnum
from typing import Any, final

import msgspec

from scaleproof.checks.check import Family, Outcome, Question


class Answer(StrEnum):
    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"
    NOT_APPLICABLE = "not-applicable"


class Decision(StrEnum):
    ADOPT = "adopt"
    REJECT = "reject"
    UNDECIDED = "undecided"


class Standing(StrEnum):
    """The word that a headline begins with. A comparison is decided; a script that was observed
    alone was found sound or not."""

    ADOPT = "adopt"
    REJECT = "reject"
    SOUND = "sound"
    NOT_SOUND = "not-sound"
    NOT_FIT = "not-fit"
    FAILED = "failed"
    """It ended with an error, or had to be ended, before anything could be said."""
    NO_TRAINING = "no-training"
    """No optimizer made a step, and no failure is known: there is nothing to judge."""
    UNDECIDED = "undecided"

    @property
    def word(self) -> str:
        return self.value.replace("-", " ").capitalize()


@final
class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check came to in one study.

    ``blocks``: a fail makes its question a no, and an undecided one keeps it from a yes. The
    profile decides which checks block. ``is_evidence_missing``: not applicable because a record
    is missing, not because the question doesn't arise.
    """

    check: str
    question: Question
    family: Family
    outcome: Outcome
    sentence: str
    remedy: str
    p_value: float | None
    is_evidence_missing: bool
    blocks: bool
    measurement: dict[str, Any]
    consequence_of: tuple[str, ...] = ()
    """Checks that failed and brought this about: then it is not applicable on its own."""
    consequences: tuple[str, ...] = ()
    """Checks that would have failed because of this one."""


@final
class QuestionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the four questions, answered; the sentence gives the deciding numbers."""

    question: Question
    answer: Answer
    sentence: str


@final
class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The whole judgement. ``headline`` gives the reason first; ``next_steps`` what to do."""

    decision: Decision
    standing: Standing
    headline: str
    answers: tuple[QuestionAnswer, ...]
    findings: tuple[Finding, ...]
    next_steps: tuple[str, ...]
    failed_runs: tuple[str, ...]
    """A sentence for each run that failed: run, rank, step, error."""
    unfinished_runs: tuple[str, ...]
    """Names of the runs that were interrupted or never began."""
