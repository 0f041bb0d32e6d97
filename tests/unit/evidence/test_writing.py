import errno
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from scaleproof.errors import RunError
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_array, read_json, read_records
from scaleproof.evidence.records import (
    STEP_TABLE,
    ArrayRef,
    EpochRecord,
    RankOutcome,
    SamplesRecord,
)
from scaleproof.evidence.writer import (
    RankWriter,
    digest_of,
    write_atomically,
    write_error,
    write_json,
)


def sample_record(epoch: int) -> SamplesRecord:
    ref = ArrayRef(file="seen.roaring", digest=digest_of(b"x"))
    return SamplesRecord(epoch=epoch, num_fed=1, order_digest="o", seen=ref, repeated=ref)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    table = np.zeros(3, STEP_TABLE)
    table["loss"] = [1, 2, 3]
    writer = RankWriter(paths, 7)
    ref = writer.array("steps", table)
    record = EpochRecord(
        epoch=0, num_steps=3, num_samples=9, train_time_s=0.5, started_at_unix_s=1.0, steps=ref
    )
    writer.record(record)
    writer.record(sample_record(1))
    writer.close()

    assert read_records(paths.records(7)) == ((record, sample_record(1)), False)
    assert read_array(paths.arrays(7), ref, dtype=STEP_TABLE).tolist() == table.tolist()
    assert paths.ranks_seen() == (7,)


def test_object_arrays_are_never_written(tmp_path: Path) -> None:
    writer = RankWriter(RunPaths(tmp_path), 0)
    with pytest.raises(ValueError, match="Object arrays"):
        writer.array("steps", np.array([{}], dtype=object))
    writer.close()
    assert list(RunPaths(tmp_path).arrays(0).iterdir()) == []


def test_json_is_replaced_whole_and_nothing_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "outcome.json"
    for epoch in (1, 2):
        write_json(path, RankOutcome(status="ok", epoch=epoch, step=0, phase="ended"))

    assert read_json(path, RankOutcome, what="an outcome").epoch == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["outcome.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outcome.json"
    write_atomically(path, b"old")

    def full(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"can't write .*outcome.json: No space left.*free some"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["outcome.json"]


def test_a_file_where_a_folder_must_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")

    with pytest.raises(RunError, match=r"can't write .*run.*--out"):
        RankWriter(RunPaths(tmp_path / "run"), 0)


def test_a_file_in_the_place_of_the_folder_is_named_by_a_single_write(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")

    with pytest.raises(RunError, match=r"a file is where a folder must be|File exists"):
        write_atomically(tmp_path / "run" / "x.json", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_said_when_a_record_does_not_fit(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.records(0).symlink_to("/dev/full")
    writer = RankWriter(paths, 0)

    with pytest.raises(RunError, match=r"rank-00000.jsonl: No space left on device.*free some"):
        writer.record(sample_record(0))
    writer.close()


def test_a_record_written_in_part_is_a_full_disk(tmp_path: Path) -> None:
    class Half:
        def write(self, line: bytes) -> int:
            return len(line) // 2

    writer = RankWriter(RunPaths(tmp_path), 0)
    writer.close()
    writer._file = Half()  # type: ignore[assignment]

    with pytest.raises(RunError, match="No space left"):
        writer.record(sample_record(0))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO]
)
def test_every_failure_says_the_file_the_reason_and_what_to_do(number: int) -> None:
    message = str(write_error(Path("/x/y"), OSError(number, os.strerror(number))))

    assert "/x/y" in message
    assert os.strerror(number) in message
    assert "--out" in message


def test_records_are_one_line_each_whatever_they_hold(tmp_path: Path) -> None:
    writer = RankWriter(RunPaths(tmp_path), 0)
    record = msgspec.structs.replace(sample_record(0), order_digest='a\nb"\u2028')
    writer.record(record)
    writer.record(record)
    writer.close()

    assert len(RunPaths(tmp_path).records(0).read_bytes().splitlines()) == 2
    assert read_records(RunPaths(tmp_path).records(0))[0] == (record, record)
