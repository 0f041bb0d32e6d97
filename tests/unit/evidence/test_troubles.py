"""What could not be observed, as processes and ranks left it, damaged files included."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from observed import FakeScript, build_observed
from scaleproof.errors import EvidenceError
from scaleproof.evidence.observations import EndRecord, Missing
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import Pulse
from scaleproof.evidence.troubles import processes_seen, read_troubles, unobserved_by_ranks

LATE = Missing(what="process", why="torch was imported first")
FULL = Missing(what="pass", why="no space left")


def line(missing: Missing) -> bytes:
    return msgspec.json.encode(missing) + b"\n"


def write(paths: RunPaths, pid: int, data: bytes) -> None:
    paths.processes.mkdir(parents=True, exist_ok=True)
    paths.trouble(pid).write_bytes(data)


def test_nothing_was_written(tmp_path: Path) -> None:
    assert read_troubles(RunPaths(tmp_path / "never")) == ()
    assert processes_seen(RunPaths(tmp_path / "never")) == ()


def test_each_reason_is_told_once_in_the_order_of_processes(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write(paths, 20, line(LATE))
    write(paths, 3, line(FULL) + line(LATE))

    assert read_troubles(paths) == (FULL, LATE)


@pytest.mark.parametrize("torn", [b'{"what": "pro', b"\xff", b"[" * 20_000])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: bytes) -> None:
    write(RunPaths(tmp_path), 1, line(LATE) + torn)

    assert read_troubles(RunPaths(tmp_path)) == (LATE,)


def test_a_last_line_that_only_lacks_its_line_feed_is_kept(tmp_path: Path) -> None:
    write(RunPaths(tmp_path), 1, line(LATE)[:-1])

    assert read_troubles(RunPaths(tmp_path)) == (LATE,)


@pytest.mark.parametrize("bad", [b"", b"nonsense", b'{"what": 1, "why": "x"}', b"\xff\xfe"])
def test_a_damaged_line_is_told_not_passed_over(tmp_path: Path, bad: bytes) -> None:
    write(RunPaths(tmp_path), 1, bad + b"\n" + line(LATE))

    damaged, rest = read_troubles(RunPaths(tmp_path))
    assert damaged.why == "line 1 of 1.trouble.jsonl can't be read"
    assert rest == LATE


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    RunPaths(tmp_path).trouble(1).mkdir(parents=True)

    with pytest.raises(EvidenceError, match=r"can't read .*1\.trouble\.jsonl"):
        read_troubles(RunPaths(tmp_path))


def test_other_files_are_no_processes(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    Pulse(paths.pulse(30))
    Pulse(paths.pulse(4))
    write(paths, 5, line(LATE))
    (paths.processes / "notes.pulse").touch()
    (paths.processes / "\N{SUPERSCRIPT TWO}.pulse").touch()  # a digit, but no number

    assert processes_seen(paths) == (4, 30)


def _missing(rank: int, record: Any) -> Any:
    if not isinstance(record, EndRecord):
        return record
    if rank == 3:
        return None
    return msgspec.structs.replace(record, missing=(FULL, FULL) if rank < 2 else ())


def test_ranks_say_the_same_together(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=4, change=_missing))
    (run,) = study.runs.values()
    full, cut = unobserved_by_ranks(run)

    assert (full.ranks, full.what, full.why) == ((0, 1), "pass", "no space left")
    assert (cut.ranks, cut.what) == ((3,), "end")
    assert full.run == "observed-seed0"


def test_a_rank_that_said_nothing_saw_everything(tmp_path: Path) -> None:
    (run,) = build_observed(tmp_path).runs.values()

    assert unobserved_by_ranks(run) == ()
