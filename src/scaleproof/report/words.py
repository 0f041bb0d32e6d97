"""The words all formats share: what answers and outcomes are called, and the sentences around the
numbers."""

import unicodedata
from dataclasses import dataclass
from typing import final

from scaleproof.checks.check import Outcome, Question
from scaleproof.report import numbers
from scaleproof.report.summary import ArmSummary, Summary
from scaleproof.verdict.answers import Answer, Decision, Finding, Verdict

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
DECISIONS = {
    Decision.ADOPT: "Adopt",
    Decision.REJECT: "Reject",
    Decision.UNDECIDED: "Undecided",
}

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
        passes=tuple(f for f in findings if f.outcome is Outcome.PASS),
        not_applicable=tuple(
            f for f in findings if f.outcome is Outcome.NOT_APPLICABLE and not f.is_evidence_missing
        ),
    )


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
            return "No evidence" if finding.is_evidence_missing else "Not applicable"
        case Outcome.ERROR:
            return "Check broke"


def reason(verdict: Verdict) -> str:
    """The headline without the decision it begins with, for where that stands before it anyway."""
    word = DECISIONS[verdict.decision]
    return verdict.headline.removeprefix(f"{word}: ").removeprefix(f"{word} ")


def title(summary: Summary) -> str:
    """``cifar10: 2 devices (ddp) against 1 device (single)``."""
    candidate, baseline = summary.candidate, summary.baseline
    words = f"{summary.target}: {_devices(candidate)}"
    return words if baseline is None else f"{words} against {_devices(baseline)}"


def _devices(arm: ArmSummary) -> str:
    return f"{numbers.counted(arm.num_devices, 'device')} ({arm.strategy})"


def column_of(arm: ArmSummary) -> str:
    """Heading of an arm's column: ``ddp, 2 devices``."""
    return f"{arm.strategy}, {numbers.counted(arm.num_devices, 'device')}"


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


def notices(summary: Summary) -> tuple[str, ...]:
    """What a reader must know before any number: runs that failed, stopped or diverged."""
    lines = list(summary.verdict.failed_runs)
    for status, words in (("missing", "never began"), ("unfinished", "did not finish")):
        names = [run.name for run in summary.runs if run.status == status]
        if names:
            lines.append(f"{numbers.listed(names, most=6)} {words}.")
    diverged = [run.name for run in summary.runs if run.status == "diverged"]
    if diverged:
        lines.append(f"{numbers.listed(diverged, most=6)} stopped at a loss that is not finite.")
    if summary.share_device:
        lines.append("Ranks shared a device (--share-device): epoch times say nothing about speed.")
    return tuple(lines)


def speed_source(summary: Summary) -> str:
    """What the speed-up was taken from, or why there is none."""
    speed = summary.timing.speed_up
    if speed is None:
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
        parts.append(
            f"{words} {numbers.counted(arm.num_predictions, 'prediction')} of "
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
