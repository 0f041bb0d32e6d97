"""What is said of a command that did not train, that a signal ended, or that is typed again."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_checks import judge_made, made

from observed import FakeScript, build_observed
from scaleproof.checks.check import Family, Outcome, Question
from scaleproof.evidence.observations import ProcessRecord
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.troubles import write_command_end
from scaleproof.report import words as report_words
from scaleproof.report.formats import render_text
from scaleproof.report.summary import summarise
from scaleproof.verdict.answers import Finding, Standing
from scaleproof.verdict.commands import again, comparison
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import exit_code, judge_study

PASS = made(Outcome.PASS, name="passed")


def without_training(root: Path) -> Study:
    study = build_observed(root)
    (run,) = study.runs.values()
    shutil.rmtree(run.paths.root)
    return load_study(root)


def _named(rank: int, record: Any) -> Any:
    is_process = isinstance(record, ProcessRecord)
    return msgspec.structs.replace(record, script="train.py") if is_process else record


@pytest.mark.parametrize("kind", ["pulse", "stack"])
def test_torch_without_a_step_is_not_called_a_missing_import(tmp_path: Path, kind: str) -> None:
    study = without_training(tmp_path)
    (run,) = study.runs.values()
    run.paths.processes.mkdir(parents=True)
    getattr(run.paths, kind)(7).touch()
    verdict = judge_study(load_study(tmp_path), Profile())

    assert verdict.standing is Standing.NO_TRAINING
    assert verdict.headline == (
        "No training: No optimizer's step was seen in the process 7, which imported torch."
    )


@pytest.mark.parametrize("code", [0, 2])
def test_a_command_that_failed_before_training_says_its_exit_code(
    tmp_path: Path, code: int
) -> None:
    study = without_training(tmp_path)
    (run,) = study.runs.values()
    run.paths.root.mkdir()
    write_command_end(run.paths, code)
    verdict = judge_study(load_study(tmp_path), Profile())

    failed = "Failed: The command ended with exit code 2 before any training was seen."
    assert (verdict.headline == failed) is (code == 2)
    assert verdict.standing is (Standing.FAILED if code else Standing.NO_TRAINING)
    assert exit_code(verdict) == (4 if code else 3)


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        ("ProcessEnded", "the process ended with signal 15 (SIGTERM)", "signal (SIGTERM)"),
        ("KeyboardInterrupt", "", "signal (SIGINT)"),
    ],
)
def test_a_run_that_a_signal_ended_is_not_blamed(
    tmp_path: Path, kind: str, message: str, words: str
) -> None:
    ended = RankOutcome(
        status="error", epoch=0, step=245, phase="between steps", error_type=kind, message=message
    )
    study = build_observed(tmp_path, FakeScript(outcome=lambda rank: ended))
    verdict = judge_study(study, Profile())

    assert (
        verdict.headline == f"Failed: Rank 0 was ended by a {words} between steps after 245 steps."
    )
    assert verdict.next_steps == ("Observe it again: scaleproof observe -- torchrun train.py",)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("observe --out a b.py --out c", "observe b.py --out c"),
        ("observe --out=a --every 2 -- b.py --out c", "observe --every 2 -- b.py --out c"),
        ("compare b.py --out a --devices 1,2 -- --out c", "compare b.py --devices 1,2 -- --out c"),
    ],
)
def test_the_folder_just_written_is_not_suggested_again(
    tmp_path: Path, typed: str, words: str
) -> None:
    study = build_observed(tmp_path)
    command = ("scaleproof", *typed.split())
    request = msgspec.structs.replace(study.request, command=command)
    assert again(replace(study, request=request)) == f"scaleproof {words}"


def test_a_command_of_another_launcher_gets_no_invented_baseline(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(change=_named))
    command = ("scaleproof", "observe", "--", "accelerate", "launch", "train.py")
    other = replace(study, request=msgspec.structs.replace(study.request, command=command))
    assert "--baseline (" in comparison(other) and "python" not in comparison(other)


def test_the_headline_and_the_answer_count_the_same_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advises = made(Outcome.PASS, name="advises")
    verdict = judge_made(
        monkeypatch, build_observed(tmp_path), PASS, advises, advisory=("advises",)
    )

    assert "by 2 checks" in verdict.headline and "by 2 checks" in verdict.answers[2].sentence


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_a_report_without_training_is_short(tmp_path: Path, name: Any) -> None:
    study = without_training(tmp_path)
    text = render_text(summarise(study, judge_study(study, Profile())), name)

    assert "no training" in text.lower()
    for absent in ("not apply", ">Evidence<", "### Evidence", "As good?", "No evidence"):
        assert absent not in text


def test_the_heading_of_the_passes_counts_those_on_soundness_apart() -> None:
    def heading(*questions: Question) -> str:
        passes = tuple(
            Finding(
                check="x",
                question=question,
                family=next(iter(Family)),
                outcome=Outcome.PASS,
                sentence="",
                remedy="",
                p_value=None,
                is_evidence_missing=False,
                blocks=True,
                measurement={},
            )
            for question in questions
        )
        return report_words.passes_heading(report_words.group_findings(passes))

    assert heading(Question.SOUND) == "Checks that passed"
    assert heading(Question.SOUND, Question.FIT) == "Checks that passed: 1 on soundness, 1 other"
