"""CIFAR-10 in its official binary layout, read from a folder, its archive, or the network.

A record is 1 label byte and 3,072 pixel bytes (the red, green and blue planes of a 32 x 32 image,
row by row). Five files of 10,000 records are for training and one for evaluation; a text file
names the classes. Nothing is unpickled and nothing is extracted: several ranks may load at once.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import sys
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from scaleproof.errors import UsageError
from scaleproof.recipes.recipe import Data, Split

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_HASH = "md5:c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
EVALUATION_FILES = ("test_batch.bin",)
NAMES_FILE = "batches.meta.txt"

RECORDS_PER_FILE = 10_000
NUM_CLASSES = 10
RECORD_BYTES = 1 + 3 * 32 * 32

_MAX_NAMES_BYTES = 4096
_REMEDY = f"Download {URL} yourself and name the folder it is in with --data-dir."


def load_cifar10(data_dir: Path | None) -> Data:
    """The whole data set: 50,000 training and 10,000 evaluation images.

    ``inputs`` has shape ``(num_samples, 32, 32, 3)``, uint8, channels last. ``data_dir`` may be the
    folder with the ``.bin`` files, or a folder that holds ``cifar-10-batches-bin`` or the archive
    as downloaded. Without one, the archive is downloaded, once, into the user's cache.

    Raises ``UsageError`` when a file is missing, truncated or not what its name says.
    """
    return read_cifar10(_download() if data_dir is None else data_dir)


def read_cifar10(data_dir: Path, *, records_per_file: int = RECORDS_PER_FILE) -> Data:
    """As ``load_cifar10``, with every file holding ``records_per_file`` records."""
    sizes = dict.fromkeys((*TRAIN_FILES, *EVALUATION_FILES), records_per_file * RECORD_BYTES)
    source, files = _read_files(data_dir, sizes)
    return Data(
        train=_split(source, files, TRAIN_FILES),
        evaluation=_split(source, files, EVALUATION_FILES),
        class_names=_class_names(source, files[NAMES_FILE]),
    )


def _read_files(data_dir: Path, sizes: Mapping[str, int]) -> tuple[Path, dict[str, bytes]]:
    """Where the files are, and the bytes of each; ``sizes`` has the expected ones."""
    if not data_dir.is_dir():
        raise UsageError(
            f"there is no folder {data_dir} to read CIFAR-10 from (--data-dir). {_REMEDY}"
        )
    try:
        for folder in (data_dir, data_dir / FOLDER):
            if any((folder / name).exists() for name in (*sizes, NAMES_FILE)):
                return folder, _read_folder(folder, sizes)
        if (data_dir / ARCHIVE).is_file():
            return data_dir / ARCHIVE, _read_archive(data_dir / ARCHIVE, sizes)
    except OSError as error:
        raise UsageError(
            f"can't read CIFAR-10 from {error.filename or data_dir}: {error.strerror or error}. "
            "Expected files that you may read."
        ) from error
    found = sorted(path.name for path in data_dir.iterdir())
    pickled = " The pickled Python version is not read." if _is_pickled_version(data_dir) else ""
    raise UsageError(
        f"no CIFAR-10 in {data_dir}: expected data_batch_1.bin to data_batch_5.bin, "
        f"test_batch.bin and {NAMES_FILE}, or {FOLDER}, or {ARCHIVE}; found "
        f"{', '.join(found[:5]) or 'nothing'}{' ...' if len(found) > 5 else ''}.{pickled} {_REMEDY}"
    )


def _is_pickled_version(data_dir: Path) -> bool:
    names = ("data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    return any((data_dir / name).exists() for name in names)


def _read_folder(folder: Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in (*sizes, NAMES_FILE):
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{path} is missing; the other files of CIFAR-10 are there. {_REMEDY}")
        _check_size(str(path), path.stat().st_size, sizes.get(name))
        files[name] = path.read_bytes()
    return files


def _read_archive(archive: Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """The expected members, straight into memory; whatever else the archive holds is ignored."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if folder != FOLDER or not member.isreg() or name not in (*sizes, NAMES_FILE):
                    continue
                _check_size(f"{member.name} in {archive}", member.size, sizes.get(name))
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                files[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{archive} is damaged or cut short: {error}. Expected the archive of the binary "
            f"version, {ARCHIVE_HASH}. {_REMEDY}"
        ) from error
    missing = [name for name in (*sizes, NAMES_FILE) if name not in files]
    if missing:
        raise UsageError(
            f"{archive} has no {', '.join(f'{FOLDER}/{name}' for name in missing)}. Expected the "
            f"archive of the binary version, {ARCHIVE_HASH}. {_REMEDY}"
        )
    return files


def _check_size(where: str, found: int, expected: int | None) -> None:
    """``expected`` is None for the class names, which are short text."""
    if expected is not None and found != expected:
        raise UsageError(
            f"{where} has {found:,} bytes, expected {expected:,} "
            f"({expected // RECORD_BYTES:,} records of {RECORD_BYTES:,}): it is cut short or "
            f"something else. {_REMEDY}"
        )
    if expected is None and found > _MAX_NAMES_BYTES:
        raise UsageError(
            f"{where} has {found:,} bytes, expected at most {_MAX_NAMES_BYTES:,}: the names of "
            f"{NUM_CLASSES} classes. {_REMEDY}"
        )


def _split(source: Path, files: Mapping[str, bytes], names: Sequence[str]) -> Split:
    num_samples = sum(len(files[name]) // RECORD_BYTES for name in names)
    inputs = np.empty((num_samples, 32, 32, 3), dtype=np.uint8)
    targets = np.empty(num_samples, dtype=np.int64)
    start = 0
    for name in names:
        records = np.frombuffer(files[name], dtype=np.uint8).reshape(-1, RECORD_BYTES)
        labels = records[:, 0]
        if labels.max() >= NUM_CLASSES:
            record = int(np.argmax(labels >= NUM_CLASSES))
            raise UsageError(
                f"{name} in {source}: record {record} has label {labels[record]}, expected 0 to "
                f"{NUM_CLASSES - 1}: the file is damaged or something else. {_REMEDY}"
            )
        stop = start + len(records)
        targets[start:stop] = labels
        inputs[start:stop] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        start = stop
    return Split(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets))


def _class_names(source: Path, text: bytes) -> tuple[str, ...]:
    names = tuple(text.decode("ascii", errors="replace").split())
    if len(set(names)) != NUM_CLASSES or len(names) != NUM_CLASSES or not text.isascii():
        raise UsageError(
            f"{NAMES_FILE} in {source} names {len(set(names))} different classes in {len(names)} "
            f"lines, expected {NUM_CLASSES} in plain text. {_REMEDY}"
        )
    return names


@final
class _Progress:
    """Prints every tenth of the download; pooch sets ``total`` (bytes) and calls the methods."""

    def __init__(self) -> None:
        self.total = 0
        self._done = 0
        self._tenths_printed = 0

    def update(self, num_bytes: int) -> None:
        self._done += num_bytes
        tenths = min(10, 10 * self._done // self.total) if self.total else 0
        if tenths > self._tenths_printed:
            self._tenths_printed = tenths
            print(f"CIFAR-10: {10 * tenths} % of {self.total:,} bytes", file=sys.stderr)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        """Nothing is held open."""


def _download() -> Path:
    """The folder of the verified archive, fetched if it isn't in the user's cache yet.

    Two processes may do this at once: pooch downloads aside, verifies, and renames.
    """
    # Only a user without the data set pays for these imports.
    import pooch
    from requests.exceptions import RequestException

    cache = Path(pooch.os_cache("scaleproof"))
    # pooch would announce it too, for every process, without saying how to avoid it.
    pooch.get_logger().setLevel("WARNING")
    if not (cache / ARCHIVE).is_file():
        print(
            f"CIFAR-10: downloading {URL} into {cache} (170 MB, once; "
            "--data-dir reads it from a folder of yours)",
            file=sys.stderr,
        )
    # pooch documents both arguments so; its annotations say otherwise.
    downloader: Any = pooch.HTTPDownloader(
        progressbar=_Progress(),  # pyright: ignore[reportArgumentType]
        chunk_size=1 << 20,
    )
    try:
        pooch.retrieve(
            URL, known_hash=ARCHIVE_HASH, fname=ARCHIVE, path=cache, downloader=downloader
        )
    except RequestException as error:
        raise UsageError(
            f"can't download CIFAR-10 from {URL}: {_first_line(error)}. Expected a connection to "
            "that server. Download it yourself and name the folder it is in with --data-dir."
        ) from error
    except ValueError as error:  # pooch: the checksum differs
        raise UsageError(
            f"what {URL} sent is not CIFAR-10: {_first_line(error)}. Expected {ARCHIVE_HASH}. "
            "Download it yourself and name the folder it is in with --data-dir."
        ) from error
    except OSError as error:
        raise UsageError(
            f"can't write CIFAR-10 into {cache}: {error.strerror or error}. Expected a folder with "
            "170 MB to spare. Download it yourself and name the folder with --data-dir."
        ) from error
    return cache


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
