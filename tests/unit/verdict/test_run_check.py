from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import msgspec
import numpy as np
import pytest

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import BASELINE
from scaleproof.errors import EvidenceError, UsageError
from scaleproof.evidence.study import Study
from scaleproof.verdict.run_check import run_check
from studies import build_study


@final
class Measured(msgspec.Struct, frozen=True, kw_only=True):
    time_s: float


@final
@dataclass(frozen=True, kw_only=True)
class Probe(AbstractCheck[Measured]):
    """A check that does what a test tells it to."""

    name: ClassVar[str] = "probe"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = ()

    raises: Exception | None = None
    raises_in_judge: Exception | None = None

    def measure(self, study: Study) -> Measured:
        if self.raises is not None:
            raise self.raises
        return Measured(time_s=float(np.float64(len(study.runs))))

    def judge(self, measurement: Measured) -> Judgement:
        if self.raises_in_judge is not None:
            raise self.raises_in_judge
        return Judgement(
            outcome=Outcome.FAIL, sentence=f"{measurement.time_s} s.", remedy="Mend it."
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return build_study(tmp_path_factory.mktemp("study"), seeds=(0,))


def with_need(need: Need) -> AbstractCheck[Measured]:
    check = Probe()
    object.__setattr__(check, "needs", (need,))  # an instance's needs hide those of its class
    return check


def test_a_finding_carries_what_was_measured_and_judged(study: Study) -> None:
    finding = run_check(Probe(), study, blocks=True)

    assert finding.outcome is Outcome.FAIL
    assert finding.sentence == "2.0 s."
    assert finding.remedy == "Mend it."
    assert finding.measurement == {"time_s": 2.0}
    assert finding.blocks
    assert not finding.is_evidence_missing


@pytest.mark.parametrize("where", ["raises", "raises_in_judge"])
def test_a_bug_of_a_check_becomes_an_error_with_the_last_line(study: Study, where: str) -> None:
    finding = run_check(Probe(**{where: ZeroDivisionError("by zero")}), study, blocks=False)

    assert finding.outcome is Outcome.ERROR
    assert finding.sentence == "The check probe broke: ZeroDivisionError: by zero."
    assert "report it with the study" in finding.remedy


@pytest.mark.parametrize("error", [EvidenceError("torn"), UsageError("no such class")])
def test_what_the_user_can_mend_passes_through(study: Study, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run_check(Probe(raises=error), study, blocks=True)


@pytest.mark.parametrize("kind", ["structure", "evidence"])
def test_an_unmet_need_is_not_applicable_and_named(study: Study, kind: str) -> None:
    need = Need(text="a moon", kind=kind, is_met=lambda _study: False)  # type: ignore[arg-type]
    finding = run_check(with_need(need), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert "a moon" in finding.sentence
    assert finding.is_evidence_missing is (kind == "evidence")


def test_a_need_that_breaks_is_an_error(study: Study) -> None:
    need = Need(text="a moon", kind="evidence", is_met=lambda _study: 1 / 0 > 0)
    finding = run_check(with_need(need), study, blocks=True)

    assert finding.outcome is Outcome.ERROR


def test_a_missing_baseline_comes_with_what_to_do(tmp_path: Path) -> None:
    study = build_study(tmp_path, has_baseline=False)

    assert "--devices" in run_check(with_need(BASELINE), study, blocks=True).remedy
