"""What a hang is said to be, from records of who was where."""

from pathlib import Path

import pytest

from observed import FakeScript, build_observed
from scaleproof.evidence.failures import describe_failure
from scaleproof.evidence.hangs import Collective, HangRecord, StuckRank, describe_hang
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.stacks import Frame, fatal_error, main_stack
from scaleproof.evidence.study import load_study
from scaleproof.evidence.writer import write_json

DUMP = """Thread 0x00007f776f7fe6c0 (most recent call first):
  File "/home/me/train.py", line 8 in prefetch
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f7794a35b80 [python3] (most recent call first):
  File "/env/lib/python3.11/site-packages/torch/autograd/graph.py", line 979 in _engine_run_backward
  File "/home/me/train.py", line 23 in train one
  File "<string>", line ??? in <module>
"""


def frame(function: str, line: int = 1, *, is_users: bool = False, file: str = "") -> Frame:
    name = file or ("/home/me/train.py" if is_users else "/lib/torch.py")
    return Frame(function=function, file=name, line=line, is_users=is_users)


def at(function: str, line: int) -> Frame:
    return frame(function, line, is_users=True)


def collective(
    operation: str = "all_reduce",
    sequence: int = 7,
    size: tuple[int, ...] = (3, 2),
    group: str = "0",
    dtype: str = "Float",
) -> Collective:
    return Collective(
        operation=operation,
        sizes=(size,),
        dtypes=(dtype,),
        sequence=sequence,
        group=group,
        is_done=False,
        age_s=300.0,
    )


def rank(number: int, *stack: Frame, **changes: object) -> StuckRank:
    fields = {
        "rank": number,
        "pid": 100 + number,
        "activity": "between steps",
        "epoch": 0,
        "step": 4,
        "is_alive": True,
        "has_joined": True,
        "stack": stack,
        **changes,
    }
    return StuckRank(**fields)  # type: ignore[arg-type]


def waiting(
    number: int, entry: Collective, line: int = 10, *, in_backward: bool = False
) -> StuckRank:
    inner = frame("_engine_run_backward") if in_backward else frame(entry.operation)
    return rank(number, inner, at("train", line), waiting=entry)


def said(*ranks: StuckRank, num_ranks: int = 2) -> str:
    return describe_hang(HangRecord(timeout_s=300.0, num_ranks=num_ranks, ranks=ranks))


# --- stacks


def test_the_main_thread_stands_last_in_a_dump() -> None:
    frames = main_stack(DUMP)
    assert [(f.function, f.line, f.is_users) for f in frames] == [
        ("_engine_run_backward", 979, False),
        ("train one", 23, True),
        ("<module>", 0, True),
    ]
    assert frames[1].place == "train one (train.py:23)"


def test_of_several_dumps_the_last_counts() -> None:
    later = DUMP.replace("line 23", "line 24")
    assert main_stack(DUMP + later)[1].line == 24


@pytest.mark.parametrize("text", ["", "nonsense\n", '  File "x", line\n', "\0" * 100])
def test_what_is_no_dump_has_no_stack(text: str) -> None:
    assert main_stack(text) == ()
    assert fatal_error(text) is None


def test_our_own_frames_are_not_the_users() -> None:
    import scaleproof.observe.guard as ours

    (only,) = main_stack(
        f'Thread 0x1 (most recent call first):\n  File "{ours.__file__}", line 3 in safe\n'
    )
    assert not only.is_users


def test_what_ended_a_process_is_read_from_its_dump() -> None:
    assert fatal_error(f"Fatal Python error: Segmentation fault\n\n{DUMP}") == "Segmentation fault"


# --- sentences


def test_a_rank_that_never_came_is_named_with_its_place() -> None:
    sentence = said(
        waiting(0, collective()), rank(1, frame("sleep"), at("wait_for", 30), activity="starting")
    )
    assert "nothing moved for 300 s" in sentence
    assert (
        "Rank 0 waits in all_reduce of 3x2 float (collective 7), called in train (train.py:10), "
        "after 4 steps." in sentence
    )
    assert "Rank 1 is in wait_for (train.py:30), after 4 steps." in sentence
    assert "Rank 1 never came: a branch that only some ranks take" in sentence
    assert "Let every rank call the collective" in sentence


def test_a_rank_that_began_a_collective_and_went_elsewhere_does_not_wait_in_it() -> None:
    """An asynchronous collective is not done either; its rank is where its stack says."""
    elsewhere = rank(1, at("compute", 30), waiting=collective())
    assert not elsewhere.is_waiting
    assert "Rank 1 never came" in said(waiting(0, collective()), elsewhere)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (collective("broadcast"), "As collective 7 the ranks call different ones"),
        (collective(size=(4,)), "As collective 7 the ranks give tensors of different shapes"),
        (collective(dtype="Half"), "As collective 7 the ranks give tensors of different shapes"),
        (collective(sequence=6), "Rank 0 called more collectives than the others"),
        (collective(group="1"), "The ranks wait in different process groups"),
        (collective(), "All ranks are in the same collective and it does not finish"),
    ],
)
def test_ranks_that_all_wait(other: Collective, expected: str) -> None:
    assert expected in said(waiting(0, collective()), waiting(1, other, 20))


def test_backward_against_what_comes_after_training_is_uneven_batches() -> None:
    sentence = said(
        waiting(0, collective(), in_backward=True), waiting(1, collective("barrier"), 20)
    )
    assert "Rank 1 left the training loop" in sentence
    assert "uneven batches" in sentence
    assert "Give every rank the same number of batches" in sentence


def test_without_the_flight_recorder_the_stack_says_the_operation() -> None:
    sentence = said(
        rank(0, frame("all_reduce"), at("train", 10)), rank(1, frame("barrier"), at("train", 20))
    )
    assert "Rank 0 waits in all_reduce, called in train (train.py:10)" in sentence
    assert "collectives that don't meet" in sentence


def test_a_rank_that_ended_with_fewer_steps_is_uneven() -> None:
    ended = rank(1, is_alive=False, ending="ended by itself", step=3)
    sentence = said(waiting(0, collective(), in_backward=True), ended)
    assert "Rank 1 had ended by itself after 3 steps." in sentence
    assert "Rank 1 never comes, because it took fewer steps: uneven batches" in sentence


def test_a_rank_that_died_is_the_cause() -> None:
    dead = rank(1, is_alive=False, ending="ended with signal 9 (SIGKILL)")
    sentence = said(waiting(0, collective()), dead)
    assert "Rank 1 had ended with signal 9 (SIGKILL) after 4 steps." in sentence
    assert "Rank 1 died, and the others wait for it." in sentence


def test_a_stuck_data_worker_is_named_with_its_place() -> None:
    loading = rank(
        1,
        frame("select"),
        frame("_try_get_data"),
        at("train", 12),
        data_worker=(at("__getitem__", 55),),
    )
    sentence = said(waiting(0, collective()), loading)
    assert (
        "Rank 1 waits for a data worker, which is in __getitem__ (train.py:55), called in train "
        "(train.py:12)" in sentence
    )
    assert "A data worker of rank 1 does not deliver" in sentence


def test_ranks_missing_at_the_start() -> None:
    entering = rank(0, frame("init_process_group"), at("main", 5), step=0)
    absent = rank(1, at("prepare", 9), step=0, has_joined=False)
    sentence = said(entering, absent)
    assert "Rank 0 waits in init_process_group, called in main (train.py:5)." in sentence
    assert "Rank 1 never joined the process group: it is in prepare (train.py:9)." in sentence
    assert "Only 1 of 2 ranks called init_process_group" in sentence


def test_ranks_that_were_never_seen_at_all() -> None:
    entering = rank(0, frame("init_process_group"), at("main", 5), step=0)
    assert "Ranks 1, 2 were never seen on this machine." in said(entering, num_ranks=3)
    assert "Rank 1 was never seen on this machine." in said(entering, num_ranks=2)


def test_all_ranks_at_the_start_don_t_find_each_other() -> None:
    entering = [rank(n, frame("init_process_group"), at("main", 5), step=0) for n in (0, 1)]
    assert "they differ in MASTER_ADDR, MASTER_PORT" in said(*entering)


def test_a_single_process_that_stands_still() -> None:
    sentence = said(rank(0, at("acquire_both", 40), step=1), num_ranks=1)
    assert "Rank 0 is in acquire_both (train.py:40), after 1 step." in sentence
    assert "No rank waits in a collective" in sentence


def test_a_process_without_rank_and_stack_is_still_told() -> None:
    sentence = said(rank(-1, activity="in forward"), num_ranks=0)
    assert "Process 99 was last seen in forward" in sentence


def test_a_collective_without_tensors_and_one_with_many() -> None:
    assert Collective(
        operation="barrier",
        sizes=(),
        dtypes=(),
        sequence=3,
        group="0",
        is_done=False,
        age_s=1.0,
    ).words == ("barrier (collective 3)")
    assert Collective(
        operation="all_gather",
        sizes=((), (2,), (3,), (4,)),
        dtypes=("Long",),
        sequence=4,
        group="0",
        is_done=False,
        age_s=1.0,
    ).words == ("all_gather of one number long, 2 and 2 more (collective 4)")


# --- the run


def hung(tmp_path: Path, script: FakeScript) -> HangRecord:
    record = HangRecord(
        timeout_s=300.0,
        num_ranks=2,
        ranks=(waiting(0, collective()), rank(1, at("wait_for", 30))),
    )
    study = build_observed(tmp_path, script)
    write_json(study.paths.run("observed", 0).hang, record)
    return record


def test_a_run_that_hung_has_failed_and_says_why(tmp_path: Path) -> None:
    record = hung(tmp_path, FakeScript(outcome=lambda rank: None))
    (run,) = load_study(tmp_path).runs.values()
    assert run.hang == record
    assert run.status == "failed"
    failure = describe_failure(run)
    assert failure is not None
    assert failure.sentence == f"observed-seed0: {describe_hang(record)}"


def test_a_run_that_hung_after_an_error_failed_by_the_error(tmp_path: Path) -> None:
    def outcome(rank: int) -> RankOutcome | None:
        if rank == 0:
            return None
        return RankOutcome(
            status="error",
            epoch=0,
            step=4,
            phase="in forward",
            error_type="ValueError",
            message="bad batch",
        )

    hung(tmp_path, FakeScript(outcome=outcome))
    (run,) = load_study(tmp_path).runs.values()
    failure = describe_failure(run)
    assert failure is not None
    assert "rank 1 failed in forward after 4 steps: ValueError: bad batch." in failure.sentence


def test_a_run_without_a_hang_is_as_it_was(tmp_path: Path) -> None:
    (run,) = build_observed(tmp_path).runs.values()
    assert (run.hang, run.status, describe_failure(run)) == (None, "complete", None)
