"""Gradient probes of all ranks, joined: by optimizer and step, and within a step by the name of the
tensor, since ranks may own tensors in another order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import EvidenceError
from scaleproof.evidence.consistency import with_shape
from scaleproof.evidence.observations import (
    NUM_COORDINATES,
    OptimizerRecord,
    OwnedTensor,
    ProbeRecord,
    ProcessRecord,
)
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run

_FLOAT = np.dtype("<f8")


@final
@dataclass(frozen=True, kw_only=True)
class StepProbe:
    """The gradients of all ranks at one step of one optimizer, of the tensors they all own.

    ``local`` (what each rank's own backwards produced, unscaled) and ``final`` (what its optimizer
    used) have shape ``(num_ranks, num_tensors, NUM_COORDINATES)``, NaN where unknown or not finite:
    for a sharded tensor, a rank's final gradient is known on its own shard only. ``local_norms``
    and ``final_norms``: shape ``(num_ranks, num_tensors)``, of whole tensors (final ones of shards:
    of the shard). ``rows``: each rank's row of ``OBSERVED_STEP_TABLE``. ``owned_rows``: where each
    rank's optimizer has the tensor, shape ``(num_ranks, num_tensors)``.
    """

    run: str
    optimizer: int
    where: str
    step: int
    ranks: tuple[int, ...]
    names: tuple[str, ...]
    is_sharded: NDArray[np.bool_]
    local: NDArray[np.float64]
    final: NDArray[np.float64]
    local_norms: NDArray[np.float64]
    final_norms: NDArray[np.float64]
    rows: tuple[Any, ...]
    records: tuple[ProbeRecord, ...]
    owned_rows: NDArray[np.intp]

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def num_backwards(self) -> int:
        """The most of any rank."""
        return max(record.num_backwards for record in self.records)

    @property
    def is_loss_a_mean(self) -> bool:
        """On every rank, backward began at a mean that nothing was multiplied or divided after."""
        return all(record.loss_reduction == "mean" for record in self.records)

    @property
    def grad_scales(self) -> tuple[float, ...]:
        return tuple(record.grad_scale for record in self.records)

    @cached_property
    def flags(self) -> tuple[int, ...]:
        """Each rank's ``StepFlag``s."""
        return tuple(int(row["flags"]) for row in self.rows)

    def column(self, name: str) -> NDArray[np.float64]:
        """One column of the step's rows, shape ``(num_ranks,)``."""
        return np.array([float(row[name]) for row in self.rows])


def step_probes(run: Run) -> Iterator[StepProbe]:
    """Every step that all ranks have probed and counted, by optimizer and step, one at a time in
    memory.

    Raises ``EvidenceError`` when a probe and the list of tensors it is of contradict each other.
    """
    by_rank = [_probes_of(rank) for rank in run.ranks]
    if not by_rank:
        return
    for optimizer, step in sorted(set[tuple[int, int]].intersection(*map(set, by_rank))):
        records = [probes[optimizer, step] for probes in by_rank]
        probe = _join(run, optimizer, step, records)
        if probe is not None:
            yield probe


def process_of(rank: Rank) -> ProcessRecord | None:
    """Who the process is; None when it left no record of it."""
    return next(iter(rank.of(ProcessRecord)), None)


def parallelism_of(run: Run) -> frozenset[str]:
    """What the processes said of themselves: one word, unless they differ."""
    processes = [process_of(rank) for rank in run.ranks]
    return frozenset("none" if p is None else p.parallelism for p in processes)


def owned_tensors(rank: Rank, optimizer: int) -> dict[str, OwnedTensor]:
    """What the optimizer owns, by name, as last recorded; ``has_gradient``: in any record of it.

    Rows stay, while names may change: a second model gives those of the first one a prefix.
    """
    lists = _lists(rank, optimizer)
    if not lists:
        return {}
    had = {row for owned in lists for row, tensor in enumerate(owned) if tensor.has_gradient}
    return {
        name: msgspec.structs.replace(tensor, has_gradient=row in had)
        for row, (name, tensor) in enumerate(_named(lists[-1]))
    }


def optimizers_of(run: Run) -> tuple[int, ...]:
    """Numbers of the optimizers that any rank has."""
    return tuple(sorted({r.optimizer for rank in run.ranks for r in rank.of(OptimizerRecord)}))


def unlike_tensors(run: Run) -> tuple[str, ...]:
    """Tensors that some ranks' optimizers own and others' don't, or with another size, by name."""
    names: set[str] = set()
    for optimizer in optimizers_of(run):
        sizes = [
            {name: (t.is_sharded or t.numel) for name, t in owned_tensors(rank, optimizer).items()}
            for rank in run.ranks
        ]
        every = sorted({name for of_rank in sizes for name in of_rank})
        names |= {n for n in every if len({of_rank.get(n) for of_rank in sizes}) > 1}
    return tuple(sorted(names))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SeenGradient:
    """What the probes of one rank saw of one tensor's gradient. ``size``: the largest norm, of its
    own or of the final one. ``num_zeros``: probed steps at which the final one was 0 throughout."""

    size: float
    num_zeros: int


def seen_gradients(rank: Rank) -> dict[tuple[int, str], SeenGradient]:
    """By (optimizer, tensor). Tensors that no probe saw a gradient of are not there."""
    sizes: dict[tuple[int, str], float] = {}
    num_zeros: Counter[tuple[int, str]] = Counter()
    for probe in rank.of(ProbeRecord):
        arrays = _read(rank, probe, _lists(rank, probe.optimizer))
        seen = np.concatenate([np.abs(arrays.values), arrays.norms[:, :, None]], axis=2)
        for name, row in arrays.rows.items():
            known = seen[row][np.isfinite(seen[row])]
            if known.size:
                key = probe.optimizer, name
                sizes[key] = max(float(known.max()), sizes.get(key, 0.0))
                num_zeros[key] += bool(arrays.norms[row, 1] == 0)
    return {key: SeenGradient(size=size, num_zeros=num_zeros[key]) for key, size in sizes.items()}


def _probes_of(rank: Rank) -> dict[tuple[int, int], ProbeRecord]:
    return {(record.optimizer, record.step): record for record in rank.of(ProbeRecord)}


def _join(run: Run, optimizer: int, step: int, records: Sequence[ProbeRecord]) -> StepProbe | None:
    arrays = [
        _read(rank, record, _lists(rank, optimizer))
        for rank, record in zip(run.ranks, records, strict=True)
    ]
    # In the order of the lowest rank: that of the model, and of the user's script.
    names = tuple(n for n in arrays[0].tensors if all(n in array.tensors for array in arrays))
    step_rows = tuple(_step_row(rank, step) for rank in run.ranks)
    if not names or any(row is None for row in step_rows):
        return None
    rows = [[array.rows[name] for name in names] for array in arrays]
    values = np.stack([array.values[row] for array, row in zip(arrays, rows, strict=True)])
    norms = np.stack([array.norms[row] for array, row in zip(arrays, rows, strict=True)])
    scales = np.array([record.grad_scale for record in records])
    return StepProbe(
        run=run.name,
        optimizer=optimizer,
        where=where_of(run.ranks[0], optimizer),
        step=step,
        ranks=tuple(rank.rank for rank in run.ranks),
        names=names,
        is_sharded=np.array([arrays[0].tensors[name].is_sharded for name in names]),
        local=values[:, :, 0] / scales[:, None, None],
        final=values[:, :, 1],
        local_norms=norms[:, :, 0] / scales[:, None],
        final_norms=norms[:, :, 1],
        rows=step_rows,
        records=tuple(records),
        owned_rows=np.array(rows, np.intp),
    )


def where_of(rank: Rank, optimizer: int) -> str:
    """How findings name an optimizer: its kind and, where it is known, its line in the script."""
    record = next((r for r in rank.of(OptimizerRecord) if r.optimizer == optimizer), None)
    if record is None:
        return f"optimizer {optimizer}"
    return f"{record.kind} of {record.where}" if record.where else f"{record.kind} {optimizer}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _RankArrays:
    tensors: Mapping[str, OwnedTensor]
    rows: Mapping[str, int]
    values: NDArray[np.float64]
    norms: NDArray[np.float64]


def _lists(rank: Rank, optimizer: int) -> list[tuple[OwnedTensor, ...]]:
    """What the optimizer owned, as listed at its first step and at the end."""
    return [r.owned for r in rank.of(OptimizerRecord) if r.optimizer == optimizer]


def _read(rank: Rank, probe: ProbeRecord, lists: Sequence[tuple[OwnedTensor, ...]]) -> _RankArrays:
    if not 0 < probe.grad_scale < np.inf:
        raise EvidenceError(
            f"{rank.folder}: the probe of step {probe.step} has a loss scale of "
            f"{probe.grad_scale}, expected a positive number. Restore the folder from where the "
            "study was made."
        )
    values = rank.array(probe.values, _FLOAT)
    num_owned = len(values) if values.ndim else 0
    # The last list, as names may change; groups are added behind, so a shorter probe is of the
    # first ones.
    owned = next((o for o in reversed(lists) if len(o) >= num_owned), None)
    if owned is None:
        raise EvidenceError(
            f"{rank.folder}: the probe of step {probe.step} is of {num_owned} tensors, and "
            f"optimizer {probe.optimizer} owns {max(map(len, lists), default=0)}. Restore the "
            "folder from where the study was made."
        )
    path = rank.folder / probe.values.file
    with_shape(path, values, (num_owned, 2, NUM_COORDINATES))
    norms = rank.array(probe.norms, _FLOAT)
    with_shape(rank.folder / probe.norms.file, norms, (num_owned, 2))
    tensors = dict(_named(owned[:num_owned]))
    rows = {name: row for row, name in enumerate(tensors)}
    return _RankArrays(
        tensors=tensors,
        rows=rows,
        values=np.where(np.isfinite(values), values, np.nan),
        norms=np.where(np.isfinite(norms), norms, np.nan),
    )


def _named(owned: Iterable[OwnedTensor]) -> Iterator[tuple[str, OwnedTensor]]:
    """Each name once: two models may call their tensors alike, and one optimizer own both."""
    seen: Counter[str] = Counter()
    for tensor in owned:
        seen[tensor.name] += 1
        number = seen[tensor.name]
        yield tensor.name if number == 1 else f"{tensor.name} ({number})", tensor


def _step_row(rank: Rank, step: int) -> Any:
    """None where an abrupt end took the table of the last steps with it."""
    table = rank.observed_steps
    return table[step - 1] if 1 <= step <= len(table) else None
