"""The verdict on a script that was observed alone: whether what it did was sound.

Nothing was there to compare it with, so nobody asked whether it is faster or as good.
"""

import shlex
from collections.abc import Iterable, Sequence

import msgspec

from scaleproof.checks.check import Outcome, Question
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import EndRecord, ProcessRecord
from scaleproof.evidence.study import Run, Study
from scaleproof.evidence.troubles import processes_seen, read_troubles
from scaleproof.verdict.answers import Answer, Finding, QuestionAnswer, Standing

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
    if has_failed:
        return Standing.FAILED
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
            reason = failed[0]
        case _:
            reason = _unfinished(study) or sound.sentence
    return f"{standing.word}: {_without_name(reason, study)}"


def next_steps_alone(
    study: Study, standing: Standing, findings: Sequence[Finding]
) -> tuple[str, ...]:
    """What to do, the most important first, nothing twice."""
    again = shlex.join(study.request.command)
    asked = [f for f in findings if f.question not in COMPARED]
    steps = [f.remedy for f in asked if f.blocks and f.outcome is Outcome.FAIL]
    if standing is Standing.FAILED:
        steps.append(f"Mend the error, then observe it again: {again}")
    elif any(_never_trained(run) for run in study.unusable_runs):
        steps.append(
            "Observe a command that trains with an optimizer of torch.optim, in a Python that has "
            f"scaleproof installed: {again}"
        )
    elif study.unusable_runs:
        steps.append(f"Observe it again to its end: {again}")
    else:
        steps += [
            f.remedy
            for f in asked
            if f.outcome is Outcome.ERROR
            or (f.blocks and (f.outcome is Outcome.UNDECIDED or f.is_evidence_missing))
        ]
    steps += [f.remedy for f in findings if not f.blocks and f.outcome is Outcome.FAIL]
    if standing is Standing.SOUND:
        steps.append(f"To ask whether more devices are faster and as good: {_comparison(study)}")
    return tuple(dict.fromkeys(step for step in steps if step))


def _all_is_well(study: Study, findings: Sequence[Finding]) -> str:
    passed = [f for f in findings if f.question is Question.SOUND and f.outcome is Outcome.PASS]
    sentence = f"No fault found by {counted(len(passed), 'check')} in {_scope(study)}."
    warnings = [f.check for f in findings if f.outcome is Outcome.FAIL]
    if warnings:
        sentence += f" {counted(len(warnings), 'warning')}: {listed(warnings)}."
    return sentence


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


def _no_training(run: Run) -> str:
    pids = [str(pid) for pid in processes_seen(run.paths)]
    seen = "no process of the command was seen to import torch"
    if pids:
        processes = "process" if len(pids) == 1 else "processes"
        seen = f"no step of an optimizer in the {processes} {listed(pids)}, which imported torch"
    troubles = [f"{trouble.what} ({trouble.why})" for trouble in read_troubles(run.paths)]
    if not troubles:
        return f"No training was seen: {seen}."
    return f"No training was seen: {seen}. Not everything could be observed: {listed(troubles)}."


def _comparison(study: Study) -> str:
    """The command that compares the observed one with one device, as far as it can be told."""
    _, is_there, observed = _split(study.request.command)
    processes = [
        process
        for run in study.runs_of(study.candidate)
        for rank in run.ranks
        for process in rank.of(ProcessRecord)
    ]
    if not is_there or not processes or not processes[0].script:
        return "scaleproof compare SCRIPT --devices 1,N"
    script, arguments = processes[0].script, processes[0].arguments
    if processes[0].num_ranks == 1:
        rest = ["--", *arguments] if arguments else []
        return shlex.join(["scaleproof", "compare", script, "--devices", "1,2", *rest])
    alone = shlex.join(["python", script, *arguments])
    both = ["--baseline", alone, "--candidate", shlex.join(observed)]
    return shlex.join(["scaleproof", "compare", *both])


def _split(command: Sequence[str]) -> tuple[Sequence[str], bool, Sequence[str]]:
    if "--" not in command:
        return command, False, ()
    place = list(command).index("--")
    return command[:place], True, command[place + 1 :]
