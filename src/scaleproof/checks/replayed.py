"""The gradient that was used, beside the one that a single device computed on the same items: facts
of every step that was replayed, without opinion (``relations.py`` has that)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.closer_looks import (
    CloserLook,
    UnclippedGradient,
    closer_looks,
    replayed_looks,
    unclipped_gradient,
)
from scaleproof.checks.gradient_weights import has_weight
from scaleproof.checks.probes import owned_tensors
from scaleproof.checks.reference_numbers import (
    FITS,
    NOTHING,
    Fit,
    Gradients,
    TensorFacts,
    fit_of,
    numbers_of,
)
from scaleproof.evidence.close_ups import LossArrival, ReplayName
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run

_MAX_SOURCES = 32
"""Backwards of all ranks; more are added up by rank."""

_ONE_SIDED = 1e-3
"""Of the whole gradient: a tensor's that is smaller may be rounding of none."""

_SUMMED = 1e-3
"""Distance from a multiple of the replayed gradient that is that multiple."""


@final
class ComparedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one optimizer, before clipping, over the probed coordinates of all tensors.

    ``why_not``: why nothing could be compared; then all numbers are NaN. ``error``: distance of the
    gradient that was used from the reference, relative to the reference; ``noise``: the same of
    two replays that differ in nothing but the order of the items, None where there is no second
    one. ``ratio`` is the multiple of the reference that comes closest to what was used, ``rest``
    the share of the used gradient that it leaves over.

    ``sources``: (rank, backward) of the ranks' own gradients, backward -1 for all of a step
    together; ``effective``: weights of the sources in what was used; ``in_reference``: in the
    reference. ``num_samples`` (None: not known) and ``num_items`` (those the losses were computed
    of) are by rank. ``is_plain_sum``: nothing divided the sum
    over the items, unless the number of backwards did.
    ``off``: tensors that are off by themselves, ``one_sided``: that have a gradient on the ranks
    alone, or on one device alone, both in the order of the model.
    """

    run: str
    optimizer: int
    where: str
    step: int
    ranks: tuple[int, ...]
    num_backwards: int
    backward_where: str
    reference: ReplayName
    why_not: str
    error: float
    noise: float | None
    cosine: float
    ratio: float
    rest: float
    sources: tuple[tuple[int, int], ...]
    effective: Fit
    in_reference: Fit
    num_samples: tuple[int, ...] | None
    num_items: tuple[int, ...]
    is_plain_sum: bool
    is_plain_mean: bool
    """On every rank, the loss was a mean that nothing was multiplied or divided after."""
    is_loss_seen: bool
    """How the loss was reduced, and what it was multiplied with after that, is known."""
    is_random: bool
    """The script itself drew random numbers in this step, in the run or in the replay."""
    off: tuple[TensorFacts, ...]
    one_sided: tuple[str, ...]
    num_tensors: int


def compared_steps(run: Run) -> Iterator[ComparedStep]:
    """Every step that was looked at closely on all ranks, and replayed: by optimizer and step."""
    replays = replays_of(run)
    if "union" not in replays:
        return
    looks: dict[ReplayName, dict[tuple[int, int], CloserLook]] = {
        name: replayed_looks(replay) for name, replay in replays.items() if name != "last-rank"
    }
    numels = {
        (optimizer, name): tensor.numel
        for optimizer in {optimizer for optimizer, _ in looks["union"]}
        for rank in replays["union"].run.ranks
        for name, tensor in owned_tensors(rank, optimizer).items()
    }
    for look in closer_looks(run):
        key = look.probe.optimizer, look.probe.step
        replayed: dict[ReplayName, CloserLook] = {
            name: of_replay[key] for name, of_replay in looks.items() if key in of_replay
        }
        if "union" in replayed:
            own = owned_tensors(run.ranks[0], look.probe.optimizer)
            alike = {
                name
                for name, tensor in own.items()
                # A shard has another size, which says nothing.
                if tensor.is_sharded or tensor.numel == numels.get((key[0], name))
            }
            yield _compare(look, replayed, alike)


def _compare(
    look: CloserLook, replayed: Mapping[ReplayName, CloserLook], alike: set[str]
) -> ComparedStep:
    used = unclipped_gradient(look)
    references: dict[ReplayName, UnclippedGradient] = {
        name: unclipped_gradient(one) for name, one in replayed.items()
    }
    why_not = used.why_not or next((r.why_not for r in references.values() if r.why_not), "")
    union = replayed["union"]
    names = tuple(
        name
        for name, weighs in zip(look.probe.names, has_weight(look.probe), strict=True)
        if name in alike and name in union.probe.names and weighs
    )
    if not why_not and not names:
        why_not = "no tensor with a gradient has the same name and size on one device"
    if why_not:
        return _facts(look, replayed, why_not=why_not)
    gradients: dict[ReplayName, NDArray[np.float64]] = {
        name: _of(replayed[name], reference.values, names) for name, reference in references.items()
    }
    sources, source_names = _sources(look, names)
    used_values = _of(look, used.values, names)
    name = _choose_reference(gradients, sources, used_values, look.probe.num_backwards)
    known = np.isfinite(used_values) & np.isfinite(gradients[name])
    reordered = gradients.get("reordered")
    if reordered is not None:
        known &= np.isfinite(reordered)
    if not known.any() or not np.linalg.norm(gradients[name][known]) > 0:
        return _facts(look, replayed, why_not="no gradient is known on both sides")
    compared = Gradients(
        names=names,
        used=np.where(known, used_values, np.nan),
        reference=np.where(known, gradients[name], np.nan),
        reordered=reordered,
        sources=sources,
    )
    return _facts(
        look, replayed, reference=name, gradients=compared, union=gradients["union"],
        sources=source_names, one_sided=_one_sided(look, union, alike),
    )  # fmt: skip


def _one_sided(look: CloserLook, union: CloserLook, alike: set[str]) -> tuple[str, ...]:
    """Tensors with a gradient worth the name on the one side, and none at all on the other."""
    ours, theirs = _sizes(look), _sizes(union)
    least = _ONE_SIDED * max(np.linalg.norm(list(ours.values())), 0.0)
    return tuple(
        name
        for name in look.probe.names
        if name in alike
        and name in theirs
        and min(ours[name], theirs[name]) == 0 < least < max(ours[name], theirs[name])
    )


def _sizes(look: CloserLook) -> dict[str, float]:
    """Of the tensors' gradients, as produced and as used; 0 where there is none."""
    values = np.nan_to_num(np.concatenate([look.probe.local, look.probe.final]))
    norms = np.nan_to_num(np.concatenate([look.probe.local_norms, look.probe.final_norms]))
    sizes = np.maximum(np.linalg.norm(values, axis=2).max(axis=0), norms.max(axis=0))
    return dict(zip(look.probe.names, sizes.tolist(), strict=True))


def _of(
    look: CloserLook, values: NDArray[np.float64] | None, names: Sequence[str]
) -> NDArray[np.float64]:
    assert values is not None  # looked at before
    index = {name: row for row, name in enumerate(look.probe.names)}
    rows = [index.get(name, -1) for name in names]
    return np.where(np.array(rows)[:, None] >= 0, values[rows], np.nan)


def _sources(
    look: CloserLook, names: Sequence[str]
) -> tuple[NDArray[np.float64], tuple[tuple[int, int], ...]]:
    """The ranks' own gradients that are not zero: of each backward or, where those are many or do
    not add up to what the rank produced, of all backwards together."""
    index = [look.probe.names.index(name) for name in names]
    locals_ = look.probe.local[:, index]
    by_backward = [of_rank[:, index] for of_rank in look.backwards]
    num_sources = sum(map(len, by_backward))
    is_whole = all(
        len(of_rank) == record.num_backwards and _is_near(np.nansum(of_rank, axis=0), local)
        for of_rank, record, local in zip(by_backward, look.probe.records, locals_, strict=True)
    )
    num_known = int(np.isfinite(locals_).all(axis=0).sum())
    if not is_whole or num_sources > min(_MAX_SOURCES, num_known // 4):
        by_backward = [local[None] for local in locals_]
        labels = [(rank, -1) for rank in look.probe.ranks]
    else:
        labels = [
            (rank, number)
            for rank, of_rank in zip(look.probe.ranks, by_backward, strict=True)
            for number in range(len(of_rank))
        ]
    sources = np.concatenate(by_backward)
    there = np.nansum(np.abs(sources), axis=(1, 2)) > 0
    return sources[there], tuple(n for n, is_there in zip(labels, there, strict=True) if is_there)


def _is_near(values: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    known = np.isfinite(expected)
    gap = np.linalg.norm((values - expected)[known])
    return bool(gap <= FITS * np.linalg.norm(expected[known]))


def _choose_reference(
    gradients: Mapping[ReplayName, NDArray[np.float64]],
    sources: NDArray[np.float64],
    used: NDArray[np.float64],
    num_backwards: int,
) -> ReplayName:
    """``whole-step`` where it says more than ``union``.

    It does not where a loss is summed over its items (then it counts them once for each backward,
    and is that multiple of the union's), nor where it is no weighted sum of what the backwards
    produced and the union is what was used: state that is carried from one microbatch to the next.
    """
    whole, union = gradients.get("whole-step"), gradients["union"]
    if whole is None or num_backwards < 2:
        return "union"
    known = np.isfinite(whole) & np.isfinite(union) & np.isfinite(used)
    summed = num_backwards * union[known]
    if np.linalg.norm(whole[known] - summed) <= _SUMMED * np.linalg.norm(summed):
        return "union"
    does_union_agree = bool(
        np.linalg.norm((used - union)[known]) <= _SUMMED * np.linalg.norm(union[known])
    )
    is_other = fit_of(sources, whole).residual > FITS
    return "union" if does_union_agree and is_other else "whole-step"


def _facts(
    look: CloserLook,
    replayed: Mapping[ReplayName, CloserLook],
    *,
    why_not: str = "",
    reference: ReplayName = "union",
    gradients: Gradients | None = None,
    union: NDArray[np.float64] | None = None,
    sources: tuple[tuple[int, int], ...] = (),
    one_sided: tuple[str, ...] = (),
) -> ComparedStep:
    probe = look.probe
    num_samples = probe.column("num_samples")
    is_counted = bool((num_samples >= 0).all() and num_samples.sum() > 0)
    arrivals = [arrival for record in look.records for arrival in record.arrivals]
    reductions = {record.loss_reduction for record in probe.records}
    numbers = NOTHING if gradients is None else numbers_of(gradients, union)
    return ComparedStep(
        run=probe.run,
        optimizer=probe.optimizer,
        where=probe.where,
        step=probe.step,
        ranks=probe.ranks,
        num_backwards=probe.num_backwards,
        backward_where=next((r.backward_where for r in look.records if r.backward_where), ""),
        reference=reference,
        why_not=why_not,
        error=numbers.error,
        noise=numbers.noise,
        cosine=numbers.cosine,
        ratio=numbers.ratio,
        rest=numbers.rest,
        sources=sources,
        effective=numbers.effective,
        in_reference=numbers.in_reference,
        num_samples=tuple(int(n) for n in num_samples) if is_counted else None,
        num_items=tuple(sum(a.num_items for a in record.arrivals) for record in look.records),
        is_plain_sum=reductions == {"sum"} or (_is_plain_sum(look) and not _may_be_mean(look)),
        is_plain_mean=probe.is_loss_a_mean,
        is_loss_seen=reductions <= {"mean", "sum"}
        or (
            bool(arrivals)
            and all(arrival.weight is not None for arrival in arrivals)
            and not _may_be_mean(look)
        ),
        is_random=any(r.drawn for one in (look, *replayed.values()) for r in one.records),
        off=numbers.off,
        one_sided=one_sided,
        num_tensors=0 if gradients is None else len(gradients.names),
    )


def _is_plain_sum(look: CloserLook) -> bool:
    """Some loss was summed on every rank, and reached backward without a division, unless by the
    number of backwards."""
    return all(
        any(_is_summed(arrival, 1) or _is_summed(arrival, probe.num_backwards) for arrival in of)
        for probe, of in zip(look.probe.records, _arrivals(look), strict=True)
    )


def _may_be_mean(look: CloserLook) -> bool:
    """As many items as backwards: a sum over the one is divided by it, or by the other."""
    return any(
        arrival.num_items == probe.num_backwards > 1 and _is_summed(arrival, arrival.num_items)
        for probe, of in zip(look.probe.records, _arrivals(look), strict=True)
        for arrival in of
    )


def _arrivals(look: CloserLook) -> list[tuple[LossArrival, ...]]:
    return [record.arrivals for record in look.records]


def _is_summed(arrival: LossArrival, divisor: int) -> bool:
    if arrival.reduction != "sum" or arrival.weight is None:
        return False
    return abs(arrival.weight * divisor - arrival.num_items) <= _SUMMED * arrival.num_items
