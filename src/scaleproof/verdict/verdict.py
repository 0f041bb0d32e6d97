"""From findings to a verdict: corrected once for their number, summed up by question."""

import shlex
from collections.abc import Iterable, Sequence

import msgspec

from scaleproof.checks.check import Outcome, Question
from scaleproof.checks.epoch_speed import measure_epoch_speed
from scaleproof.checks.final_scores import final_scores
from scaleproof.checks.wording import counted, listed, percent
from scaleproof.evidence.failures import describe_failure
from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Run, Study
from scaleproof.stats.shares import holm
from scaleproof.verdict.answers import Answer, Decision, Finding, QuestionAnswer, Verdict
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.run_check import run_check

_DECIDING = {Question.FASTER: "no-speed-up", Question.AS_GOOD: "accuracy-drop"}
"""Only this check's pass is a yes to its question; the others there look for single faults."""

_ORDER = (Question.SOUND, Question.FIT, Question.AS_GOOD, Question.FASTER)
"""A headline names the most fundamental reason: speed is the last that matters."""

_MAX_SENTENCE = 500  # characters on why a run failed; its rank's outcome has the traceback

_WORDS = {
    Question.FASTER: "faster",
    Question.AS_GOOD: "as good",
    Question.SOUND: "sound",
    Question.FIT: "fit",
}


def judge_study(study: Study, profile: Profile) -> Verdict:
    """The verdict on a study.

    Raises ``EvidenceError`` when its files are damaged or its runs can't be compared, and
    ``UsageError`` when the profile asks for something the study can't have.
    """
    study.pairs  # noqa: B018 - refuses runs that can't be compared, before anything is judged
    checks = profile.build_checks()
    findings = [
        run_check(check, study, blocks=check.name not in profile.advisory) for check in checks
    ]
    statistical = {check.name for check in checks if hasattr(check, "confidence")}
    findings = _correct_for_number(findings, statistical, profile.confidence)
    answers = tuple(_answer(question, findings) for question in Question)
    failed = [run for run in study.unusable_runs if run.status == "failed"]
    unfinished = [run for run in study.unusable_runs if run.status != "failed"]
    decision = _decide(answers, has_all_runs=not study.unusable_runs)
    return Verdict(
        decision=decision,
        headline=_headline(study, profile, decision, answers, failed, unfinished),
        answers=answers,
        findings=tuple(findings),
        next_steps=_next_steps(study, decision, answers, findings, failed, unfinished),
        failed_runs=tuple(_failed_sentence(run) for run in failed),
        unfinished_runs=tuple(run.name for run in unfinished),
    )


def exit_code(verdict: Verdict) -> int:
    """0 adopt, 1 reject, 3 undecided, 4 undecided because a run failed."""
    if verdict.decision is Decision.ADOPT:
        return 0
    if verdict.decision is Decision.REJECT:
        return 1
    return 4 if verdict.failed_runs else 3


def _correct_for_number(
    findings: list[Finding], statistical: set[str], confidence: float
) -> list[Finding]:
    """Turn a fail into undecided when its p-value, corrected for the number of checks, is too
    large (Holm).

    The family is every statistical check that looked, whatever it found: had only those that
    failed been counted, each would be its own excuse. One that did not fail counts as p = 1.
    """
    looked = [
        finding
        for finding in findings
        if finding.check in statistical
        and finding.outcome in (Outcome.PASS, Outcome.FAIL, Outcome.UNDECIDED)
    ]
    p_values = [
        finding.p_value if finding.outcome is Outcome.FAIL and finding.p_value is not None else 1.0
        for finding in looked
    ]
    corrected = dict(zip((f.check for f in looked), holm(p_values), strict=True))
    result: list[Finding] = []
    for finding in findings:
        p_value = corrected.get(finding.check, 0.0)
        is_shown = finding.p_value is None or p_value <= 1 - confidence
        if finding.outcome is Outcome.FAIL and not is_shown:
            finding = msgspec.structs.replace(
                finding,
                outcome=Outcome.UNDECIDED,
                sentence=f"{finding.sentence} Of {counted(len(looked), 'statistical check')}, one "
                f"may look this bad by chance: corrected p = {p_value:.2g}, which is more than "
                f"{1 - confidence:.2g}.",
                remedy="Add seeds (--seeds) to tell a fault from chance.",
            )
        result.append(finding)
    return result


def _answer(question: Question, findings: Iterable[Finding]) -> QuestionAnswer:
    asked = [finding for finding in findings if finding.question is question]
    blocking = [finding for finding in asked if finding.blocks]

    def answer(value: Answer, sentence: str) -> QuestionAnswer:
        return QuestionAnswer(question=question, answer=value, sentence=sentence)

    for finding in blocking:
        if finding.outcome is Outcome.FAIL:
            return answer(Answer.NO, finding.sentence)
    for finding in asked:
        if _is_open(finding):
            return answer(Answer.UNDECIDED, finding.sentence)
    deciding = [f for f in blocking if f.check == _DECIDING.get(question, f.check)]
    passed = [finding for finding in deciding if finding.outcome is Outcome.PASS]
    if passed:
        return answer(Answer.YES, _yes_sentence(question, passed))
    if deciding:
        return answer(Answer.NOT_APPLICABLE, deciding[0].sentence)
    return answer(
        Answer.NOT_APPLICABLE,
        f"The profile leaves no check that decides whether it is {_WORDS[question]}.",
    )


def _is_open(finding: Finding) -> bool:
    """It keeps its question from a yes. A broken check does so even where it only advises."""
    if finding.outcome is Outcome.ERROR:
        return True
    return finding.blocks and (finding.outcome is Outcome.UNDECIDED or finding.is_evidence_missing)


def _yes_sentence(question: Question, passed: Sequence[Finding]) -> str:
    if question is not Question.SOUND:
        return passed[0].sentence
    names = [finding.check for finding in passed]
    return f"No fault found by {counted(len(passed), 'check')}: {listed(names, most=20)}."


def _decide(answers: Iterable[QuestionAnswer], *, has_all_runs: bool) -> Decision:
    values = {answer.answer for answer in answers}
    if Answer.NO in values:
        return Decision.REJECT
    return Decision.ADOPT if values == {Answer.YES} and has_all_runs else Decision.UNDECIDED


def _headline(
    study: Study,
    profile: Profile,
    decision: Decision,
    answers: tuple[QuestionAnswer, ...],
    failed: list[Run],
    unfinished: list[Run],
) -> str:
    if decision is Decision.ADOPT:
        return _adopt_headline(study, profile)
    if decision is Decision.REJECT:
        return f"Reject: {_first(answers, Answer.NO).sentence}"
    if failed:
        return f"Undecided: {_failed_sentence(failed[0])}"
    if unfinished:
        names = listed([run.name for run in unfinished])
        runs = f"{len(unfinished)} of {counted(len(study.runs), 'run')}"
        return f"Undecided: {runs} did not finish ({names})."
    if any(answer.answer is Answer.UNDECIDED for answer in answers):
        return f"Undecided: {_first(answers, Answer.UNDECIDED).sentence}"
    silent = _first(answers, Answer.NOT_APPLICABLE)
    return (
        f"Undecided: this study can't say whether it is {_WORDS[silent.question]}. "
        f"{silent.sentence}"
    )


def _first(answers: Iterable[QuestionAnswer], value: Answer) -> QuestionAnswer:
    by_question = {answer.question: answer for answer in answers if answer.answer is value}
    return next(by_question[question] for question in _ORDER if question in by_question)


def _adopt_headline(study: Study, profile: Profile) -> str:
    candidate, baseline = study.candidate, study.baseline
    assert baseline is not None  # without one, nothing is shown to be faster
    speed = measure_epoch_speed(study, confidence=profile.confidence).speed
    assert speed is not None  # it was shown to be faster
    return (
        f"Adopt {counted(candidate.num_devices, 'device')} ({candidate.strategy}): "
        f"{percent(speed.time_reduction, 0)} less time per epoch, accuracy "
        f"{percent(_mean_accuracy(study, candidate))} against "
        f"{percent(_mean_accuracy(study, baseline))}, no fault found."
    )


def _mean_accuracy(study: Study, arm: Arm) -> float:
    accuracies = [scores.accuracy for scores in final_scores(study.runs_of(arm))]
    return sum(accuracies) / len(accuracies)


def _next_steps(
    study: Study,
    decision: Decision,
    answers: tuple[QuestionAnswer, ...],
    findings: Sequence[Finding],
    failed: list[Run],
    unfinished: list[Run],
) -> tuple[str, ...]:
    """What to do, the most important first, nothing twice."""
    again = shlex.join(study.request.command)
    steps: list[str] = []
    if failed:
        names = listed([run.name for run in failed])
        steps.append(f"Mend the error of {names}, then run the study again: {again}")
    elif unfinished:
        steps.append(f"Run the study again to its end: {again}")
    if decision is Decision.ADOPT:
        steps.append(
            f"Train with {counted(study.candidate.num_devices, 'device')}; compare again when the "
            "code, the data or the machine changes."
        )
    in_order = [f for question in _ORDER for f in findings if f.question is question]
    steps += [f.remedy for f in in_order if f.blocks and f.outcome is Outcome.FAIL]
    steps += [f.remedy for f in in_order if _is_open(f)]
    silent = {a.question for a in answers if a.answer is Answer.NOT_APPLICABLE}
    steps += [f.remedy for f in in_order if f.question in silent]
    steps += [f.remedy for f in in_order if not f.blocks and f.outcome is Outcome.FAIL]
    return tuple(dict.fromkeys(step for step in steps if step))


def _failed_sentence(run: Run) -> str:
    """Why a run failed, on one line without control characters: the error came from elsewhere."""
    failure = describe_failure(run)
    assert failure is not None  # a run is failed because a rank left an error
    line = "".join(char if char.isprintable() else " " for char in failure.sentence)
    line = " ".join(line.split())
    return line if len(line) <= _MAX_SENTENCE else f"{line[:_MAX_SENTENCE]} ..."
