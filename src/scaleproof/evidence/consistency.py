"""Refuses evidence that contradicts itself, what its study asked for, or another run's.

A record that is missing is for the checks to say; a record too many, or two that can't both be
true, means that files were mixed up or changed, and no number from them means anything.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from scaleproof.errors import EvidenceError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.records import (
    Arm,
    EpochRecord,
    EvaluationRecord,
    Manifest,
    SamplesRecord,
    StateRecord,
    StudyRequest,
)

COMPARABLE_KEYS = (
    "target",
    "target_digest",
    "data_digest",
    "num_train_samples",
    "num_evaluation_samples",
    "class_names",
    "num_parameters",
    "optimizer",
    "precision",
    "batch_per_device",
    "num_epochs",
    "device_kind",
    "threads_per_rank",
    "host",
    "platform",
    "python_version",
    "torch_version",
    "scaleproof_version",
)
"""Manifest keys that must be the same in every run of a study."""

COMPARABLE_KEYS_OF_SCRIPTS = (
    "device_kind",
    "host",
    "platform",
    "python_version",
    "torch_version",
    "scaleproof_version",
)
"""The same for somebody's own commands: what they train, and how, is theirs to choose."""

SAME_ARM_KEYS = ("num_ranks", "global_batch_size", "learning_rate", "backend")
"""Manifest keys that must be the same in every run of an arm."""

_ARM_KEYS = ("strategy", "num_devices")
_REQUEST_KEYS = ("num_epochs", "device_kind", "share_device")


def refuse_other_manifest(
    root: Path, manifest: Manifest, arm: Arm, request: StudyRequest, ranks: Sequence[int]
) -> None:
    """The run in ``root``, with files of ``ranks``, must be what the study asked for."""
    asked_for = ((arm, _ARM_KEYS), (request, _REQUEST_KEYS))
    for asked, keys in asked_for if request.kind == "recipe" else ():
        for key in keys:
            given, expected = getattr(manifest, key), getattr(asked, key)
            if given != expected:
                raise EvidenceError(
                    f"{root} is not a run of this study: {key} is {given!r} in its manifest and "
                    f"{expected!r} in study.json. Put every run back into its own study."
                )
    if manifest.num_ranks < 1 or list(ranks) != list(range(manifest.num_ranks)):
        raise EvidenceError(
            f"{root} has files of the ranks {list(ranks)}, and its manifest says that there are "
            f"{manifest.num_ranks}, numbered from 0. Restore the folder from where the study was "
            "made."
        )


def refuse_odd_records(path: Path, records: Iterable[AnyRecord], *, is_torn: bool) -> None:
    """The records of a rank that came to its end: whole, in order, none twice."""
    if is_torn:
        raise EvidenceError(
            f"the last line of {path} is cut off, and yet the rank came to its end. Copy the whole "
            "folder again from where the study was made."
        )
    by_kind: dict[type[AnyRecord], list[int]] = {}
    for record in records:
        epoch = _epoch_of(record)
        if epoch is None:
            continue
        by_kind.setdefault(type(record), []).append(epoch)
        if isinstance(record, EpochRecord) and not 0 < record.train_time_s < math.inf:
            raise EvidenceError(
                f"{path}: epoch {record.epoch + 1} took {record.train_time_s} s, expected a "
                "positive number. The machine's clock was set while it ran, or the records were "
                "changed: run this seed again."
            )
    for kind, epochs in by_kind.items():
        is_in_order = all(before < after for before, after in pairwise(epochs))
        has_gap = kind is EpochRecord and epochs != list(range(len(epochs)))
        if not is_in_order or has_gap:
            raise EvidenceError(
                f"{path} has {kind.__name__} lines of the epochs {epochs}, expected each once, in "
                "order. Restore the file from where the study was made."
            )


def refuse_incomparable(
    first: tuple[Path, Manifest], second: tuple[Path, Manifest], keys: Sequence[str]
) -> None:
    """Two runs, each a folder and its manifest, must agree in ``keys``."""
    for key in keys:
        ours, theirs = getattr(first[1], key), getattr(second[1], key)
        if ours != theirs:
            raise EvidenceError(
                f"{first[0]} and {second[0]} can't be compared: {key} is "
                f"{ours!r} in the first and {theirs!r} in the second. Run both arms again with "
                "the same code, data and machine: scaleproof compare does."
            )


def with_shape(path: Path, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of a file, which must have the shape that its record says."""
    if array.shape != shape:
        raise EvidenceError(
            f"{path} has the shape {array.shape}, expected {shape} by its record. Restore the "
            "folder from where the study was made."
        )
    return array


def refuse_other_classes(root: Path, table: NDArray[Any], num_classes: int) -> None:
    """Rows of an ``EVALUATION_TABLE`` must have targets and predictions that the run names."""
    for column in ("target", "prediction"):
        wrong = table[(table[column] < 0) | (table[column] >= num_classes)]
        if len(wrong):
            raise EvidenceError(
                f"{root}: evaluation sample {wrong['sample_id'][0]} has the {column} "
                f"{wrong[column][0]}, expected 0 to {num_classes - 1}: the manifest names "
                f"{num_classes} classes. Name every class in the recipe, and count from 0."
            )


def _epoch_of(record: AnyRecord) -> int | None:
    """None for what a script was seen to do: there is no fixed order in that."""
    match record:
        case EpochRecord() | SamplesRecord():
            return record.epoch
        case EvaluationRecord() | StateRecord():
            return record.epochs_done
        case _:
            return None
