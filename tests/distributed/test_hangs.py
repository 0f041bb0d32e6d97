"""Scripts that hang or crash under two ranks: the report names the rank, the operation, the cause.

Each script in ``hanging/`` has one fault. None is edited for us: they are started by torchrun.
"""

import sys
from pathlib import Path

import psutil
import pytest

from scaleproof.evidence.failures import describe_failure
from scaleproof.evidence.study import Run, load_study
from scaleproof.launch.observe_command import ObservedCommand, observe_command

SCRIPTS = Path(__file__).parent / "hanging"
TIMEOUT_S = 6.0

pytestmark = pytest.mark.distributed


def observe(script: str, folder: Path) -> tuple[ObservedCommand, Run, str]:
    """What came of the script, the evidence, and the sentence about its failure."""
    observed = observe_command(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(SCRIPTS / f"{script}.py")),
        ],
        folder / "study",
        timeout_s=TIMEOUT_S,
    )
    run = load_study(observed.paths.root).runs["observed", 0]
    assert run.status == "failed"
    failure = describe_failure(run)
    assert failure is not None
    assert processes_of(run) == []
    return observed, run, failure.sentence


def processes_of(run: Run) -> list[int]:
    return [
        int(path.stem)
        for path in run.paths.processes.glob("*.pulse")
        if psutil.pid_exists(int(path.stem))
    ]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "branch_on_rank_0",
            (
                "Rank 0 waits in all_reduce of 3x2 float (collective 10), called in log_mean "
                "(branch_on_rank_0.py:10), after 4 steps.",
                "Rank 1 waits in barrier (collective 10), called in main",
                "As collective 10 the ranks call different ones",
                "a branch that only some ranks take",
            ),
        ),
        (
            "uneven_batches",
            (
                "Rank 0 waits in all_reduce of 10 float (collective 9), called in main "
                "(uneven_batches.py:17), after 3 steps.",
                "Rank 1 waits in barrier (collective 9), called in wait_for_the_others "
                "(uneven_batches.py:24), after 3 steps.",
                "Rank 1 left the training loop",
                "uneven batches",
            ),
        ),
        (
            "swapped_order",
            (
                "Rank 0 waits in broadcast of 3 float (collective 9), called in exchange",
                "Rank 1 waits in all_reduce of 3 float (collective 9), called in exchange",
                "the order differs",
                "in the same order on every rank",
            ),
        ),
        (
            "sleeps_on_rank_1",
            (
                "Rank 0 waits in all_reduce of 10 float (collective 8), called in main",
                "Rank 1 is in wait_for (sleeps_on_rank_1.py:14), after 2 steps.",
                "Rank 1 never came",
                "a rank that stands still where it is",
            ),
        ),
        (
            "missing_at_the_start",
            (
                "Rank 0 waits in init_process_group, called in main (missing_at_the_start.py:16).",
                "Rank 1 never joined the process group: it is in prepare_data "
                "(missing_at_the_start.py:10).",
                "Only 1 of 2 ranks called init_process_group",
            ),
        ),
        (
            "stuck_worker",
            (
                "Rank 0 waits in all_reduce of 10 float (collective 11)",
                "Rank 1 waits for a data worker, which is in __getitem__ (stuck_worker.py:21), "
                "called in main",
                "A data worker of rank 1 does not deliver",
                "num_workers=0",
            ),
        ),
        (
            "barrier_on_rank_0",
            (
                "Rank 0 waits in barrier (collective 1), called in save_checkpoint "
                "(barrier_on_rank_0.py:9)",
                "Rank 1 is in watch_metrics (barrier_on_rank_0.py:14)",
                "Rank 1 never came: a branch that only some ranks take",
            ),
        ),
    ],
)
def test_a_hang_names_who_waits_where_and_who_never_came(
    script: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    observed, run, sentence = observe(script, tmp_path)
    assert observed.hung
    assert observed.exit_code != 0
    for part in ("nothing moved for 6 s", *expected):
        assert part in sentence, sentence
    assert run.hang is not None
    assert [rank.rank for rank in run.hang.ranks] == [0, 1]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "raises_on_rank_1",
            (
                "rank 1 failed between steps after 2 steps: ValueError: the third batch of rank 1 "
                "is bad.",
            ),
        ),
        (
            "killed_on_rank_1",
            ("rank 1 failed between steps after 2 steps", "signal 9 (SIGKILL)", "memory runs out"),
        ),
        (
            "mismatched_shapes",
            (
                "rank 1 failed between steps after 3 steps",
                "signal 6 (SIGABRT) in total_of (mismatched_shapes.py:10)",
                "Rank 0 was in all_reduce of 8 float (collective 9).",
                "tensors of different sizes",
            ),
        ),
        (
            "exits_early",
            (
                "rank 0 lost another rank in backward after 2 steps, in all_reduce of 10 float "
                "(collective 8)",
                "Rank 1 had ended without an error after 2 steps.",
                "exit that only one rank takes",
            ),
        ),
        ("leaves_with_code_3", ("rank 1 failed at its end after 2 steps", "exit code 3")),
    ],
)
def test_a_crash_names_the_first_rank_and_not_the_flood(
    script: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    observed, _, sentence = observe(script, tmp_path)
    assert not observed.hung
    assert observed.exit_code == 1
    for part in expected:
        assert part in sentence, sentence


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_rank_that_the_script_started_itself_leaves_its_error(
    start_method: str, tmp_path: Path
) -> None:
    script = SCRIPTS / "raises_in_spawned_rank_1.py"
    command = [sys.executable, str(script), str(tmp_path / "store"), start_method]
    observed = observe_command(command, tmp_path / "study", timeout_s=20.0)
    assert observed.exit_code == 1
    failure = describe_failure(load_study(observed.paths.root).runs["observed", 0])
    assert failure is not None
    assert "rank 1 failed" in failure.sentence
    assert "ValueError: the third batch of rank 1 is bad." in failure.sentence
    assert "raises_in_spawned_rank_1.py" in failure.traceback


def test_work_that_nobody_waits_for_is_no_hang(tmp_path: Path) -> None:
    """It computes for longer than the timeout between two steps, on all ranks."""
    command = [sys.executable, str(SCRIPTS / "computes_for_long.py")]
    observed = observe_command(command, tmp_path / "study", timeout_s=2.0)
    assert (observed.exit_code, observed.hung) == (0, False)


def test_the_frames_of_an_error_are_the_scripts_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import torch\n"
        "layer = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)\n"
        "loss = layer(torch.ones(1, 2))\n"
        "loss.sum().backward()\n"
        "optimizer.step()\n"
        "loss.sum().backward()\n"
    )
    observed = observe_command([sys.executable, str(script)], tmp_path / "study")
    stderr = capfd.readouterr().err
    assert observed.exit_code == 1
    assert "backward through the graph a second time" in stderr
    assert "scaleproof" not in stderr
    (rank,) = load_study(observed.paths.root).runs["observed", 0].ranks
    assert rank.outcome is not None
    assert (rank.outcome.status, rank.outcome.error_type) == ("error", "RuntimeError")
