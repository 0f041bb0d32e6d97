"""What is written about ranks that could not say themselves how they ended."""

import signal
from pathlib import Path

import pytest

from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import Activity, PulseReading
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.writer import write_json
from scaleproof.launch.outcomes import Outcomes
from scaleproof.launch.processes import Ended, Met


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    paths.processes.mkdir(parents=True)
    return paths


def gone(
    rank: int,
    code: int | None,
    *,
    at_s: float = 10.0,
    step: int = 4,
    activity: Activity = Activity.BACKWARD,
) -> Met:
    reading = PulseReading(
        pid=100 + rank,
        activity=activity,
        beats=9,
        rank=rank,
        num_ranks=2,
        epoch=0,
        step=step,
    )
    ended = Ended(pid=reading.pid, code=code, at_unix_s=at_s)
    return Met(reading=reading, rank=rank, num_ranks=2, ended=ended)


def left(paths: RunPaths, rank: int, status: str, message: str = "") -> None:
    outcome = RankOutcome(
        status=status,  # type: ignore[arg-type]
        epoch=0,
        step=4,
        phase="in backward",
        message=message,
        ended_at_unix_s=9.0,
    )
    write_json(paths.outcome(rank), outcome)


def outcome_of(paths: RunPaths, rank: int) -> RankOutcome | None:
    path = paths.outcome(rank)
    return read_json(path, RankOutcome, what="an outcome") if path.exists() else None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGKILL, "signal 9 (SIGKILL): something outside killed it"),
        (-signal.SIGTERM, "signal 15 (SIGTERM): something outside ended it"),
        (-signal.SIGSEGV, "signal 11 (SIGSEGV)"),
        (-40, "signal 40"),
        (3, "exit code 3; what it wrote last says why"),
        (None, "ended without a word: it was killed, or it called os._exit"),
    ],
)
def test_a_rank_that_vanished_gets_an_outcome(
    code: int | None, expected: str, paths: RunPaths
) -> None:
    Outcomes(paths).complete([gone(1, code)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert (outcome.status, outcome.step, outcome.ended_at_unix_s) == ("error", 4, 10.0)
    assert expected in outcome.message


def test_a_crash_is_placed_by_the_stack_it_left(paths: RunPaths) -> None:
    paths.stack(101).write_text(
        "Fatal Python error: Segmentation fault\n\n"
        "Current thread 0x1 (most recent call first):\n"
        '  File "/lib/python3.11/site-packages/torch/x.py", line 3 in convolve\n'
        '  File "/home/me/train.py", line 30 in train\n'
    )
    Outcomes(paths).complete([gone(1, -signal.SIGSEGV)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert "signal 11 (SIGSEGV) in train (train.py:30)" in outcome.message
    assert outcome.traceback.endswith("line 3, in convolve\n")


def test_what_the_launcher_ended_because_another_failed_is_no_failure(paths: RunPaths) -> None:
    left(paths, 0, "error", "bad batch")
    Outcomes(paths).complete([gone(1, -signal.SIGTERM)])
    assert outcome_of(paths, 1) is None


def test_the_cause_is_written_before_its_consequence_when_both_are_seen_at_once(
    paths: RunPaths,
) -> None:
    Outcomes(paths).complete([gone(0, -signal.SIGTERM), gone(1, -signal.SIGKILL)])
    assert outcome_of(paths, 0) is None
    killed = outcome_of(paths, 1)
    assert killed is not None
    assert "SIGKILL" in killed.message


def test_all_ranks_ended_from_outside_are_all_told(paths: RunPaths) -> None:
    Outcomes(paths).complete([gone(0, -signal.SIGTERM)])
    assert outcome_of(paths, 0) is not None


@pytest.mark.parametrize("code", [-signal.SIGABRT, 0, 120, None])
def test_an_abort_after_the_end_is_no_failure(code: int | None, paths: RunPaths) -> None:
    left(paths, 1, "ok")
    Outcomes(paths).complete([gone(1, code, activity=Activity.ENDED)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert outcome.status == "ok"


def test_an_abort_before_the_end_is_one(paths: RunPaths) -> None:
    Outcomes(paths).complete([gone(1, -signal.SIGABRT)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert outcome.status == "error"


def test_an_exit_code_the_script_chose_overrules_a_quiet_end(paths: RunPaths) -> None:
    left(paths, 1, "ok")
    Outcomes(paths).complete([gone(1, 1, activity=Activity.ENDED)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert outcome.status == "error"
    assert "exit code 1" in outcome.message


def test_its_own_words_are_kept(paths: RunPaths) -> None:
    left(paths, 1, "error", "bad batch")
    Outcomes(paths).complete([gone(1, 1)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert outcome.message == "bad batch"


def test_a_process_that_never_trained_and_ended_well_is_no_rank(paths: RunPaths) -> None:
    Outcomes(paths).complete([gone(1, 0, step=0)])
    assert outcome_of(paths, 1) is None


def test_a_rank_that_left_by_os_exit_after_training_is_fine(paths: RunPaths) -> None:
    Outcomes(paths).complete([gone(1, 0)])
    outcome = outcome_of(paths, 1)
    assert outcome is not None
    assert outcome.status == "ok"
