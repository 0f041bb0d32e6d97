"""What a check is: it measures without opinion, then judges what it measured.

A check is a frozen dataclass whose fields are its thresholds. Its docstring is its page, printed
by ``scaleproof explain NAME``, with the sections named in ``PAGE_SECTIONS``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Generic, Literal, TypeVar, final

import msgspec

from scaleproof.evidence.study import Study

PAGE_SECTIONS = (
    "What it looks for",
    "Why it matters",
    "How it decides",
    "What it can't see",
    "How to fix it",
    "References",
)


class Question(StrEnum):
    """The four questions of a verdict."""

    FASTER = "faster"
    AS_GOOD = "as-good"
    SOUND = "sound"
    FIT = "fit"


class Family(StrEnum):
    DATA = "data"
    GRADIENTS = "gradients"
    REPLICAS = "replicas"
    SCHEDULE = "schedule"
    QUALITY = "quality"
    SPEED = "speed"
    MEMORY = "memory"


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"
    """It looked, and the evidence can't tell."""
    NOT_APPLICABLE = "not-applicable"
    """A need is not met; the finding says which."""
    ERROR = "error"
    """The check itself broke. Only ``run_check`` makes it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something a check can't do without.

    ``kind`` says what an unmet need means: ``structure`` - the question doesn't arise (one rank
    has no replicas); ``evidence`` - it does, but the record that would answer it is missing, so
    nobody may conclude that all is well. ``why``: what the study itself says of why it is not met;
    empty when it says nothing.
    """

    text: str
    kind: Literal["structure", "evidence"]
    is_met: Callable[[Study], bool]
    why: Callable[[Study], str] | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a check concludes.

    ``sentence`` names the guilty rank, step, tensor or class with its numbers; ``remedy`` says
    what to do (empty for a pass). ``p_value``, for statistical checks that fail, is the
    probability of evidence at least this bad were there no fault: the verdict corrects for the
    number of checks with it, once for all.
    """

    outcome: Outcome
    sentence: str
    remedy: str = ""
    p_value: float | None = None


M = TypeVar("M", bound=msgspec.Struct)


class AbstractCheck(ABC, Generic[M]):
    """Base of the checks; every subclass is final and a frozen dataclass."""

    name: ClassVar[str]
    """The fault, in kebab-case, stable for ever."""
    question: ClassVar[Question]
    family: ClassVar[Family]
    needs: ClassVar[tuple[Need, ...]]
    """Looked at in this order before ``measure``; the first unmet one is reported."""
    consequence_of: ClassVar[tuple[str, ...]] = ()
    """Checks whose fault brings this one about: when one of them fails, that is what is reported,
    and this finding is only named as its consequence."""

    @abstractmethod
    def measure(self, study: Study) -> M:
        """Numbers with units, no opinion. Called only when all needs are met."""

    @abstractmethod
    def judge(self, measurement: M) -> Judgement:
        """An opinion on the numbers: a pure function of them and the thresholds."""
