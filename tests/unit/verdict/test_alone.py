"""The verdict on a script that was observed with nothing to compare it with."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made_checks import judge_made, made

from observed import FakeScript, build_observed
from scaleproof.checks.check import Outcome, Question
from scaleproof.evidence.observations import EndRecord, Missing, ProcessRecord
from scaleproof.evidence.pulse import Pulse
from scaleproof.evidence.records import EVALUATION_TABLE, EvaluationRecord, RankOutcome
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.answers import Answer, Decision, Standing, Verdict
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import exit_code, judge_study, soundness

PASS = made(Outcome.PASS, name="passed")


def answers_of(verdict: Verdict) -> dict[Question, Answer]:
    return {answer.question: answer.answer for answer in verdict.answers}


def failing(rank: int) -> RankOutcome:
    return RankOutcome(
        status="error",
        epoch=1,
        step=5,
        phase="training",
        error_type="ValueError" if rank else "RuntimeError",
        message="bad batch" if rank else "Connection closed by peer",
        ended_at_unix_s=float(rank),
    )


def test_a_sound_one_says_so_with_what_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = judge_made(
        monkeypatch, build_observed(tmp_path), PASS, made(Outcome.PASS, name="too")
    )

    assert verdict.headline == (
        "Sound: No fault found by 2 checks in 2 ranks, 3 epochs and 18 steps."
    )
    assert verdict.standing is Standing.SOUND
    assert verdict.decision is Decision.UNDECIDED  # nobody compared
    assert soundness(verdict) is Answer.YES
    assert exit_code(verdict) == 0


def test_only_soundness_and_fitness_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstable = made(Outcome.FAIL, name="unstable-loss", question=Question.AS_GOOD)
    short = made(Outcome.UNDECIDED, name="loss-mismatch", question=Question.AS_GOOD)
    verdict = judge_made(monkeypatch, build_observed(tmp_path), PASS, unstable, short)

    assert answers_of(verdict)[Question.FASTER] is Answer.NOT_APPLICABLE
    assert answers_of(verdict)[Question.AS_GOOD] is Answer.NOT_APPLICABLE
    assert verdict.standing is Standing.SOUND
    assert verdict.headline.endswith(" 1 warning: unstable-loss.")
    assert [f.outcome for f in verdict.findings[1:]] == [Outcome.FAIL, Outcome.NOT_APPLICABLE]
    assert not verdict.findings[1].blocks
    assert "Mend." in verdict.next_steps


@pytest.mark.parametrize(
    ("question", "standing"),
    [(Question.SOUND, Standing.NOT_SOUND), (Question.FIT, Standing.NOT_FIT)],
)
def test_a_fault_rejects_and_is_the_headline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: Question, standing: Standing
) -> None:
    faults = [made(Outcome.FAIL, name=name, question=question) for name in ("first", "second")]
    verdict = judge_made(monkeypatch, build_observed(tmp_path), PASS, *faults)

    assert verdict.standing is standing
    assert verdict.headline == f"{standing.word}: first. Besides: second."
    assert verdict.decision is Decision.REJECT
    assert soundness(verdict) is Answer.NO
    assert exit_code(verdict) == 1
    assert not [step for step in verdict.next_steps if "compare" in step]


def test_an_open_check_leaves_it_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = judge_made(
        monkeypatch, build_observed(tmp_path), PASS, made(Outcome.UNDECIDED, name="open")
    )

    assert verdict.headline == "Undecided: open."
    assert verdict.next_steps == ("Mend.",)
    assert soundness(verdict) is Answer.UNDECIDED
    assert exit_code(verdict) == 3


def test_an_undecided_fitness_does_not_take_soundness_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = made(Outcome.UNDECIDED, name="accuracy-paradox", question=Question.FIT)
    verdict = judge_made(monkeypatch, build_observed(tmp_path), PASS, unfit)

    assert verdict.standing is Standing.SOUND
    assert answers_of(verdict)[Question.FIT] is Answer.UNDECIDED


def _probe_broke(rank: int, record: Any) -> Any:
    if isinstance(record, EndRecord) and rank == 1:
        missing = (Missing(what="probe", why="RuntimeError: \x1b[2Jgone"),)
        return msgspec.structs.replace(record, missing=missing)
    return record


def _without_end(rank: int, record: Any) -> Any:
    return None if isinstance(record, EndRecord) and rank == 1 else record


@pytest.mark.parametrize(
    ("change", "words"), [(_probe_broke, "probe (RuntimeError"), (_without_end, "end (its last")]
)
@pytest.mark.parametrize("is_compared", [False, True])
def test_what_was_not_seen_to_the_end_is_not_called_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, words: str, is_compared: bool
) -> None:
    baseline = FakeScript(num_ranks=1, parallelism="none") if is_compared else None
    study = build_observed(tmp_path, FakeScript(change=change), baseline=baseline)
    verdict = judge_made(monkeypatch, study, PASS)
    sound = next(a for a in verdict.answers if a.question is Question.SOUND)

    assert sound.answer is Answer.UNDECIDED
    assert words in sound.sentence
    assert sound.sentence.isprintable()
    assert soundness(verdict) is Answer.UNDECIDED
    assert verdict.standing is Standing.UNDECIDED


def test_a_failed_run_names_the_first_rank_that_failed(tmp_path: Path) -> None:
    verdict = judge_study(build_observed(tmp_path, FakeScript(outcome=failing)), Profile())

    assert verdict.standing is Standing.FAILED
    assert verdict.headline == "Failed: Rank 1 failed in epoch 2, step 6: ValueError: bad batch."
    assert verdict.next_steps == (
        "Mend the error, then observe it again: scaleproof observe -- torchrun train.py",
    )
    assert soundness(verdict) is Answer.UNDECIDED
    assert exit_code(verdict) == 4


def test_a_run_that_stopped_is_undecided(tmp_path: Path) -> None:
    done = RankOutcome(status="ok", epoch=2, step=0, phase="ended")
    script = FakeScript(outcome=lambda rank: None if rank else done)
    verdict = judge_study(build_observed(tmp_path, script), Profile())

    assert verdict.headline == "Undecided: The run did not finish: 1 of 2 ranks came to the end."
    assert verdict.next_steps == (
        "Observe it again to its end: scaleproof observe -- torchrun train.py",
    )
    assert exit_code(verdict) == 3


def test_one_run_that_stopped_leaves_the_others_soundness_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_observed(tmp_path, seeds=(0, 1))
    (tmp_path / "observed-seed1" / "rank-00001.outcome.json").unlink()
    verdict = judge_made(monkeypatch, load_study(tmp_path), PASS)

    assert answers_of(verdict)[Question.SOUND] is Answer.YES  # of what was looked at
    assert verdict.standing is Standing.UNDECIDED
    assert soundness(verdict) is Answer.UNDECIDED
    assert exit_code(verdict) == 3


def without_training(root: Path, *pids: int) -> Study:
    study = build_observed(root)
    (run,) = study.runs.values()
    shutil.rmtree(run.paths.root)
    for pid in pids:
        Pulse(run.paths.pulse(pid))
    return load_study(root)


def test_a_command_that_never_trained(tmp_path: Path) -> None:
    verdict = judge_study(without_training(tmp_path), Profile())

    assert verdict.headline == ("No training: No process was seen to import torch.")
    (step,) = verdict.next_steps
    assert step.endswith("scaleproof observe -- torchrun train.py")
    assert exit_code(verdict) == 3


def test_processes_that_never_made_a_step_are_named_with_their_troubles(tmp_path: Path) -> None:
    study = without_training(tmp_path, 12, 7)
    (run,) = study.runs.values()
    run.paths.trouble(12).write_text('{"what": "process", "why": "torch came first"}\n')
    verdict = judge_study(study, Profile())

    assert "in the processes 7 and 12, which imported torch." in verdict.headline
    assert "process (torch came first)." in verdict.headline


def _as_script(script: str) -> Any:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, ProcessRecord):
            return msgspec.structs.replace(record, script=script, arguments=("--lr", "a b"))
        return record

    return change


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            FakeScript(change=_as_script("train.py")),
            "scaleproof compare train.py --devices 1,2 -- --lr 'a b'",
        ),
        (
            FakeScript(num_ranks=1, parallelism="none", change=_as_script("train.py")),
            "scaleproof compare train.py --devices 1,2 -- --lr 'a b'",
        ),
        (FakeScript(change=_as_script("")), "scaleproof compare SCRIPT --devices 1,N"),
    ],
)
def test_a_sound_one_can_be_compared_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: FakeScript, words: str
) -> None:
    verdict = judge_made(monkeypatch, build_observed(tmp_path, script), PASS)

    (step,) = verdict.next_steps
    assert step.endswith(words)


def test_metric_drop_decides_where_accuracy_can_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = build_observed(tmp_path, baseline=FakeScript(num_ranks=1, parallelism="none"))
    metric = made(Outcome.PASS, name="metric-drop", question=Question.AS_GOOD)

    for outcome, answer in (
        (Outcome.NOT_APPLICABLE, Answer.YES),
        (Outcome.UNDECIDED, Answer.UNDECIDED),
        (Outcome.PASS, Answer.YES),
        (Outcome.FAIL, Answer.NO),
    ):
        accuracy = made(outcome, name="accuracy-drop", question=Question.AS_GOOD)
        verdict = judge_made(monkeypatch, study, accuracy, metric)
        assert answers_of(verdict)[Question.AS_GOOD] is answer


ALONE: dict[str, Any] = {"num_ranks": 1, "parallelism": "none"}
NAMES = {
    Question.FASTER: "no-speed-up",
    Question.AS_GOOD: "metric-drop",
    Question.SOUND: "x",
    Question.FIT: "y",
}


def judge_pair(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: dict[Question, Outcome],
    more: Any = lambda rank, writer: None,
) -> Verdict:
    """Two scripts that report the same; every question passes unless ``outcomes`` has it."""
    study = build_observed(
        root, FakeScript(more=more), baseline=FakeScript(more=more, **ALONE), seeds=(0, 1)
    )
    checks = [
        made(outcomes.get(question, Outcome.PASS), name=name, question=question)
        for question, name in NAMES.items()
    ]
    return judge_made(monkeypatch, study, *checks)


def numbered(largest: int) -> Any:
    """Reports predictions, three of four right, whose largest class number is given."""

    def more(rank: int, writer: RankWriter) -> None:
        if rank > 0:
            return
        table = np.zeros(4, EVALUATION_TABLE)
        table["sample_id"], table["loss"] = range(4), np.nan
        table["target"] = table["prediction"] = (0, 1, largest, 0)
        table["prediction"][3] = 1
        writer.record(EvaluationRecord(epochs_done=3, table=writer.array("predictions", table)))

    return more


@pytest.mark.parametrize(
    ("largest", "words"), [(2, "accuracy 75.0 % against 75.0 %"), (1000, "its metrics as good")]
)
def test_two_scripts_are_adopted_with_their_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, words: str
) -> None:
    verdict = judge_pair(tmp_path, monkeypatch, {}, numbered(largest))

    assert verdict.headline == (
        f"Adopt 2 devices (candidate): 50 % less time per epoch, {words}, no fault found."
    )


@pytest.mark.parametrize(
    ("silent", "words"),
    [
        (
            (Question.FIT,),
            "fit: the script reported none. Shown so far: faster, as good by the figures it "
            "reported and sound.",
        ),
        (
            (Question.FIT, Question.AS_GOOD),
            "as good and fit: the script reported none. Shown so far: faster and sound.",
        ),
        (tuple(NAMES), "as good and fit: the script reported none."),
    ],
)
def test_without_predictions_a_comparison_says_what_is_missing_and_what_was_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silent: tuple[Question, ...],
    words: str,
) -> None:
    outcomes = dict.fromkeys(silent, Outcome.NOT_APPLICABLE)
    verdict = judge_pair(tmp_path, monkeypatch, outcomes)

    assert verdict.decision is Decision.UNDECIDED
    assert verdict.headline == (
        "Undecided: report predictions (scaleproof.report_predictions) to show whether it is "
        + words
    )
    assert verdict.next_steps[0].startswith("Call scaleproof.report_predictions(targets=...")
    assert verdict.next_steps[0].endswith("scaleproof observe -- torchrun train.py")


def test_what_predictions_can_not_tell_is_not_asked_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_speed = {Question.FASTER: Outcome.NOT_APPLICABLE}
    unfit = {Question.FIT: Outcome.NOT_APPLICABLE}
    speed = judge_pair(tmp_path / "speed", monkeypatch, open_speed)
    words = judge_pair(tmp_path / "words", monkeypatch, unfit, numbered(1000))

    for verdict in (speed, words):
        assert "report predictions" not in verdict.headline
        assert not any("report_predictions" in step for step in verdict.next_steps)


def test_two_scripts_are_adopted_without_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge_pair(tmp_path, monkeypatch, {}).headline == (
        "Adopt 2 devices (candidate): 50 % less time per epoch, its metrics as good, no fault "
        "found."
    )
