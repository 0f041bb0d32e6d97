"""From findings to a verdict: corrected once for their number, summed up by question."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from scaleproof.checks.check import Outcome, Question
from scaleproof.checks.epoch_speed import measure_epoch_speed
from scaleproof.checks.final_scores import CLASSES, final_scores
from scaleproof.checks.wording import counted, listed, percent
from scaleproof.evidence.failures import Failure, describe_failure
from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Study
from scaleproof.evidence.troubles import unobserved_by_ranks
from scaleproof.stats.shares import holm
from scaleproof.verdict.alone import (
    COMPARED,
    headline_alone,
    is_alone,
    next_steps_alone,
    not_asked,
    standing_alone,
    without_unasked,
)
from scaleproof.verdict.answers import (
    Answer,
    Decision,
    Finding,
    QuestionAnswer,
    Standing,
    Verdict,
)
from scaleproof.verdict.commands import again
from scaleproof.verdict.consequences import trace_to_roots
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.run_check import run_check
from scaleproof.verdict.signals import without_blame
from scaleproof.verdict.unreported import (
    headline_without_predictions,
    lacks_predictions,
    step_to_predictions,
)

_DECIDING = {
    Question.FASTER: ("no-speed-up",),
    Question.AS_GOOD: ("accuracy-drop", "metric-drop"),
}
"""Only the pass of the first of these that applies is a yes to its question; the other checks
there look for single faults."""

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
    alone = is_alone(study)
    checks = profile.build_checks()
    findings = [
        run_check(
            check,
            study,
            blocks=check.name not in profile.advisory
            and not (alone and check.question in COMPARED),
        )
        for check in checks
    ]
    statistical = {check.name for check in checks if hasattr(check, "confidence")}
    findings = _correct_for_number(findings, statistical, profile.confidence)
    findings = trace_to_roots(findings, {check.name: check.consequence_of for check in checks})
    if alone:
        findings = without_unasked(findings)
    answers = tuple(
        not_asked(question) if alone and question in COMPARED else _answer(question, findings)
        for question in Question
    )
    if study.is_script:
        answers = tuple(_only_if_all_was_seen(answer, study) for answer in answers)
    failures = _failures(study)
    failed = tuple(_one_line(failure) for failure in failures.values())
    unfinished = tuple(run.name for run in study.unusable_runs if run.name not in failures)
    decision = _decide(answers, has_all_runs=not study.unusable_runs)
    if alone:
        standing = standing_alone(answers, study, has_failed=bool(failed))
        headline = headline_alone(study, standing, answers, findings, failed)
        next_steps = next_steps_alone(study, standing, findings, failed)
    else:
        standing = Standing(decision.value)
        headline = _headline(study, profile, decision, answers, failed, unfinished)
        next_steps = _next_steps(study, decision, answers, findings, tuple(failures), unfinished)
    return Verdict(
        decision=decision,
        standing=standing,
        headline=headline,
        answers=answers,
        findings=tuple(findings),
        next_steps=next_steps,
        failed_runs=failed,
        unfinished_runs=unfinished,
    )


def soundness(verdict: Verdict) -> Answer:
    """Whether what ran is sound, and fit where that was asked: yes only when all of it was seen."""
    answers = {answer.question: answer.answer for answer in verdict.answers}
    if Answer.NO in (answers[Question.SOUND], answers[Question.FIT]):
        return Answer.NO
    has_all_runs = not verdict.failed_runs and not verdict.unfinished_runs
    is_sound = answers[Question.SOUND] is Answer.YES and has_all_runs
    return Answer.YES if is_sound else Answer.UNDECIDED


def exit_code(verdict: Verdict) -> int:
    """0 adopt, 1 reject, 3 undecided, 4 undecided because a run failed. Of a script observed alone:
    0 sound, 1 not."""
    if verdict.standing in (Standing.ADOPT, Standing.SOUND):
        return 0
    if verdict.decision is Decision.REJECT:
        return 1
    return 4 if verdict.failed_runs or verdict.standing is Standing.FAILED else 3


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
    deciding = _deciding(question, blocking)
    if any(finding.outcome is Outcome.PASS for finding in deciding):
        told = asked if question is Question.SOUND else deciding  # those that only advise, too
        passed = [finding for finding in told if finding.outcome is Outcome.PASS]
        return answer(Answer.YES, _yes_sentence(question, passed))
    if deciding:
        return answer(Answer.NOT_APPLICABLE, deciding[0].sentence)
    return answer(
        Answer.NOT_APPLICABLE,
        f"The profile leaves no check that decides whether it is {_WORDS[question]}.",
    )


def _deciding(question: Question, blocking: Sequence[Finding]) -> Sequence[Finding]:
    """The findings whose pass is a yes to the question."""
    if question not in _DECIDING:
        return blocking
    by_name = {finding.check: finding for finding in blocking}
    known = [by_name[name] for name in _DECIDING[question] if name in by_name]
    arising = (f for f in known if f.outcome is not Outcome.NOT_APPLICABLE or f.consequence_of)
    first = next(arising, known[0] if known else None)
    return [first] if first is not None else []


def _only_if_all_was_seen(answer: QuestionAnswer, study: Study) -> QuestionAnswer:
    """A script's yes to soundness, unless something that its checks look at was not recorded to
    the end."""
    gaps = [gap for run in study.usable_runs.values() for gap in unobserved_by_ranks(run)]
    if answer.question is not Question.SOUND or answer.answer is not Answer.YES or not gaps:
        return answer
    whats = listed([f"{gap.what} ({gap.why})" for gap in gaps])
    return msgspec.structs.replace(
        answer,
        answer=Answer.UNDECIDED,
        sentence=f"No fault was found, but not everything could be observed: {_printable(whats)}.",
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
    return f"No fault found by {counted(len(passed), 'check')}: {listed(names, most=6)}."


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
    failed: Sequence[str],
    unfinished: Sequence[str],
) -> str:
    if decision is Decision.ADOPT:
        return _adopt_headline(study, profile)
    if decision is Decision.REJECT:
        return f"Reject: {_first(answers, Answer.NO).sentence}"
    if failed:
        return f"Undecided: {failed[0]}"
    if unfinished:
        names = listed(unfinished)
        runs = f"{len(unfinished)} of {counted(len(study.runs), 'run')}"
        return f"Undecided: {runs} did not finish ({names})."
    if any(answer.answer is Answer.UNDECIDED for answer in answers):
        return f"Undecided: {_first(answers, Answer.UNDECIDED).sentence}"
    if lacks_predictions(study, answers):
        return headline_without_predictions(answers)
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
    before = after = None
    if CLASSES.is_met(study):
        before, after = _mean_accuracy(study, baseline), _mean_accuracy(study, candidate)
    quality = "its metrics as good"  # the script reported figures, no predictions
    if before is not None and after is not None:
        quality = f"accuracy {percent(after)} against {percent(before)}"
    name = candidate.name if study.is_script else candidate.strategy
    return (
        f"Adopt {counted(candidate.num_devices, 'device')} ({name}): "
        f"{percent(speed.time_reduction, 0)} less time per epoch, {quality}, no fault found."
    )


def _mean_accuracy(study: Study, arm: Arm) -> float | None:
    """None where nothing was predicted."""
    accuracies = [scores.accuracy for scores in final_scores(study.runs_of(arm))]
    return sum(accuracies) / len(accuracies) if accuracies else None


def _next_steps(
    study: Study,
    decision: Decision,
    answers: tuple[QuestionAnswer, ...],
    findings: Sequence[Finding],
    failed: Sequence[str],
    unfinished: Sequence[str],
) -> tuple[str, ...]:
    """What to do, the most important first, nothing twice."""
    steps: list[str] = []
    if failed:
        steps.append(
            f"Mend the error of {listed(failed)}, then run the study again: {again(study)}"
        )
    elif unfinished:
        steps.append(f"Run the study again to its end: {again(study)}")
    if decision is Decision.ADOPT:
        steps.append(
            f"Train with {counted(study.candidate.num_devices, 'device')}; compare again when the "
            "code, the data or the machine changes."
        )
    in_order = [f for question in _ORDER for f in findings if f.question is question]
    steps += [f.remedy for f in in_order if f.blocks and f.outcome is Outcome.FAIL]
    steps += [f.remedy for f in in_order if _is_open(f)]
    if lacks_predictions(study, answers):
        steps.append(step_to_predictions(study))
    silent = {a.question for a in answers if a.answer is Answer.NOT_APPLICABLE}
    steps += [f.remedy for f in in_order if f.question in silent]
    steps += [f.remedy for f in in_order if not f.blocks and f.outcome is Outcome.FAIL]
    return tuple(dict.fromkeys(step for step in steps if step))


def _failures(study: Study) -> Mapping[str, Failure]:
    """Why runs failed, by their names: also those whose ranks could not write an outcome."""
    found = {run.name: describe_failure(run) for run in study.unusable_runs}
    return {name: failure for name, failure in found.items() if failure is not None}


def _one_line(failure: Failure) -> str:
    """Without control characters: the error came from elsewhere."""
    line = without_blame(_printable(failure.sentence))
    return line if len(line) <= _MAX_SENTENCE else f"{line[:_MAX_SENTENCE]} ..."


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
