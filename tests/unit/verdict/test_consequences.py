"""Every fault once, at its root."""

from pathlib import Path

import numpy as np
import pytest
from made_checks import judge_made, made
from numpy.typing import NDArray

from observed import FakeScript, build_observed
from scaleproof.checks.all_checks import ALL_CHECKS
from scaleproof.checks.check import Family, Outcome, Question
from scaleproof.evidence.observations import Moment
from scaleproof.evidence.records import TensorKind
from scaleproof.verdict.answers import Answer, Decision, Finding, Standing
from scaleproof.verdict.consequences import trace_to_roots
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import judge_study


def finding(check: str, outcome: Outcome = Outcome.FAIL, *, blocks: bool = True) -> Finding:
    return Finding(
        check=check,
        question=Question.SOUND,
        family=Family.DATA,
        outcome=outcome,
        sentence=f"It is {check}.",
        remedy=f"Mend {check}.",
        p_value=None,
        is_evidence_missing=False,
        blocks=blocks,
        measurement={"number": 1},
    )


def traced(*findings: Finding, **causes: tuple[str, ...]) -> dict[str, Finding]:
    return {f.check: f for f in trace_to_roots(findings, causes)}


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.UNDECIDED])
def test_what_another_fault_brought_about_no_longer_counts(outcome: Outcome) -> None:
    found = traced(finding("drift", outcome), finding("unsynced"), drift=("unsynced",))

    assert found["drift"].outcome is Outcome.NOT_APPLICABLE
    assert found["drift"].sentence == "A consequence of unsynced: It is drift."
    assert found["drift"].remedy == ""
    assert found["drift"].consequence_of == ("unsynced",)
    assert found["drift"].measurement == {"number": 1}
    assert found["unsynced"].outcome is Outcome.FAIL
    assert found["unsynced"].consequences == ("drift",)


@pytest.mark.parametrize("outcome", set(Outcome) - {Outcome.FAIL})
def test_only_a_fault_that_was_found_explains_another(outcome: Outcome) -> None:
    found = traced(finding("drift"), finding("unsynced", outcome), drift=("unsynced", "absent"))

    assert found["drift"] == finding("drift")
    assert found["unsynced"] == finding("unsynced", outcome)


@pytest.mark.parametrize("outcome", set(Outcome) - {Outcome.FAIL, Outcome.UNDECIDED})
def test_what_is_no_fault_is_no_consequence(outcome: Outcome) -> None:
    found = traced(finding("drift", outcome), finding("unsynced"), drift=("unsynced",))

    assert found["drift"] == finding("drift", outcome)
    assert found["unsynced"].consequences == ()


def test_a_chain_leads_to_its_root() -> None:
    found = traced(*map(finding, ("late", "middle", "root")), late=("middle",), middle=("root",))

    assert found["late"].consequence_of == ("root",)
    assert found["middle"].consequence_of == ("root",)
    assert found["root"].consequences == ("late", "middle")


def test_a_chain_ends_where_a_link_was_not_found() -> None:
    found = traced(
        finding("late"),
        finding("middle", Outcome.PASS),
        finding("root"),
        late=("middle",),
        middle=("root",),
    )

    assert found["late"].outcome is Outcome.FAIL


def test_two_roots_are_both_named_each_once() -> None:
    found = traced(
        *map(finding, ("late", "left", "right", "root")),
        late=("left", "right", "other"),
        left=("root",),
        right=("root",),
    )
    both = traced(*map(finding, ("late", "left", "right")), late=("left", "right"))

    assert found["late"].consequence_of == ("root",)
    assert both["late"].consequence_of == ("left", "right")
    assert both["late"].sentence.startswith("A consequence of left and right: ")


def test_what_only_advises_does_not_hide_what_blocks() -> None:
    advice = finding("unsynced", blocks=False)
    found = traced(finding("drift"), advice, drift=("unsynced",))
    both = traced(finding("drift", blocks=False), advice, drift=("unsynced",))

    assert found["drift"].outcome is Outcome.FAIL
    assert both["drift"].outcome is Outcome.NOT_APPLICABLE


def test_the_verdict_counts_the_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = build_observed(tmp_path)
    drift = made(Outcome.FAIL, name="drift", consequence_of=("unsynced",))
    verdict = judge_made(monkeypatch, study, drift, made(Outcome.FAIL, name="unsynced"))

    assert verdict.decision is Decision.REJECT
    assert verdict.headline == "Not sound: unsynced."
    assert verdict.next_steps == ("Mend.",)


def test_a_fault_corrected_to_undecided_explains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = build_observed(tmp_path)
    drift = made(Outcome.FAIL, name="drift", consequence_of=("root",))
    chance = made(Outcome.FAIL, name="root", p_value=0.04)
    others = [made(Outcome.PASS, name=str(index)) for index in range(5)]
    verdict = judge_made(monkeypatch, study, drift, chance, *others)

    assert verdict.headline == "Not sound: drift."


def test_a_consequence_of_a_lost_baseline_question_is_no_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = build_observed(tmp_path, baseline=FakeScript(num_ranks=1, parallelism="none"))
    verdict = judge_made(
        monkeypatch,
        study,
        made(Outcome.FAIL, name="unsynced"),
        made(
            Outcome.FAIL,
            name="accuracy-drop",
            question=Question.AS_GOOD,
            consequence_of=("unsynced",),
        ),
        made(Outcome.PASS, name="metric-drop", question=Question.AS_GOOD),
    )

    answers = {answer.question: answer.answer for answer in verdict.answers}
    assert answers[Question.AS_GOOD] is Answer.NOT_APPLICABLE


def test_causes_are_checks_and_lead_in_no_circle() -> None:
    causes = {check.name: check.consequence_of for check in ALL_CHECKS}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name in causes, f"{trail[-1]} is a consequence of {name}, which is no check"
        assert name not in trail, f"circle: {' -> '.join((*trail, name))}"
        for cause in causes[name]:
            visit(cause, (*trail, name))

    for name in causes:
        visit(name, ())


def _own_gradient_alone(
    script: FakeScript, rank: int, step: int, locals_: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    return locals_[rank]


def _drifting(
    script: FakeScript, rank: int, steps_done: int, moment: Moment
) -> dict[tuple[TensorKind, str], NDArray[np.float64]]:
    sound = FakeScript().state(script, rank, steps_done, moment)
    return {key: values + 0.01 * rank * steps_done for key, values in sound.items()}


def test_a_missing_sync_is_one_finding(tmp_path: Path) -> None:
    script = FakeScript(final=_own_gradient_alone, state=_drifting)
    verdict = judge_study(build_observed(tmp_path, script), Profile())

    (fail,) = [f for f in verdict.findings if f.outcome is Outcome.FAIL]
    assert fail.check == "unsynced-gradients"
    assert {"replica-drift", "buffer-drift"} <= set(fail.consequences)


def test_without_a_fault_nothing_is_traced(tmp_path: Path) -> None:
    verdict = judge_study(build_observed(tmp_path), Profile())

    assert verdict.standing is Standing.SOUND
    assert not [f for f in verdict.findings if f.consequence_of or f.consequences]
