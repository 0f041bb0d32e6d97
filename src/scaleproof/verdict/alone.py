"""The verdict on a script that was observed alone: whether what it did was sound.

Nothing was there to compare it with, so nobody asked whether it is faster or as good.
"""

from collections.abc import Iterable, Sequence

import msgspec

from scaleproof.checks.check import Outcome, Question
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import EndRecord
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run, Study
from scaleproof.evidence.troubles import processes_with_torch, read_exit_code, read_troubles
from scaleproof.verdict.answers import Answer, Finding, QuestionAnswer, Standing
from scaleproof.verdict.commands import again, comparison
from scaleproof.verdict.signals import tells_of_signal

COMPARED = (Question.FASTER, Question.AS_GOOD)
"""What only a comparison can answer."""


def is_alone(study: Study) -> bool:
    """A script was observed, with nothing to compare it with."""
    return study.is_script and study.baseline is None


_NOT_ASKED = "Not asked: one command was observed. scaleproof compare asks it."


def not_asked(question: Question) -> QuestionAnswer:
    """The answer to a question that only a comparison can answer."""
    return QuestionAnswer(question=question, answer=Answer.NOT_APPLICABLE, sentence=_NOT_ASKED)


def without_unasked(findings: Iterable[Finding]) -> list[Finding]:
    """What the checks of those questions could not tell is nobody's concern; what they did find
    stays, as a warning."""
    return [
        msgspec.structs.replace(
            finding,
            outcome=Outcome.NOT_APPLICABLE,
            is_evidence_missing=False,
            sentence=_NOT_ASKED,
            remedy="",
        )
        if finding.question in COMPARED
        and finding.outcome in (Outcome.UNDECIDED, Outcome.NOT_APPLICABLE)
        else finding
        for finding in findings
    ]


def standing_alone(
    answers: Iterable[QuestionAnswer], study: Study, *, has_failed: bool
) -> Standing:
    """A fault found stands, even where another run failed."""
    values = {answer.question: answer.answer for answer in answers}
    if values[Question.SOUND] is Answer.NO:
        return Standing.NOT_SOUND
    if values[Question.FIT] is Answer.NO:
        return Standing.NOT_FIT
    silent = [run for run in study.unusable_runs if _never_trained(run)]
    if has_failed or any(read_exit_code(run.paths) for run in silent):
        return Standing.FAILED
    if len(silent) == len(study.runs) and not any(read_troubles(run.paths) for run in silent):
        return Standing.NO_TRAINING
    is_sound = values[Question.SOUND] is Answer.YES and not study.unusable_runs
    return Standing.SOUND if is_sound else Standing.UNDECIDED


def headline_alone(
    study: Study,
    standing: Standing,
    answers: Iterable[QuestionAnswer],
    findings: Sequence[Finding],
    failed: Sequence[str],
) -> str:
    """``failed``: a sentence for each run that failed."""
    sound = next(answer for answer in answers if answer.question is Question.SOUND)
    match standing:
        case Standing.SOUND:
            reason = _all_is_well(study, findings)
        case Standing.NOT_SOUND | Standing.NOT_FIT:
            reason = _first_fault(standing, findings)
        case Standing.FAILED:
            reason = failed[0] if failed else _failed_without_training(study)
        case _:
            reason = _unfinished(study) or sound.sentence
    return f"{standing.word}: {_without_name(reason, study)}"


def next_steps_alone(
    study: Study, standing: Standing, findings: Sequence[Finding], failed: Sequence[str]
) -> tuple[str, ...]:
    """What to do, the most important first, nothing twice."""
    asked = [f for f in findings if f.question not in COMPARED]
    steps = [f.remedy for f in asked if f.blocks and f.outcome is Outcome.FAIL]
    if standing is Standing.FAILED:
        is_ended = bool(failed) and tells_of_signal(failed[0])
        todo = "Observe it again" if is_ended else "Mend the error, then observe it again"
        steps.append(f"{todo}: {again(study)}")
    elif any(_never_trained(run) for run in study.unusable_runs):
        steps.append(
            "Observe a command that trains with an optimizer of torch.optim, in a Python that has "
            f"scaleproof installed: {again(study)}"
        )
    elif study.unusable_runs:
        steps.append(f"Observe it again to its end: {again(study)}")
    else:
        steps += [
            f.remedy
            for f in asked
            if f.outcome is Outcome.ERROR
            or (f.blocks and (f.outcome is Outcome.UNDECIDED or f.is_evidence_missing))
        ]
    steps += [f.remedy for f in findings if not f.blocks and f.outcome is Outcome.FAIL]
    if standing is Standing.SOUND:
        steps.append(f"To ask whether more devices are faster and as good: {comparison(study)}")
    return tuple(dict.fromkeys(step for step in steps if step))


def _all_is_well(study: Study, findings: Sequence[Finding]) -> str:
    passed = [f for f in findings if f.question is Question.SOUND and f.outcome is Outcome.PASS]
    sentence = f"No fault found by {counted(len(passed), 'check')} in {_scope(study)}."
    if study.request.check is not None and not _is_replayed(study):
        sentence += " Nothing was replayed on one process: faults that all ranks share go unseen."
    warnings = [f.check for f in findings if f.outcome is Outcome.FAIL]
    if warnings:
        sentence += f" {counted(len(warnings), 'warning')}: {listed(warnings)}."
    return sentence


def _is_replayed(study: Study) -> bool:
    runs = study.runs_of(study.candidate)
    return any(replay.end.num_steps for run in runs for replay in replays_of(run).values())


def _scope(study: Study) -> str:
    """``2 ranks, 3 epochs and 690 steps``."""
    runs = study.runs_of(study.candidate)
    ends = [end for run in runs for rank in run.ranks for end in rank.of(EndRecord)]
    parts = [counted(max(len(run.ranks) for run in runs), "rank")]
    if study.request.num_epochs > 0:
        parts.append(counted(study.request.num_epochs, "epoch"))
    if ends:
        parts.append(counted(max(end.steps_done for end in ends), "step"))
    if len(runs) > 1:
        parts.insert(0, counted(len(runs), "run"))
    return listed(parts, most=4)


def _first_fault(standing: Standing, findings: Sequence[Finding]) -> str:
    question = Question.SOUND if standing is Standing.NOT_SOUND else Question.FIT
    faults = [
        f for f in findings if f.blocks and f.outcome is Outcome.FAIL and f.question not in COMPARED
    ]
    first = next(f for f in faults if f.question is question)
    others = [f.check for f in faults if f is not first]
    more = f" Besides: {listed(others, most=6)}." if others else ""
    return f"{first.sentence}{more}"


def _without_name(sentence: str, study: Study) -> str:
    """An only run needs no name."""
    if len(study.runs) > 1:
        return sentence
    (run,) = study.runs.values()
    rest = sentence.removeprefix(run.name).lstrip(":, ")
    return sentence if len(rest) == len(sentence) else f"{rest[:1].upper()}{rest[1:]}"


def _unfinished(study: Study) -> str:
    """Why there is no whole run to look at; empty when there is one."""
    silent = [run for run in study.unusable_runs if _never_trained(run)]
    if silent:
        return _no_training(silent[0])
    if study.unusable_runs:
        run = study.unusable_runs[0]
        ended = [rank for rank in run.ranks if rank.outcome is not None]
        num_ranks = run.manifest.num_ranks if run.manifest is not None else len(run.ranks)
        return (
            f"The run did not finish: {len(ended)} of {counted(num_ranks, 'rank')} came to the end."
        )
    return ""


def _never_trained(run: Run) -> bool:
    return run.manifest is None and not run.ranks


def _failed_without_training(study: Study) -> str:
    run = next(run for run in study.unusable_runs if read_exit_code(run.paths))
    reason = f"The command ended with exit code {read_exit_code(run.paths)} before any training "
    return f"{reason}was seen.{_troubles(run)}"


def _no_training(run: Run) -> str:
    pids = [str(pid) for pid in processes_with_torch(run.paths)]
    if not pids:
        return f"No process was seen to import torch.{_troubles(run)}"
    processes = "process" if len(pids) == 1 else "processes"
    return (
        f"No optimizer's step was seen in the {processes} {listed(pids)}, which imported torch."
        f"{_troubles(run)}"
    )


def _troubles(run: Run) -> str:
    """What kept processes from being observed; empty when nothing did."""
    troubles = [f"{trouble.what} ({trouble.why})" for trouble in read_troubles(run.paths)]
    return f" Not everything could be observed: {listed(troubles)}." if troubles else ""
