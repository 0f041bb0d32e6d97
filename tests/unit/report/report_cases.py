"""Verdicts and studies that the report tests share."""

from pathlib import Path
from typing import Any

import numpy as np

from scaleproof.checks.check import Family, Outcome, Question
from scaleproof.evidence.study import Study
from scaleproof.report.summary import Summary, summarise
from scaleproof.verdict.answers import (
    Answer,
    Decision,
    Finding,
    QuestionAnswer,
    Standing,
    Verdict,
)
from studies import FakeArm, build_study, flip_share

HOSTILE_NAMES = (
    "<script>alert('x')</script>",
    "\"quoted\" & 'single' | pipe",
    "@team #12 [red]rich[/red] {{ jinja }} \x1b[31mescape\x00\u202e",
    "汉字 ünïcödé 🐈",
    "long " * 40,
)


def finding(check: str = "accuracy-drop", **changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "check": check,
        "question": Question.AS_GOOD,
        "family": Family.QUALITY,
        "outcome": Outcome.PASS,
        "sentence": "Accuracy fell by at most 0.6 points, 2 points are allowed.",
        "remedy": "",
        "p_value": None,
        "is_evidence_missing": False,
        "blocks": True,
        "measurement": {"accuracy_change": -0.002},
    }
    return Finding(**{**fields, **changes})


def answers(**by_question: Answer) -> tuple[QuestionAnswer, ...]:
    return tuple(
        QuestionAnswer(
            question=question,
            answer=by_question.get(question.name.lower(), Answer.YES),
            sentence=f"What decided {question.value}, with 1 number.",
        )
        for question in Question
    )


def verdict(**changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "decision": Decision.ADOPT,
        "headline": "Adopt 2 devices (ddp): 45 % less time per epoch, no fault found.",
        "answers": answers(),
        "findings": (finding(),),
        "next_steps": ("Train on 2 devices with the ddp strategy.",),
        "failed_runs": (),
        "unfinished_runs": (),
    }
    fields |= changes
    return Verdict(**{"standing": Standing(fields["decision"].value), **fields})


def mixed_verdict(text: str = "class 'cat'") -> Verdict:
    """One finding of every kind, all with ``text`` in their sentences."""
    return verdict(
        decision=Decision.REJECT,
        headline=f"Reject: Recall of {text} fell by 12 points.",
        answers=answers(as_good=Answer.NO, sound=Answer.UNDECIDED, fit=Answer.NOT_APPLICABLE),
        findings=(
            finding(),
            finding(
                "recall-drop",
                outcome=Outcome.FAIL,
                sentence=f"Recall of {text} fell from 80 % to 68 %.",
                remedy=f"Lower the learning rate, then look at {text} again.",
                p_value=0.001,
                measurement={"low": float("-inf"), "high": float("nan")},
            ),
            finding(
                "low-efficiency",
                question=Question.FASTER,
                family=Family.SPEED,
                outcome=Outcome.FAIL,
                blocks=False,
                sentence=f"Efficiency is 62 % for {text}.",
                remedy="Use a larger batch.",
            ),
            finding("loss-mismatch", outcome=Outcome.UNDECIDED, sentence=f"Can't tell {text}."),
            finding(
                "replica-drift",
                question=Question.SOUND,
                outcome=Outcome.NOT_APPLICABLE,
                is_evidence_missing=True,
                sentence=f"No state records of {text}.",
                remedy="Record states.",
            ),
            finding(
                "accuracy-paradox",
                question=Question.FIT,
                outcome=Outcome.NOT_APPLICABLE,
                sentence="There is no floor.",
            ),
            finding(
                "unstable-loss",
                question=Question.SOUND,
                outcome=Outcome.ERROR,
                sentence=f"The check broke: KeyError {text}.",
            ),
        ),
        next_steps=(f"Look at {text}.", "Run again with --seeds 5."),
        failed_runs=(f"ddp-2-seed1: rank 1 failed at step 3: {text}.",),
        unfinished_runs=("ddp-2-seed2",),
    )


def unsynced_verdict() -> Verdict:
    """On a script alone: one fault with a consequence, and most questions not asked."""
    sentence = "Rank 1 used its own gradient of 'head.weight' alone in step 1."
    return verdict(
        decision=Decision.REJECT,
        standing=Standing.NOT_SOUND,
        headline=f"Not sound: {sentence}",
        answers=answers(
            faster=Answer.NOT_APPLICABLE,
            as_good=Answer.NOT_APPLICABLE,
            sound=Answer.NO,
            fit=Answer.NOT_APPLICABLE,
        ),
        findings=(
            finding("no-speed-up", outcome=Outcome.NOT_APPLICABLE, sentence="Not asked."),
            finding("accuracy-drop", outcome=Outcome.NOT_APPLICABLE, sentence="Not asked."),
            finding(
                "unsynced-gradients",
                question=Question.SOUND,
                outcome=Outcome.FAIL,
                sentence=sentence,
                remedy="Call the wrapped model.",
                consequences=("replica-drift",),
            ),
            finding(
                "replica-drift",
                question=Question.SOUND,
                outcome=Outcome.NOT_APPLICABLE,
                sentence="A consequence of unsynced-gradients: Parameter 'head.weight' differs.",
                consequence_of=("unsynced-gradients",),
            ),
            finding("non-finite", question=Question.SOUND, sentence="All numbers are finite."),
        ),
        next_steps=("Call the wrapped model.",),
    )


def summary_of(root: Path, judged: Verdict | None = None, **arguments: Any) -> Summary:
    return summarise(build_study(root, **arguments), judged or verdict())


def named_study(root: Path, names: tuple[str, ...], **arguments: Any) -> Study:
    """A study with these classes, 20 samples each, of which 10 % and 20 % are wrong."""
    num = len(names)
    shared = {"targets": lambda: np.repeat(np.arange(num, dtype=np.int32), 20)}
    baseline = FakeArm(
        **shared,
        predictions=lambda seed, y: flip_share(y, share=0.1, seed=seed, num_classes=num),
    )
    candidate = FakeArm(
        **shared,
        num_ranks=2,
        epoch_time_s=0.55,
        predictions=lambda seed, y: flip_share(y, share=0.2, seed=seed, num_classes=num),
    )
    return build_study(root, baseline=baseline, candidate=candidate, class_names=names, **arguments)
