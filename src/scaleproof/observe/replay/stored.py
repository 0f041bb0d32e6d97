"""What lies where in the material of replays: one index per rank, line by line. Needs no torch."""

from pathlib import Path
from typing import final

import msgspec

from scaleproof.errors import EvidenceError


@final
class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """``size`` bytes from ``begin`` on. Of a shard, ``starts`` says where in the whole tensor of
    ``whole_shape`` it begins."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int
    whole_shape: tuple[int, ...] | None = None
    starts: tuple[int, ...] | None = None


@final
class StoredBatch(msgspec.Struct, frozen=True, kw_only=True, tag="batch"):
    """Batch ``ordinal`` of a pass over a loader, numbered as in their records. ``indices``: root
    data set ids of its items; None for a stream."""

    loader: int
    number: int
    ordinal: int
    indices: tuple[int, ...] | None
    num_rows: int
    file: str
    tensors: tuple[StoredTensor, ...]


@final
class StoredWeights(msgspec.Struct, frozen=True, kw_only=True, tag="weights"):
    """Parameters and buffers after ``steps_done`` steps. Shards of other ranks are in theirs."""

    steps_done: int
    file: str
    tensors: tuple[StoredTensor, ...]


@final
class StoredDraws(msgspec.Struct, frozen=True, kw_only=True, tag="draws"):
    """What a step drew from torch, by ``backward/call``."""

    step: int
    file: str
    tensors: tuple[StoredTensor, ...]


@final
class LoaderLength(msgspec.Struct, frozen=True, kw_only=True, tag="length"):
    """``len()`` of the loader made at the script's line ``where``."""

    where: str
    length: int


@final
class OutOfSpace(msgspec.Struct, frozen=True, kw_only=True, tag="out-of-space"):
    """Nothing is stored from here on."""

    steps_done: int


Stored = StoredBatch | StoredWeights | StoredDraws | LoaderLength | OutOfSpace

_DECODER = msgspec.json.Decoder(Stored)


def index_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.jsonl"


def data_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}"


def line_of(entry: Stored) -> bytes:
    return msgspec.json.encode(entry) + b"\n"


def _decoded(path: Path, line: bytes) -> Stored:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EvidenceError(
            f"{path} has a line that is no part of an index: {error}. Check the script again."
        ) from error


@final
class MaterialIndex:
    """What all ranks left: what is in which file."""

    def __init__(self, folder: Path) -> None:
        self.batches: dict[tuple[int, int, int], list[tuple[int, StoredBatch]]] = {}
        """By loader, pass and ordinal: (rank, batch), by rank."""
        self.weights: dict[int, list[tuple[int, StoredWeights]]] = {}
        self.draws: dict[int, list[tuple[int, StoredDraws]]] = {}
        """By step: (rank, what it drew), by rank."""
        self.lengths: dict[str, int] = {}
        self.ends_after: int | None = None
        """Steps after which the first rank had no more space; None: none ran out."""
        for path in sorted(folder.glob("rank-*.jsonl")):
            rank = int(path.stem.removeprefix("rank-"))
            for line in path.read_bytes().split(b"\n")[:-1]:  # a torn last one is left out
                self._add(rank, _decoded(path, line))

    def _add(self, rank: int, entry: Stored) -> None:
        match entry:
            case StoredBatch():
                key = (entry.loader, entry.number, entry.ordinal)
                self.batches.setdefault(key, []).append((rank, entry))
            case StoredWeights():
                self.weights.setdefault(entry.steps_done, []).append((rank, entry))
            case StoredDraws():
                self.draws.setdefault(entry.step, []).append((rank, entry))
            case LoaderLength():
                self.lengths.setdefault(entry.where, entry.length)
            case OutOfSpace():
                first = entry.steps_done if self.ends_after is None else self.ends_after
                self.ends_after = min(first, entry.steps_done)
