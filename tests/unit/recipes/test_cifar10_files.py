import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scaleproof.errors import UsageError
from scaleproof.recipes import cifar10_files
from scaleproof.recipes.cifar10_files import (
    ARCHIVE,
    EVALUATION_FILES,
    FOLDER,
    NAMES_FILE,
    RECORD_BYTES,
    TRAIN_FILES,
    load_cifar10,
    read_cifar10,
)

NUM_RECORDS = 4
NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def write_files(folder: Path, records_per_file: int = NUM_RECORDS) -> NDArray[np.uint8]:
    """A small data set; returns all its records, shape ``(num_records, RECORD_BYTES)``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = (*TRAIN_FILES, *EVALUATION_FILES)
    numbers = np.random.default_rng(3)
    shape = (len(files) * records_per_file, RECORD_BYTES)
    records = numbers.integers(0, 256, size=shape, dtype=np.uint8)
    records[:, 0] %= 10
    for name, part in zip(files, np.split(records, len(files)), strict=True):
        (folder / name).write_bytes(part.tobytes())
    (folder / NAMES_FILE).write_text("\n".join(NAMES) + "\n\n")
    return records


def pack(folder: Path, archive: Path) -> None:
    """Pack the files of ``folder`` as the official archive has them."""
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=f"{FOLDER}/{path.name}")


def read(folder: Path) -> cifar10_files.Data:
    return read_cifar10(folder, records_per_file=NUM_RECORDS)


def test_pixels_and_labels_arrive_where_they_belong(tmp_path: Path) -> None:
    records = write_files(tmp_path)
    data = read(tmp_path)

    assert data.class_names == NAMES
    assert len(data.train) == 5 * NUM_RECORDS
    assert len(data.evaluation) == NUM_RECORDS
    assert data.train.inputs.shape == (5 * NUM_RECORDS, 32, 32, 3)
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.targets.tolist() == records[: 5 * NUM_RECORDS, 0].tolist()
    assert data.evaluation.targets.tolist() == records[5 * NUM_RECORDS :, 0].tolist()
    for sample, channel, row, column in ((0, 0, 0, 0), (7, 1, 3, 30), (19, 2, 31, 31)):
        expected = records[sample, 1 + channel * 1024 + row * 32 + column]
        assert data.train.inputs[sample, row, column, channel] == expected


def test_the_folder_may_be_inside_the_one_named(tmp_path: Path) -> None:
    write_files(tmp_path / FOLDER)
    assert len(read(tmp_path).train) == 5 * NUM_RECORDS


def test_the_archive_reads_like_the_folder(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "files", tmp_path / "packed" / ARCHIVE)

    from_folder, from_archive = read(tmp_path / "files"), read(tmp_path / "packed")

    assert torch.equal(from_folder.train.inputs, from_archive.train.inputs)
    assert torch.equal(from_folder.evaluation.targets, from_archive.evaluation.targets)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [ARCHIVE]


def test_full_size_files_are_read(tmp_path: Path) -> None:
    for name in (*TRAIN_FILES, *EVALUATION_FILES):
        with (tmp_path / name).open("wb") as file:
            file.truncate(30_730_000)  # sparse: all zeros, nothing on the disk
    (tmp_path / NAMES_FILE).write_text("\n".join(NAMES))
    data = load_cifar10(tmp_path)
    assert (len(data.train), len(data.evaluation)) == (50_000, 10_000)


@pytest.mark.parametrize("num_bytes", [0, NUM_RECORDS * RECORD_BYTES - 1])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, num_bytes: int) -> None:
    write_files(tmp_path)
    with (tmp_path / "data_batch_3.bin").open("r+b") as file:
        file.truncate(num_bytes)
    with pytest.raises(
        UsageError, match=rf"data_batch_3\.bin has {num_bytes:,} bytes, exp.*12,292"
    ):
        read(tmp_path)


def test_a_truncated_member_of_an_archive_is_named(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    (tmp_path / "files" / "test_batch.bin").write_bytes(b"short")
    pack(tmp_path / "files", tmp_path / ARCHIVE)
    with pytest.raises(UsageError, match=r"test_batch\.bin in .* has 5 bytes, expected 12,292"):
        read(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(UsageError, match=r"data_batch_5\.bin is missing"):
        read(tmp_path)


def test_missing_class_names_are_named(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / NAMES_FILE).unlink()
    with pytest.raises(UsageError, match=rf"{NAMES_FILE} is missing"):
        read(tmp_path)


def test_a_label_out_of_range_is_named_with_its_record(tmp_path: Path) -> None:
    write_files(tmp_path)
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.seek(2 * RECORD_BYTES)
        file.write(b"\x0a")
    with pytest.raises(UsageError, match=r"data_batch_2\.bin .*record 2 has label 10, expected 0"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["\n".join(NAMES[:9]), "\n".join((*NAMES[:9], "cat")), "", "\n".join((*NAMES[:9], "p\xeare"))],
    ids=["nine", "repeated", "empty", "not-ascii"],
)
def test_wrong_class_names_are_refused(tmp_path: Path, text: str) -> None:
    write_files(tmp_path)
    (tmp_path / NAMES_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{NAMES_FILE} .* expected 10"):
        read(tmp_path)


def test_a_file_of_names_that_is_no_text_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / NAMES_FILE).write_bytes(bytes(5000))
    with pytest.raises(UsageError, match=r"has 5,000 bytes, expected at most 4,096"):
        read(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere .*--data-dir"):
        read(tmp_path / "nowhere")


def test_a_foreign_folder_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"expected data_batch_1\.bin .* found holiday\.jpg"):
        read(tmp_path)


def test_the_pickled_version_is_recognised_and_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").touch()
    with pytest.raises(UsageError, match=r"The pickled Python version is not read"):
        read(tmp_path)


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_an_archive_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    write_files(tmp_path / "files")
    archive = tmp_path / ARCHIVE
    pack(tmp_path / "files", archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UsageError, match=rf"{ARCHIVE} is damaged or cut short"):
        read(tmp_path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_text("<html>moved</html>")
    with pytest.raises(UsageError, match=rf"{ARCHIVE} is damaged or cut short"):
        read(tmp_path)


def test_a_link_in_the_archive_is_not_followed(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    (tmp_path / "files" / NAMES_FILE).unlink()
    secret = tmp_path / "secret"
    secret.write_text("\n".join(NAMES))
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as tar:
        for path in (tmp_path / "files").iterdir():
            tar.add(path, arcname=f"{FOLDER}/{path.name}")
        link = tarfile.TarInfo(f"{FOLDER}/{NAMES_FILE}")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(UsageError, match=rf"has no {FOLDER}/{NAMES_FILE}"):
        read(tmp_path)


def test_members_outside_the_folder_are_ignored(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as tar:
        escape = tarfile.TarInfo(f"../{FOLDER}/data_batch_1.bin")
        escape.size = 1
        tar.addfile(escape, io.BytesIO(b"x"))
        for path in (tmp_path / "files").iterdir():
            tar.add(path, arcname=f"{FOLDER}/{path.name}")
    assert len(read(tmp_path).train) == 5 * NUM_RECORDS
    assert not (tmp_path.parent / FOLDER).exists()


def test_without_a_folder_the_verified_archive_in_the_cache_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "files")
    calls: list[dict[str, object]] = []

    def retrieve(url: str, **options: object) -> str:
        calls.append({"url": url, **options})
        cache = Path(str(options["path"]))
        cache.mkdir()
        pack(tmp_path / "files", cache / ARCHIVE)
        return str(cache / ARCHIVE)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / f"{project}-cache")
    monkeypatch.setattr(cifar10_files, "read_cifar10", read)

    assert len(load_cifar10(None).train) == 5 * NUM_RECORDS
    assert calls[0]["url"] == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert calls[0]["known_hash"] == "md5:c32a1d4ab5d03f1284b67883e8d87530"


def test_no_connection_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar10_files, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr("pooch.os_cache", lambda _: tmp_path / "cache")
    with pytest.raises(UsageError, match=r"can't download .*127\.0\.0\.1.*with --data-dir"):
        load_cifar10(None)
    assert "downloading http://127.0.0.1:9/" in capsys.readouterr().err


def test_a_download_that_is_something_else_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    served.write_text("<html>a portal asks you to log in</html>")

    def fetch(_self: object, _url: str, output_file: str, _pooch: object) -> None:
        Path(output_file).write_bytes(served.read_bytes())

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", fetch)
    monkeypatch.setattr("pooch.os_cache", lambda _: tmp_path / "cache")
    with pytest.raises(UsageError, match=r"is not CIFAR-10: .*c32a1d4ab5d03f1284b67883e8d87530"):
        load_cifar10(None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_download_reports_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = cifar10_files._Progress()
    progress.total = 1000
    for _ in range(10):
        progress.update(100)
    progress.reset()
    progress.update(1000)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "CIFAR-10: 10 % of 1,000 bytes"
    assert lines[-1] == "CIFAR-10: 100 % of 1,000 bytes"
    assert len(lines) == 10
