"""The closer look of ``scaleproof check`` at a probed step, of all ranks, joined as probes are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.gradient_weights import clip_factors, final_factors, joined
from scaleproof.checks.probes import StepProbe, step_probes
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.consistency import with_shape
from scaleproof.evidence.observations import NUM_COORDINATES, StepFlag
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.replays import Replay
from scaleproof.evidence.study import Run

_FLOAT = np.dtype("<f8")

_SAME = 1e-3
"""Distance from 1 of a multiple of another rank's gradient that is the same gradient."""


@final
@dataclass(frozen=True, kw_only=True)
class CloserLook:
    """At the step of ``probe``, with its tensors in its order; tuples are by rank.

    ``backwards``: what each backward of a rank produced, not scaled by a ``GradScaler``, of shape
    ``(num_backwards, num_tensors, NUM_COORDINATES)``. ``before_clipping``: what the ranks' first
    clipping was given, likewise unscaled, ``(num_ranks, num_tensors, NUM_COORDINATES)``. NaN where
    there was none, or it is not known or not finite.
    """

    probe: StepProbe
    records: tuple[CloseUpRecord, ...]
    backwards: tuple[NDArray[np.float64], ...]
    before_clipping: NDArray[np.float64]
    is_clipped: NDArray[np.bool_]
    """By rank and tensor: it was given to a clipping, not necessarily to the first one."""


@final
@dataclass(frozen=True, kw_only=True)
class UnclippedGradient:
    """What the optimizers used, before it was clipped: ``values``, of shape
    ``(num_tensors, NUM_COORDINATES)``, the shards of all ranks joined; None when ranks used
    different gradients (``why_not`` says how)."""

    values: NDArray[np.float64] | None
    why_not: str = ""


def closer_looks(run: Run) -> Iterator[CloserLook]:
    """At each step that all ranks have probed and looked at, by optimizer and step.

    Raises ``EvidenceError`` when records contradict each other.
    """
    by_rank = [{(r.optimizer, r.step): r for r in rank.of(CloseUpRecord)} for rank in run.ranks]
    if not all(by_rank):
        return
    for probe in step_probes(run):
        key = probe.optimizer, probe.step
        if all(key in of_rank for of_rank in by_rank):
            yield _join(run, probe, tuple(of_rank[key] for of_rank in by_rank))


def replayed_looks(replay: Replay) -> dict[tuple[int, int], CloserLook]:
    """By (optimizer, step), of the steps that are those of the run: where a replay stopped short,
    what it did after that is something else."""
    return {
        (look.probe.optimizer, look.probe.step): look
        for look in closer_looks(replay.run)
        if look.probe.step <= replay.end.num_steps
    }


def unclipped_gradient(look: CloserLook) -> UnclippedGradient:
    """Of replicas: what clipping was given where it was the same on all ranks, otherwise what was
    used. Where each rank clipped a gradient of its own before they were reduced, nobody knows."""
    probe = look.probe
    given = look.before_clipping
    is_given = np.logical_or.reduce(np.isfinite(given), axis=(0, 2))
    # Of a second clipping, nobody knows what it was given.
    unknown = look.is_clipped.any(axis=0) & ~is_given
    used = np.where(is_given[None, :, None], given, probe.final)
    used[:, unknown] = np.nan
    if _is_same(replace(probe, final=used)):
        return UnclippedGradient(values=joined(used))
    if not _is_same(probe):
        return UnclippedGradient(values=None, why_not="the ranks used different gradients")
    is_clipped = any(flags & StepFlag.CLIPPED for flags in probe.flags)
    if is_clipped and not (clip_factors(probe) >= 1).all():  # NaN: single values were
        return UnclippedGradient(values=None, why_not="each rank clipped a gradient of its own")
    return UnclippedGradient(values=joined(probe.final))


def _is_same(probe: StepProbe) -> bool:
    factors = final_factors(probe)
    return bool(np.isfinite(factors).all() and np.abs(factors - 1).max() <= _SAME)


def _join(run: Run, probe: StepProbe, records: tuple[CloseUpRecord, ...]) -> CloserLook:
    backwards: list[NDArray[np.float64]] = []
    before: list[NDArray[np.float64]] = []
    is_clipped: list[NDArray[np.bool_]] = []
    for index, (rank, record) in enumerate(zip(run.ranks, records, strict=True)):
        rows, scale = probe.owned_rows[index], probe.records[index].grad_scale
        num_owned = int(rows.max()) + 1
        backwards.append(_backwards(rank, record, num_owned)[:, rows] / scale)
        given = _before_clipping(rank, record, num_owned)[rows]
        before.append(given / scale if record.is_clipped_scaled else given)
        is_clipped.append(np.isin(rows, np.array(record.clipped_tensors, np.intp)))
    return CloserLook(
        probe=probe,
        records=records,
        backwards=tuple(backwards),
        before_clipping=np.stack(before),
        is_clipped=np.stack(is_clipped),
    )


def _backwards(rank: Rank, record: CloseUpRecord, num_owned: int) -> NDArray[np.float64]:
    values = rank.array(record.backwards, _FLOAT)
    path = rank.folder / record.backwards.file
    num_backwards, num_rows = values.shape[:2] if values.ndim == 3 else (0, 0)
    with_shape(path, values, (num_backwards, max(num_rows, num_owned), NUM_COORDINATES))
    return np.where(np.isfinite(values), values, np.nan)


def _before_clipping(rank: Rank, record: CloseUpRecord, num_owned: int) -> NDArray[np.float64]:
    if record.before_clipping is None:
        return np.full((num_owned, NUM_COORDINATES), np.nan)
    values = rank.array(record.before_clipping, _FLOAT)
    path = rank.folder / record.before_clipping.file
    num_rows = len(values) if values.ndim else 0
    with_shape(path, values, (max(num_rows, num_owned), NUM_COORDINATES))
    return np.where(np.isfinite(values), values, np.nan)
