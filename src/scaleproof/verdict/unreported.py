"""What a comparison of scripts can't say because they reported no predictions."""

from collections.abc import Iterable

from scaleproof.checks.check import Question
from scaleproof.checks.needs import has_predictions
from scaleproof.checks.wording import listed
from scaleproof.evidence.study import Study
from scaleproof.verdict.answers import Answer, QuestionAnswer
from scaleproof.verdict.commands import again

_FROM_PREDICTIONS = {Question.AS_GOOD: "as good", Question.FIT: "fit"}
"""What predictions would tell; the first of them, reported figures do too."""

_SHOWN = {
    Question.FASTER: "faster",
    Question.AS_GOOD: "as good by the figures it reported",
    Question.SOUND: "sound",
}


def lacks_predictions(study: Study, answers: Iterable[QuestionAnswer]) -> bool:
    """A question stays open for no other reason than that the script reported no predictions."""
    is_open = any(
        answer.question in _FROM_PREDICTIONS and answer.answer is Answer.NOT_APPLICABLE
        for answer in answers
    )
    return (
        study.is_script
        and bool(study.runs_of(study.candidate))
        and is_open
        and not (has_predictions(study))
    )


def headline_without_predictions(answers: Iterable[QuestionAnswer]) -> str:
    """What is missing, and what was shown without it."""
    values = {answer.question: answer.answer for answer in answers}
    silent = [word for of, word in _FROM_PREDICTIONS.items() if values[of] is Answer.NOT_APPLICABLE]
    shown = [word for of, word in _SHOWN.items() if values[of] is Answer.YES]
    shown_words = f" Shown so far: {listed(shown)}." if shown else ""
    return (
        f"Undecided: report predictions (scaleproof.report_predictions) to show whether it is "
        f"{listed(silent)}: the script reported none.{shown_words}"
    )


def step_to_predictions(study: Study) -> str:
    """What to do about it."""
    return (
        "Call scaleproof.report_predictions(targets=..., predictions=..., sample_ids=...) in the "
        f"evaluation, then compare again: {again(study)}"
    )
