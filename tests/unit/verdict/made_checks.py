"""Checks that come to what they are told, and the verdict on a study by them."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import pytest

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.evidence.study import Study
from scaleproof.verdict import verdict as verdict_module
from scaleproof.verdict.answers import Verdict
from scaleproof.verdict.profile import Profile


@final
class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    pass


@final
@dataclass(frozen=True, kw_only=True)
class Made(AbstractCheck[Nothing]):
    """A check that comes to what it is told."""

    name: ClassVar[str] = "made"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = ()

    judgement: Judgement
    confidence: float = 0.95

    def measure(self, study: Study) -> Nothing:
        return Nothing()

    def judge(self, measurement: Nothing) -> Judgement:
        return self.judgement


def made(
    outcome: Outcome,
    *,
    name: str,
    p_value: float | None = None,
    question: Question = Question.SOUND,
    consequence_of: tuple[str, ...] = (),
) -> Made:
    judgement = Judgement(outcome=outcome, sentence=f"{name}.", remedy="Mend.", p_value=p_value)
    check = Made(judgement=judgement)
    object.__setattr__(check, "name", name)
    object.__setattr__(check, "question", question)
    object.__setattr__(check, "consequence_of", consequence_of)
    return check


def judge_made(
    monkeypatch: pytest.MonkeyPatch, study: Study, *checks: Made, advisory: tuple[str, ...] = ()
) -> Verdict:
    monkeypatch.setattr(Profile, "build_checks", lambda _self: checks)
    return verdict_module.judge_study(study, Profile(advisory=advisory))
