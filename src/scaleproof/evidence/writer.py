"""Writing evidence so that whatever interrupts it, what is there can be read.

Single files are written aside and renamed; records are appended line by line, after the arrays
they point to. A failure to write is a ``RunError`` that names the file and the reason.
"""

import contextlib
import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import RunError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import ArrayRef

DIGEST_BYTES = 16


def digest_of(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of ``data`` as 32 hex digits."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` aside and rename it to ``path``, so that a reader sees all or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may never have been made
            aside.unlink()
        raise write_error(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a record structure as indented JSON, atomically."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_error(path: Path, error: OSError) -> RunError:
    """The ``RunError`` that says why ``path`` can't be written and what to do about it."""
    remedies = {
        errno.ENOSPC: "free some space, or name a folder on another disk with --out",
        errno.EDQUOT: "raise the quota, or name a folder on another disk with --out",
        errno.EACCES: "name a folder you may write to with --out",
        errno.EROFS: "name a folder on a writable disk with --out",
        errno.ENOTDIR: "a file is where a folder must be: name another folder with --out",
    }
    remedy = remedies.get(error.errno or 0, "name another folder with --out")
    return RunError(f"can't write {path}: {error.strerror or error}. To go on, {remedy}.")


@final
class RankWriter:
    """Appends the records of one rank; the arrays go into the rank's own folder first."""

    def __init__(self, paths: RunPaths, rank: int) -> None:
        self._path = paths.records(rank)
        self._folder = paths.arrays(rank)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(self._path, error) from error

    def array(self, name: str, values: NDArray[Any]) -> ArrayRef:
        """Store ``values`` as ``<name>.npy`` (never pickled)."""
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return self.blob(f"{name}.npy", buffer.getvalue())

    def blob(self, file: str, data: bytes) -> ArrayRef:
        """Store bytes under ``file`` in the rank's folder."""
        write_atomically(self._folder / file, data)
        return ArrayRef(file=file, digest=digest_of(data))

    def record(self, record: AnyRecord) -> None:
        """Append one record as one line, in a single write."""
        line = msgspec.json.encode(record) + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise write_error(self._path, error) from error
        if written != len(line):
            raise write_error(self._path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def close(self) -> None:
        self._file.close()
