"""Whatever happens to the files of a study, reading it gives an ``EvidenceError`` or a study."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from scaleproof.errors import EvidenceError
from scaleproof.evidence.heartbeat import Heartbeat, read_heartbeat
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_array, read_bitmap
from scaleproof.evidence.records import SCHEMA_VERSION, STEP_TABLE, ArrayRef
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter, digest_of
from studies import FakeArm, build_study

FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_everything(study: Study) -> None:
    """Open every file that a study points to."""
    for run in study.runs.values():
        assert run.status in ("complete", "diverged", "failed", "unfinished", "missing")
        for rank in run.ranks:
            for record in rank.epochs:
                rank.steps(record)
            for record in rank.samples:
                rank.seen(record)
                rank.repeated(record)
            for record in rank.states:
                rank.sketches(record)
        assert run.final_evaluation.ndim == 1
        assert run.step_losses.ndim == 1
        assert run.epoch_times_s.ndim == 1
    assert study.candidate is not None
    assert isinstance(study.pairs, tuple)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound") / "study"
    arm = FakeArm(num_epochs=2, num_train_samples=12)
    build_study(root, baseline=arm, candidate=arm.with_(num_ranks=2), seeds=(0,))
    with_beat = Heartbeat(RunPaths(root / "ddp-2-seed0").heartbeat(0))
    with_beat.close()
    return root


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "study")
    return tmp_path / "study"


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def read_or_refuse(root: Path) -> None:
    try:
        read_everything(load_study(root))
    except EvidenceError as error:
        assert len(str(error)) > 30


class changed:
    """``path`` holds ``data`` for a while."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data = path, data
        self.before = path.read_bytes()

    def __enter__(self) -> None:
        self.path.write_bytes(self.data)

    def __exit__(self, *_: Any) -> None:
        self.path.write_bytes(self.before)


def test_the_sound_study_reads(copy: Path) -> None:
    read_everything(load_study(copy))


@FEW
@given(data=st.data())
def test_a_file_cut_anywhere(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(sound)))
    content = path.read_bytes()
    with changed(path, content[: data.draw(st.integers(0, max(0, len(content) - 1)))]):
        read_or_refuse(sound)


@FEW
@given(data=st.data())
def test_a_byte_changed_anywhere(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(sound)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with changed(path, bytes(content)):
        read_or_refuse(sound)


@FEW
@given(data=st.data())
def test_a_file_replaced_by_anything(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(sound)))
    with changed(path, data.draw(st.binary(max_size=64))):
        read_or_refuse(sound)


@pytest.mark.parametrize("name", ["study.json", "manifest.json", "rank-00000.outcome.json"])
def test_a_number_made_huge_or_negative_in_json(copy: Path, name: str) -> None:
    for path in copy.rglob(name):
        for number in (b"-1", b"1e400", b"99999999999999999999999", b"NaN", b"null"):
            with changed(path, path.read_bytes().replace(b": 1,", b": " + number + b",")):
                read_or_refuse(copy)


def test_any_file_missing(copy: Path) -> None:
    for path in files_of(copy):
        path.rename(path.with_suffix(".away"))
        read_or_refuse(copy)
        path.with_suffix(".away").rename(path)


def test_a_folder_where_a_file_must_be(copy: Path) -> None:
    for path in files_of(copy):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        read_or_refuse(copy)
        path.rmdir()
        path.write_bytes(content)


# --- bytes that a record vouches for, and that are still not what they should be


def vouched(folder: Path, name: str, data: bytes) -> ArrayRef:
    (folder / name).write_bytes(data)
    return ArrayRef(file=name, digest=digest_of(data))


def roaring() -> Iterator[bytes]:
    run = BitMap(range(70_000))
    run.run_optimize()
    for bitmap in (BitMap(), BitMap(range(5)), BitMap(range(0, 200_000, 3)), run):
        yield bitmap.serialize()


ROARING = list(roaring())


@FEW
@given(st.binary(max_size=80) | st.sampled_from(ROARING))
@example(b"\x3a\x30\x00\x00\xff\xff\xff\x7f")  # two thousand million containers
@example(b"\x3b\x30\xff\xff")
def test_any_bytes_are_a_bitmap_or_refused(tmp_path: Path, data: bytes) -> None:
    if not data:
        return  # see the next test
    try:
        bitmap = read_bitmap(tmp_path, vouched(tmp_path, "seen.roaring", data))
    except EvidenceError as error:
        assert "roaring" in str(error)
    else:
        assert len(bitmap) == sum(1 for _ in bitmap)


@FEW
@given(data=st.data())
def test_a_damaged_bitmap_is_a_bitmap_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(ROARING)))
    for _ in range(data.draw(st.integers(1, 4))):
        # most of what matters is at the beginning: cookie, number of containers, keys, offsets
        at = data.draw(st.integers(0, min(len(content), 40) - 1) | st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    try:
        bitmap = read_bitmap(tmp_path, vouched(tmp_path, "seen.roaring", bytes(content[:cut])))
    except EvidenceError as error:
        assert "roaring" in str(error)
    else:
        assert BitMap.deserialize(bitmap.serialize()) == bitmap
        assert len(bitmap | BitMap([1])) >= len(bitmap)


def test_an_empty_file_is_no_bitmap(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="roaring"):
        read_bitmap(tmp_path, vouched(tmp_path, "seen.roaring", b""))


def npy(values: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


def refuse_array(folder: Path, data: bytes) -> str:
    with pytest.raises(EvidenceError) as caught:
        read_array(folder, vouched(folder, "steps.npy", data), dtype=STEP_TABLE)
    return str(caught.value)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def test_a_pickled_array_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refuse_array(tmp_path, npy(np.array([Bomb()], dtype=object), allow_pickle=True))

    assert "steps.npy" in message
    assert not (tmp_path / "unpickled").exists()


def test_another_dtype_is_refused_with_both(tmp_path: Path) -> None:
    message = refuse_array(tmp_path, npy(np.zeros(3)))

    assert "holds" in message
    assert "[('loss', '<f4')" in message


def test_a_zip_of_arrays_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3, STEP_TABLE))

    refuse_array(tmp_path, buffer.getvalue())


@FEW
@given(data=st.data())
def test_a_damaged_array_is_an_array_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(npy(np.zeros(4, STEP_TABLE)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    ref = vouched(tmp_path, "steps.npy", bytes(content[:cut]))
    try:
        assert read_array(tmp_path, ref, dtype=STEP_TABLE).dtype == STEP_TABLE
    except EvidenceError as error:
        assert "steps.npy" in str(error)


def test_a_header_that_claims_more_than_there_is_memory_is_refused(tmp_path: Path) -> None:
    content = npy(np.zeros(4, STEP_TABLE)).replace(b"(4,), ", b"(9999999999999999,), ")

    refuse_array(tmp_path, content)


@pytest.mark.parametrize(
    "file",
    ["../manifest.json", "/etc/passwd", "a/../../x", "..", "", "a\0b"],
)
def test_a_record_can_not_point_outside_its_folder(tmp_path: Path, file: str) -> None:
    ref = ArrayRef(file=file, digest="0" * 32)

    with pytest.raises(EvidenceError):
        read_array(tmp_path, ref, dtype=STEP_TABLE)


# --- versions, names


@pytest.mark.parametrize("name", ["study.json", "single-1-seed0/manifest.json"])
def test_a_newer_schema_is_refused_by_number(copy: Path, name: str) -> None:
    path = copy / name
    text = path.read_text()
    newer = text.replace(
        f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}'
    )
    path.write_text(newer.replace('"seed"', '"seed_of_the_future"'))

    with pytest.raises(EvidenceError, match=f"schema version {SCHEMA_VERSION + 1}.*Upgrade"):
        load_study(copy)


@pytest.mark.parametrize("name", ["a'; echo foo", "$(reboot)", "a b", "ünïcode", "-rf", "a\nb"])
def test_odd_folder_names_are_names(sound: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(sound, tmp_path / name)

    read_everything(load_study(tmp_path / name))


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/etc", "a\0b", "x" * 300])
def test_an_arm_that_is_no_folder_name_is_refused_or_missing(copy: Path, name: str) -> None:
    path = copy / "study.json"
    escaped = name.replace("\0", "\\u0000")
    path.write_text(path.read_text().replace('"name": "ddp-2"', f'"name": "{escaped}"'))

    read_or_refuse(copy)


def test_what_is_not_a_study(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text('{"hello": 1}')

    for name, words in (
        ("nothing", "is not a folder"),
        ("file", "is not a folder"),
        ("empty", "can't read .*study.json"),
        ("other", "is not the request of a study"),
    ):
        with pytest.raises(EvidenceError, match=words):
            load_study(tmp_path / name)


# --- records


def test_a_torn_last_line_is_tolerated_and_known(copy: Path) -> None:
    path = copy / "ddp-2-seed0" / "rank-00001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    rank = load_study(copy).runs["ddp-2", 0].ranks[1]

    assert rank.is_torn
    assert len(rank.epochs) == 2
    assert len(rank.states) == 2  # the third was torn


def test_a_torn_line_in_the_middle_is_refused_by_number(copy: Path) -> None:
    path = copy / "ddp-2-seed0" / "rank-00001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:30] + b"\n"
    path.write_bytes(b"".join(lines))

    with pytest.raises(EvidenceError, match=r"rank-00001.jsonl line 3 of 10 is not a record"):
        load_study(copy)


def test_an_array_that_was_changed_is_refused_with_both_digests(copy: Path) -> None:
    path = copy / "ddp-2-seed0" / "rank-00000" / "steps-0000.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rank = load_study(copy).runs["ddp-2", 0].ranks[0]

    with pytest.raises(EvidenceError, match=r"its digest is \w{32}, its record says \w{32}"):
        rank.steps(rank.epochs[0])


@FEW
@given(data=st.data())
def test_a_damaged_heartbeat_is_a_beat_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "rank-00000.heartbeat"
    beat = Heartbeat(path)
    beat.say("no space left")
    beat.close()
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        read_heartbeat(path)
    except EvidenceError as error:
        assert "heartbeat" in str(error)


def test_a_writer_may_go_on_after_a_torn_line_was_left(tmp_path: Path) -> None:
    """A rank never appends to another's file, so that a torn line is always the last one."""
    writer = RankWriter(RunPaths(tmp_path), 3)
    writer.close()
    assert RunPaths(tmp_path).ranks_seen() == (3,)
