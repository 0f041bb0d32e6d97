"""The words all formats share: what answers and outcomes are called, and the sentences around the
numbers."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

from scaleproof.checks.check import Outcome, Question
from scaleproof.checks.final_scores import MAX_NUMBERED_CLASSES
from scaleproof.report import numbers
from scaleproof.report.summary import ArmSummary, Summary
from scaleproof.verdict.answers import (
    Answer,
    Decision,
    Finding,
    QuestionAnswer,
    Standing,
    Verdict,
)

QUESTIONS = {
    Question.FASTER: "Faster?",
    Question.AS_GOOD: "As good?",
    Question.SOUND: "Sound?",
    Question.FIT: "Fit?",
}
ANSWERS = {
    Answer.YES: "Yes",
    Answer.NO: "No",
    Answer.UNDECIDED: "Undecided",
    Answer.NOT_APPLICABLE: "Not applicable",
}
TONES = {
    Standing.ADOPT: Decision.ADOPT,
    Standing.SOUND: Decision.ADOPT,
    Standing.REJECT: Decision.REJECT,
    Standing.NOT_SOUND: Decision.REJECT,
    Standing.NOT_FIT: Decision.REJECT,
    Standing.FAILED: Decision.REJECT,
    Standing.NO_TRAINING: Decision.UNDECIDED,
    Standing.UNDECIDED: Decision.UNDECIDED,
}
"""The decision whose colour and mark a headline has."""

_NO_EVIDENCE = "No evidence"
_MOST_WITHOUT_EVIDENCE = 6

_UNSEEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # Persian words and emoji need them


def visible(text: str) -> str:
    """``text`` on one line, with a mark for each character that acts instead of showing: escape,
    right-to-left override. Names in the evidence are anybody's."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    is_unseen = unicodedata.category(character) in _UNSEEN_CATEGORIES and character not in _JOINERS
    return "\N{REPLACEMENT CHARACTER}" if is_unseen else character


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FindingGroups:
    """The findings in the order they are read: what is wrong, what is open, what is fine."""

    problems: tuple[Finding, ...]
    open: tuple[Finding, ...]
    consequences: tuple[Finding, ...]
    passes: tuple[Finding, ...]
    not_applicable: tuple[Finding, ...]


def group_findings(findings: tuple[Finding, ...]) -> FindingGroups:
    """Blocking ones first in their group; otherwise the order of the verdict."""
    ordered = sorted(findings, key=lambda finding: not finding.blocks)
    problems = [f for f in ordered if f.outcome in (Outcome.FAIL, Outcome.ERROR)]
    undecided = [f for f in ordered if f.outcome is Outcome.UNDECIDED or f.is_evidence_missing]
    return FindingGroups(
        problems=tuple(sorted(problems, key=lambda finding: finding.outcome is Outcome.ERROR)),
        open=tuple(undecided),
        consequences=tuple(f for f in findings if f.consequence_of),
        passes=tuple(f for f in findings if f.outcome is Outcome.PASS),
        not_applicable=tuple(
            f
            for f in findings
            if f.outcome is Outcome.NOT_APPLICABLE
            and not f.is_evidence_missing
            and not f.consequence_of
        ),
    )


def shown_groups(summary: Summary) -> FindingGroups:
    """The findings of a report. Without a whole run, that of a script alone has nothing to say of
    records that are missing: all of them are."""
    groups = group_findings(summary.verdict.findings)
    if trained_nothing(summary):
        return replace(groups, open=(), consequences=(), not_applicable=())
    if summary.is_alone and not _has_whole_run(summary):
        return replace(groups, open=())
    return groups


def trained_nothing(summary: Summary) -> bool:
    """A command was observed alone in which nothing trained: the headline says all there is."""
    return summary.is_alone and all(run.status == "missing" for run in summary.runs)


def passes_heading(groups: FindingGroups) -> str:
    """Over the list of passes: the headline counts those on soundness only."""
    num_sound = sum(f.question is Question.SOUND for f in groups.passes)
    num_others = len(groups.passes) - num_sound
    if not num_sound or not num_others:
        return "Checks that passed"
    others = "1 other" if num_others == 1 else f"{num_others} others"
    return f"Checks that passed: {num_sound} on soundness, {others}"


def _has_whole_run(summary: Summary) -> bool:
    return any(run.status in ("complete", "diverged") for run in summary.runs)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFinding:
    """Findings that say the same, told once: ``checks`` are their names."""

    checks: tuple[str, ...]
    questions: tuple[Question, ...]
    outcome: str
    sentence: str
    remedy: str

    @property
    def names(self) -> str:
        """All of them, unless nothing at all was there to look at."""
        most = _MOST_WITHOUT_EVIDENCE if self.outcome == _NO_EVIDENCE else len(self.checks)
        return numbers.listed(self.checks, most=most)


def told_once(findings: Iterable[Finding]) -> tuple[SharedFinding, ...]:
    """``findings`` in their order, those with the same words at the place of the first: many
    checks lack the same record, or do not apply for the same reason."""
    same: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = (outcome_word(finding), finding.sentence, finding.remedy)
        same.setdefault(key, []).append(finding)
    return tuple(
        SharedFinding(
            checks=tuple(f.check for f in told),
            questions=tuple(dict.fromkeys(f.question for f in told)),
            outcome=outcome,
            sentence=sentence,
            remedy=remedy,
        )
        for (outcome, sentence, remedy), told in same.items()
    )


def consequences_of(finding: SharedFinding, findings: Iterable[Finding]) -> str:
    """``Consequences: ...``; empty when it brings about nothing."""
    names = [f.check for f in findings if set(f.consequence_of) & set(finding.checks)]
    return f"Consequences: {numbers.listed(names, most=20)}." if names else ""


def outcome_word(finding: Finding) -> str:
    """A fail that doesn't block is a warning; a record that is missing is not "not applicable"."""
    match finding.outcome:
        case Outcome.PASS:
            return "Pass"
        case Outcome.FAIL:
            return "Fail" if finding.blocks else "Warning"
        case Outcome.UNDECIDED:
            return "Undecided"
        case Outcome.NOT_APPLICABLE:
            if finding.consequence_of:
                return "Consequence"
            return _NO_EVIDENCE if finding.is_evidence_missing else "Not applicable"
        case Outcome.ERROR:
            return "Check broke"


def reason(verdict: Verdict) -> str:
    """The headline without the word it begins with, for where that stands before it anyway."""
    word = verdict.standing.word
    return verdict.headline.removeprefix(f"{word}: ").removeprefix(f"{word} ")


def shown_answers(summary: Summary) -> tuple[QuestionAnswer, ...]:
    """The questions that were asked: all of them, unless a script was observed alone."""
    answers = summary.verdict.answers
    if not summary.is_alone:
        return answers
    if not _has_whole_run(summary):
        return ()
    asked = (answer for answer in answers if answer.answer is not Answer.NOT_APPLICABLE)
    return tuple(_counting(answer, summary.verdict) for answer in asked)


def _counting(answer: QuestionAnswer, verdict: Verdict) -> QuestionAnswer:
    """A no in numbers: its reason is the headline."""
    if answer.answer is not Answer.NO:
        return answer
    looked = [
        f
        for f in verdict.findings
        if f.question is answer.question and f.outcome in (Outcome.PASS, Outcome.FAIL)
    ]
    faults = [f.check for f in looked if f.outcome is Outcome.FAIL and f.blocks]
    found = f"{len(faults)} of {numbers.counted(len(looked), 'check')}"
    return QuestionAnswer(
        question=answer.question,
        answer=answer.answer,
        sentence=f"{found} found a fault: {numbers.listed(faults, most=20)}.",
    )


def not_asked(summary: Summary) -> str:
    """What a script observed alone leaves open; empty when everything was asked."""
    if not summary.is_alone or trained_nothing(summary):
        return ""
    return "Faster? As good?  Not asked: scaleproof compare does."


def title(summary: Summary) -> str:
    """``cifar10: 2 devices (ddp) against 1 device (single)``."""
    arms = [summary.candidate, *([summary.baseline] if summary.baseline is not None else [])]
    if any(arm.num_devices == 0 for arm in arms):  # no run could tell
        return summary.target
    return f"{summary.target}: {' against '.join(map(_devices, arms))}"


_NO_STRATEGIES = ("none", "script")
"""What a script's arm has where no wrapper of torch's was seen, or no run at all."""


def _devices(arm: ArmSummary) -> str:
    devices = numbers.counted(arm.num_devices, "device")
    return devices if arm.strategy in _NO_STRATEGIES else f"{devices} ({arm.strategy})"


def column_of(arm: ArmSummary) -> str:
    """Heading of an arm's column: ``ddp, 2 devices``."""
    return f"{arm.label}, {numbers.counted(arm.num_devices, 'device')}"


def learning_rate(arm: ArmSummary) -> str:
    """What became of the recipe's learning rate on this many devices."""
    rate = arm.learning_rate
    if rate is None:
        return f"learning rate not known: no run of {arm.name} wrote a manifest"
    warm_up = f"{numbers.amount(rate.warmup_epochs, 'epoch')} of warm-up"
    if rate.base == rate.scaled:
        why = "no scaling" if rate.rule == "none" else "as the recipe gives it"
        return f"learning rate {numbers.rate(rate.base)} ({why}, {warm_up})"
    return (
        f"learning rate {numbers.rate(rate.base)} -> {numbers.rate(rate.scaled)} "
        f"({rate.rule} rule for {numbers.counted(arm.num_devices, 'device')}, {warm_up})"
    )


def learning_rates(summary: Summary) -> tuple[str, ...]:
    """A line per arm of a recipe; a script's rate is its own affair."""
    if summary.kind == "script":
        return ()
    return tuple(f"{arm.name}: {learning_rate(arm)}" for arm in summary.arms)


def notices(summary: Summary) -> tuple[str, ...]:
    """What a reader must know before any number: runs that failed, stopped or diverged, and what
    could not be observed. What the headline says alone is not said again."""
    is_told = summary.is_alone and len(summary.runs) == 1
    lines = [] if is_told else list(summary.verdict.failed_runs)
    for status, words in (("missing", "never began"), ("unfinished", "did not finish")):
        names = [run.name for run in summary.runs if run.status == status]
        if names and not is_told:
            lines.append(f"{numbers.listed(names, most=6)} {words}.")
    diverged = [run.name for run in summary.runs if run.status == "diverged"]
    if diverged:
        lines.append(f"{numbers.listed(diverged, most=6)} stopped at a loss that is not finite.")
    if summary.share_device:
        lines.append("Ranks shared a device (--share-device): epoch times say nothing about speed.")
    return tuple(lines + _unobserved(summary))


def _unobserved(summary: Summary) -> list[str]:
    if summary.observed is None:
        return []
    several = len(summary.runs) > 1
    parts = [
        f"{gap.what} on {f'{gap.run} ' if several else ''}"
        f"{'rank' if len(gap.ranks) == 1 else 'ranks'} {numbers.listed(gap.ranks, most=6)} "
        f"({gap.why})"
        for gap in summary.observed.unobserved
    ]
    is_told = summary.is_alone and not summary.observed.arms  # the headline does
    parts += () if is_told else summary.observed.troubles
    if not parts:
        return []
    return [f"Could not be observed: {numbers.listed(parts, most=6)}."]


def speed_source(summary: Summary) -> str:
    """What the speed-up was taken from, or why there is none."""
    speed = summary.timing.speed_up
    if speed is None:
        if summary.is_alone:
            return ""
        return summary.timing.no_speed_up_because
    pairs = numbers.counted(speed.num_epoch_pairs, "pair")
    return (
        f"From {pairs} of epochs that ran next to each other, "
        f"{numbers.counted(speed.num_runs, 'seed')}, first epochs left out as warm-up; "
        f"the interval is over {speed.varies_over}."
    )


def quality_source(summary: Summary) -> str:
    """What the quality numbers were taken from."""
    quality = summary.quality
    if summary.is_alone and not _has_whole_run(summary):
        return ""
    if quality is None and summary.kind == "script":
        if any(curve.evaluation for curve in summary.curves):
            return (
                f"The predictions that were reported have numbers beyond {MAX_NUMBERED_CLASSES:,}, "
                "so they are not taken for classes."
            )
        return (
            "No predictions of classes were reported (scaleproof.report_predictions), so nothing "
            "is known class by class."
        )
    if quality is None:
        return (
            "No usable run of a classifier was evaluated after training, so nothing is known about "
            "quality."
        )
    parts: list[str] = []
    for arm, words in ((quality.baseline, "baseline"), (quality.candidate, "candidate")):
        if arm is None:
            continue
        epochs = numbers.listed([str(number) for number in sorted(set(arm.epochs_done))], most=6)
        epoch_noun = "epoch" if epochs == "1" else "epochs"
        whose = "" if summary.is_alone else f"{words} "
        parts.append(
            f"{whose}{numbers.counted(arm.num_predictions, 'prediction')} of "
            f"{numbers.counted(len(arm.seeds), 'seed')} after {epochs} {epoch_noun}"
        )
    return f"Last evaluations, all seeds together: {'; '.join(parts)}."


def classes_source(summary: Summary) -> str:
    """Which classes are listed when not all are; empty when all are."""
    quality = summary.quality
    if quality is None or len(quality.listed) == len(quality.classes):
        return ""
    return (
        f"{len(quality.listed)} of {len(quality.classes):,} classes: those whose recall changed "
        "most, then those with the lowest."
    )
