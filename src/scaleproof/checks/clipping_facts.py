"""By how much the gradients of a step were made smaller, and what norm that fits: facts, without
opinion."""

from collections.abc import Iterator
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.closer_looks import CloserLook, closer_looks, replayed_looks
from scaleproof.checks.gradient_weights import has_weight, joined
from scaleproof.checks.probes import owned_tensors
from scaleproof.evidence.consistency import with_shape
from scaleproof.evidence.observations import StepFlag
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run

_MULTIPLE = 0.01
"""Distance from a multiple of a gradient that is one, in 16 bits too."""
_SAME_GRADIENT = 0.02
"""Distance of the gradient of a replay from that of the run up to which their factors compare."""

_FLOAT = np.dtype("<f8")


@final
class ClipFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The clipping of one step of one optimizer; tuples are by rank, None where unknown.

    ``limit``: what clipping allowed, ``measured``: what it measured (its last call). ``whole``: the
    norm of all that its only call was given, over all shards; ``own``: of each rank's own part of
    it. ``factors``: what each rank's gradient was multiplied with; ``replayed``: the same on one
    device, from the same gradient. ``num_first`` tensors were given to the first call,
    ``num_clipped`` to any, of ``num_tensors``.
    """

    run: str
    where: str
    step: int
    ranks: tuple[int, ...]
    clip_where: str
    is_called: bool
    is_sharded: bool
    limit: float | None
    measured: tuple[float | None, ...]
    whole: float | None
    own: tuple[float | None, ...]
    factors: tuple[float | None, ...]
    replayed: float | None
    num_first: int
    num_clipped: int
    num_tensors: int
    num_backwards: int

    @property
    def norms(self) -> tuple[float | None, ...]:
        """What each rank clipped by: as measured, or as its factor shows."""
        return tuple(
            norm if norm is not None else self._shown(factor)
            for norm, factor in zip(self.measured, self.factors, strict=True)
        )

    def _shown(self, factor: float | None) -> float | None:
        if factor is None or self.limit is None or not 0 < factor < 1 - _MULTIPLE:
            return None
        return self.limit / factor


@final
class StageNorms(msgspec.Struct, frozen=True, kw_only=True):
    """A run whose ranks own different tensors, and the first step at which they clipped by unequal
    norms above the limit; so at ``num_steps``."""

    run: str
    step: int
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    limit: float
    num_steps: int


def clip_facts(run: Run) -> Iterator[ClipFacts]:
    """Of every step that was looked at, whether it was clipped or not."""
    replay = replays_of(run).get("union")
    replayed = {} if replay is None else replayed_looks(replay)
    for look in closer_looks(run):
        yield _facts(run, look, replayed.get((look.probe.optimizer, look.probe.step)))


def stage_norms(run: Run) -> StageNorms | None:
    """None where ranks own the same tensors, or clipped by the same norm."""
    owned = [set(owned_tensors(rank, 0)) for rank in run.ranks]
    is_apart = all(not a & b for i, a in enumerate(owned) for b in owned[:i])
    if len(owned) < 2 or not all(owned) or not is_apart:
        return None
    tables = [rank.observed_steps for rank in run.ranks]
    num_steps = min(map(len, tables))
    norms = np.stack([table["clip_norm"][:num_steps].astype(np.float64) for table in tables])
    limits = np.stack([table["clip_max"][:num_steps].astype(np.float64) for table in tables])
    with np.errstate(invalid="ignore"):  # NaN where it was not called
        is_unequal = np.ptp(norms, axis=0) > _MULTIPLE * norms.max(axis=0)
        is_alike = np.ptp(limits, axis=0) == 0
        found = np.flatnonzero(is_unequal & is_alike & (norms > limits).any(axis=0))
    if not len(found):
        return None
    return StageNorms(
        run=run.name,
        step=int(found[0]) + 1,
        ranks=tuple(rank.rank for rank in run.ranks),
        norms=tuple(norms[:, found[0]].tolist()),
        limit=float(limits[0, found[0]]),
        num_steps=len(found),
    )


def _facts(run: Run, look: CloserLook, replayed: CloserLook | None) -> ClipFacts:
    probe, base = look.probe, _base(look)
    given = _any(np.isfinite(look.before_clipping), (0, 2))
    is_clipped = _any(look.is_clipped, 0)
    limits = probe.column("clip_max")
    own = _own_norms(run, look)
    whole = None
    is_measured = _any(np.isfinite(own), 0)
    if given.any() and bool((given == is_clipped).all()) and is_measured[given].all():
        squares = np.nan_to_num(own[:, given]) ** 2
        # A replicated tensor counts once, a shard on each rank.
        num_times = np.where(probe.is_sharded[given], 1.0, float(probe.num_ranks))
        whole = float(np.sqrt((squares / num_times).sum()))
    own_norms = np.sqrt(np.nansum(own**2, axis=1))
    is_same_limit = np.isfinite(limits).all() and np.ptp(limits) == 0
    return ClipFacts(
        run=probe.run,
        where=probe.where,
        step=probe.step,
        ranks=probe.ranks,
        clip_where=next((r.clip_where for r in look.records if r.clip_where), ""),
        is_called=any(flags & StepFlag.CLIPPED for flags in probe.flags),
        is_sharded=bool(probe.is_sharded.any()),
        limit=float(limits[0]) if is_same_limit else None,
        measured=tuple(_known(float(norm)) for norm in probe.column("clip_norm")),
        whole=whole,
        own=tuple(None if whole is None else float(norm) for norm in own_norms),
        factors=_factors(look, base),
        replayed=None if replayed is None else _replayed_factor(look, base, replayed),
        num_first=int(given.sum()),
        num_clipped=int(is_clipped.sum()),
        num_tensors=len(probe.names),
        num_backwards=probe.num_backwards,
    )


def _any(values: NDArray[np.bool_], axis: int | tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(values.any(axis=axis))


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _base(look: CloserLook) -> NDArray[np.float64]:
    """What clipping was given or, where none of torch's was called, the mean of what the ranks'
    own backwards produced: ``(num_tensors, NUM_COORDINATES)``, NaN where there is no weight."""
    base = joined(look.before_clipping)
    is_given = np.isfinite(base).any(axis=1, keepdims=True)
    base = np.where(is_given, base, look.probe.local.mean(axis=0))
    return np.where(has_weight(look.probe)[:, None], base, np.nan)


def _factors(look: CloserLook, base: NDArray[np.float64]) -> tuple[float | None, ...]:
    """Each rank's final gradient as a multiple of ``base``."""
    factors: list[float | None] = []
    for used in look.probe.final:
        known = np.isfinite(used) & np.isfinite(base)
        size = float(base[known] @ base[known])
        factor = float(used[known] @ base[known]) / size if size > 0 else 0.0
        rest = float(np.linalg.norm(used[known] - factor * base[known]))
        is_one = factor > 0 and rest <= _MULTIPLE * factor * size**0.5
        factors.append(factor if is_one else None)
    return tuple(factors)


def _replayed_factor(
    look: CloserLook, base: NDArray[np.float64], replayed: CloserLook
) -> float | None:
    """None where one device had another gradient: then it clips by another norm."""
    theirs = _base(replayed)
    rows = {name: row for row, name in enumerate(replayed.probe.names)}
    if any(name not in rows for name in look.probe.names):
        return None
    theirs_here = theirs[[rows[name] for name in look.probe.names]]
    known = np.isfinite(base) & np.isfinite(theirs_here)
    gap = np.linalg.norm((base - theirs_here)[known])
    if not known.any() or gap > _SAME_GRADIENT * np.linalg.norm(theirs_here[known]):
        return None
    return _factors(replayed, theirs)[0]


def _own_norms(run: Run, look: CloserLook) -> NDArray[np.float64]:
    """By rank and tensor, of what the first clipping was given (of a shard: the shard's)."""
    probe = look.probe
    norms = np.full((probe.num_ranks, len(probe.names)), np.nan)
    for index, (rank, record) in enumerate(zip(run.ranks, look.records, strict=True)):
        if record.before_clipping_norms is None:
            continue
        values = rank.array(record.before_clipping_norms, _FLOAT)
        rows = probe.owned_rows[index]
        path = rank.folder / record.before_clipping_norms.file
        num_owned = max(len(values) if values.ndim else 0, int(rows.max()) + 1)
        with_shape(path, values, (num_owned,))
        scale = probe.records[index].grad_scale if record.is_clipped_scaled else 1.0
        norms[index] = np.where(np.isfinite(values), values, np.nan)[rows] / scale
    return norms
