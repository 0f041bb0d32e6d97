"""Reading evidence: every file that can't be read is named, with what was expected in it.

A torn last line of a record file is what a crash leaves and is tolerated; anything else that is
damaged is an ``EvidenceError``. Nothing is ever unpickled.
"""

from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.errors import EvidenceError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.npy import decode_npy
from scaleproof.evidence.records import SCHEMA_VERSION, ArrayRef
from scaleproof.evidence.writer import digest_of

T = TypeVar("T")

_RECORD_DECODER = msgspec.json.Decoder(AnyRecord)
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_json(path: Path, kind: type[T], *, what: str) -> T:
    """Decode one JSON file into ``kind``, checking the schema version where it has one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvidenceError(
            f"can't read {path} ({what}): {error.strerror or error}. "
            "Name the folder of a study, the one that holds study.json."
        ) from error
    _refuse_newer_schema(path, data, what)
    try:
        return msgspec.json.decode(data, type=kind)
    except _NOT_JSON as error:
        raise EvidenceError(
            f"{path} is not {what}: {error}. Restore the file from where the study was made."
        ) from error


def read_records(path: Path) -> tuple[tuple[AnyRecord, ...], bool]:
    """All whole records of a rank, and whether its last line is torn."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return (), False
    except OSError as error:
        raise EvidenceError(
            f"can't read {path} (a rank's records): {error.strerror or error}. "
            "Make the file readable."
        ) from error
    *lines, rest = data.split(b"\n")
    records: list[AnyRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_RECORD_DECODER.decode(line))
        except _NOT_JSON as error:
            raise EvidenceError(
                f"{path} line {number} of {len(lines)} is not a record: {error}. Only the last "
                "line may be torn; restore the file from where the study was made."
            ) from error
    return tuple(records), bool(rest)


def read_array(folder: Path, ref: ArrayRef, *, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array a record points to, checked against its digest and the expected dtype."""
    path = folder / ref.file
    data = _read_checked(folder, ref)
    try:
        return decode_npy(data, dtype)
    except ValueError as error:
        raise EvidenceError(
            f"{path} is not the array its record says: {error}. "
            "Restore the file from where the study was made."
        ) from error


def read_bitmap(folder: Path, ref: ArrayRef) -> BitMap:
    """The set of sample ids a record points to."""
    data = _read_checked(folder, ref)
    try:
        return BitMap.deserialize(data)
    except (ValueError, IndexError) as error:  # IndexError: no bytes at all
        raise EvidenceError(
            f"{folder / ref.file} is not a serialised roaring bitmap: {error}. "
            "Restore the file from where the study was made."
        ) from error


def _read_checked(folder: Path, ref: ArrayRef) -> bytes:
    path = folder / ref.file
    if Path(ref.file).name != ref.file or "\0" in ref.file:
        raise EvidenceError(
            f"a record in {folder} points to {ref.file!r}, outside its folder. "
            "The record file was changed by hand; restore it."
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvidenceError(
            f"can't read {path}, which a record points to: {error.strerror or error}. "
            "Copy the whole study folder, arrays included."
        ) from error
    digest = digest_of(data)
    if digest != ref.digest:
        raise EvidenceError(
            f"{path} was changed or cut off: its digest is {digest}, its record says {ref.digest}. "
            "Restore the file from where the study was made."
        )
    return data


def _refuse_newer_schema(path: Path, data: bytes, what: str) -> None:
    try:
        version = msgspec.json.decode(data).get("schema_version", 0)
    except (*_NOT_JSON, AttributeError):
        return  # not JSON or not an object: the typed decoder says it better
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise EvidenceError(
            f"{path} ({what}) has schema version {version}, this scaleproof reads up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install --upgrade scaleproof."
        )
