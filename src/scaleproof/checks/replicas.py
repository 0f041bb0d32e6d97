"""What replica-drift and buffer-drift share: the state of all ranks at one moment, compared.

Equal digests mean equal bytes. Where they differ, the sketches give the distance.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import EvidenceError
from scaleproof.evidence.consistency import with_shape
from scaleproof.evidence.observations import SnapshotRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import SKETCH_SIZE, StateRecord, TensorKind, TensorState

TensorKey = tuple[TensorKind, str]

KIND_WORDS = {
    TensorKind.PARAMETER: "parameter",
    TensorKind.BUFFER: "buffer",
    TensorKind.OPTIMIZER: "optimizer state",
}


@final
class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is not the same on ``rank`` as on ``reference_rank``.

    ``distance`` is the Euclidean distance over the larger norm, estimated from the sketches; None
    when it has none: ``difference`` then says what is different (size, NaN, one of them missing).
    """

    run: str
    when: str
    order: int
    """Epochs, of a script steps, done at that moment."""
    rank: int
    reference_rank: int
    kind: TensorKind
    tensor: str
    distance: float | None
    difference: str
    is_beside: bool = False
    """It belongs to a module that no optimizer trains."""

    def is_beyond(self, tolerance: float) -> bool:
        return self.distance is None or self.distance > tolerance

    def how(self, tolerance: float) -> str:
        """``differs from rank 0 by 1.0e-01 of its norm (tolerance 1e-06)``."""
        if self.distance is None:
            return self.difference
        return (
            f"differs from rank {self.reference_rank} by {self.distance:.1e} of its norm "
            f"(tolerance {tolerance:.0e})"
        )


@final
class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The ranks of one run at one moment. ``drifts``: the largest of each kind of tensor, those of
    modules beside the trained ones behind."""

    run: str
    order: int
    """Epochs, of a script steps, done at that moment."""
    num_tensors: int
    """Tensors compared, over ranks."""
    num_unequal: int
    num_not_finite: int
    """Of the unequal ones, those with a NaN or an infinity on both sides: they have no distance."""
    drifts: tuple[Drift, ...]

    def is_beyond(self, tolerance: float) -> bool:
        return any(drift.is_beyond(tolerance) for drift in self.drifts)


@final
@dataclass(frozen=True)
class RankState:
    """Some kinds of tensor of one rank at one moment, with the sketches read when needed."""

    rank: Rank
    record: StateRecord | SnapshotRecord
    when: str
    kinds: tuple[TensorKind, ...] = tuple(TensorKind)
    left_out: tuple[str, ...] = ()
    """What the names of tensors begin with that are not compared."""

    @property
    def beside(self) -> tuple[str, ...]:
        """What those of modules begin with that no optimizer trains."""
        return self.record.beside if isinstance(self.record, SnapshotRecord) else ()

    @cached_property
    def index_by_key(self) -> dict[TensorKey, int]:
        tensors = [
            (i, t)
            for i, t in enumerate(self.record.tensors)
            if t.kind in self.kinds and not t.name.startswith(self.left_out)
        ]
        table = {(t.kind, t.name): index for index, t in tensors}
        if len(table) != len(tensors):
            raise EvidenceError(
                f"{self.rank.folder} lists a tensor twice in its state {self.when}. Restore the "
                "folder from where the study was made."
            )
        return table

    @cached_property
    def sketches(self) -> NDArray[np.float64]:
        """Shape ``(num_tensors, SKETCH_SIZE)``."""
        sketches = self.rank.array(self.record.sketches, np.dtype("<f8"))
        shape = (len(self.record.tensors), SKETCH_SIZE)
        return with_shape(self.rank.folder / self.record.sketches.file, sketches, shape)

    def tensor(self, key: TensorKey) -> TensorState | None:
        index = self.index_by_key.get(key)
        return None if index is None else self.record.tensors[index]

    def digest(self, key: TensorKey) -> str | None:
        tensor = self.tensor(key)
        return None if tensor is None else tensor.digest


def compare_states(
    run: str, order: int, states: Sequence[RankState], *, only_shared: bool
) -> Compared:
    """Compare the state of two or more ranks at one moment. ``only_shared`` leaves out tensors
    that some of them lack, or have in another size."""
    keys = {key for state in states for key in state.index_by_key}
    if only_shared:
        keys = {key for key in keys if _is_shared(key, states)}
    num_tensors = sum(len(keys & state.index_by_key.keys()) for state in states[1:])
    found = list(_differences(run, order, states, sorted(keys)))
    comparable = [drift for drift in found if drift is not None]
    drifts: list[Drift] = []
    for is_beside, kind in product((False, True), TensorKind):
        of_kind = [d for d in comparable if d.kind is kind and d.is_beside is is_beside]
        if of_kind:
            drifts.append(max(of_kind, key=_severity))
    return Compared(
        run=run,
        order=order,
        num_tensors=num_tensors,
        num_unequal=len(found),
        num_not_finite=len(found) - len(comparable),
        drifts=tuple(drifts),
    )


def _is_shared(key: TensorKey, states: Sequence[RankState]) -> bool:
    tensors = [state.tensor(key) for state in states]
    return None not in tensors and len({t.numel for t in tensors if t is not None}) == 1


def _severity(drift: Drift) -> float:
    return float("inf") if drift.distance is None else drift.distance


def _differences(
    run: str, order: int, states: Sequence[RankState], keys: Sequence[TensorKey]
) -> Iterator[Drift | None]:
    """Every tensor of every rank that differs from what most ranks hold; None where there is no
    finite number on either side to compare."""
    for key in keys:
        digests = Counter(state.digest(key) for state in states)
        if len(digests) == 1:
            continue
        usual, _ = digests.most_common(1)[0]  # of equally common ones, the lowest rank's
        reference = next(state for state in states if state.digest(key) == usual)
        for state in states:
            if state.digest(key) != usual:
                yield _drift(run, order, key, reference, state)


def _drift(
    run: str, order: int, key: TensorKey, reference: RankState, state: RankState
) -> Drift | None:
    mine, usual = state.tensor(key), reference.tensor(key)
    other = f"rank {reference.rank.rank}"
    distance, difference = None, ""
    if mine is None:
        difference = f"is missing, which {other} has"
    elif usual is None:
        difference = f"is there, which {other} does not have"
    elif mine.numel != usual.numel:
        difference = f"has {mine.numel:,} numbers, on {other} it has {usual.numel:,}"
    elif mine.norm is None and usual.norm is None:
        return None
    elif mine.norm is None or usual.norm is None:
        difference = f"is {'not ' if mine.norm is None else ''}finite, unlike on {other}"
    else:
        rows = state.index_by_key[key], reference.index_by_key[key]
        gap = float(np.linalg.norm(state.sketches[rows[0]] - reference.sketches[rows[1]]))
        scale = max(mine.norm, usual.norm)
        distance = gap / scale if scale > 0 else 0.0
        if not np.isfinite(distance):
            distance, difference = None, f"has no finite distance from {other}"
    return Drift(
        run=run,
        when=state.when,
        order=order,
        rank=state.rank.rank,
        reference_rank=reference.rank.rank,
        kind=key[0],
        tensor=key[1],
        distance=distance,
        difference=difference,
        is_beside=key[1].startswith(state.beside),
    )
