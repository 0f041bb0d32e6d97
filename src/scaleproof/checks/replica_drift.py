"""The check ``replica-drift``."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, STATES, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.errors import EvidenceError
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import StateRecord, TensorKind, TensorState
from scaleproof.evidence.study import Run, Study

TensorKey = tuple[TensorKind, str]


@final
class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is not the same on ``rank`` as on ``reference_rank``.

    ``distance`` is the Euclidean distance over the larger norm, estimated from the sketches; None
    when it has none: ``difference`` then says what is different (size, NaN, one of them missing).
    """

    run: str
    epochs_done: int
    rank: int
    reference_rank: int
    kind: TensorKind
    tensor: str
    distance: float | None
    difference: str


@final
class ReplicaDriftMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``drifts``: of each run, kind of tensor and epoch, the largest one; counts are over all."""

    num_tensors: int
    """Tensors compared, over runs, epochs and ranks."""
    num_unequal: int
    num_not_finite: int
    """Of the unequal ones, those with a NaN or an infinity on both sides: they have no distance."""
    drifts: tuple[Drift, ...]
    missing: tuple[str, ...]
    """State records that a rank lacks and another has."""
    is_replicated: bool
    """Whether any record says that the ranks must hold the same bytes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDrift(AbstractCheck[ReplicaDriftMeasurement]):
    """Ranks that must hold the same model do not.

    What it looks for
        Parameters, buffers or optimizer state that differ between ranks at the end of an epoch,
        although the strategy keeps a replica on every rank.

    Why it matters
        A forward past the DDP wrapper, a parameter added or unfrozen after wrapping, a weight
        that one rank changes on its own: gradients are then no longer shared, each rank trains a
        model of its own on its part of the data, and what is saved is rank 0's. No error tells.

    How it decides
        Each rank records a digest of every tensor before training and after each epoch. Equal
        digests mean equal bytes. Where they differ, sketches (64 signed bucket sums per tensor)
        give the distance relative to the norm, to about a tenth; above `tolerance` it fails, up
        to there it is rounding, as reductions that are not deterministic leave it. Another set
        of tensors, another size, or values that are not finite on one rank only fail too. It names
        the first epoch, in it parameters before buffers before optimizer state, the rank that
        differs from most others, and the tensor that differs most. Records of sharded state are
        left out.

    What it can't see
        A fault that all ranks share: an average over the wrong number of ranks leaves them equal.
        Drift inside an epoch that is mended before its end. Random-number state.

    How to fix it
        Parameters: call the wrapped module, not `.module`; wrap after the last parameter is added,
        unfrozen or converted; leave every change of weights to the optimizer. Buffers: use
        `SyncBatchNorm`, or broadcast buffers before evaluating and saving. Optimizer state alone:
        give all ranks the same learning rate, loss scale and steps.

    References
        Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams (count
        sketch). pytorch/pytorch#104336, #13711, Lightning-AI/pytorch-lightning#20340.
    """

    name: ClassVar[str] = "replica-drift"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.REPLICAS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, TWO_RANKS, STATES)

    tolerance: float = 1e-6

    def measure(self, study: Study) -> ReplicaDriftMeasurement:
        comparisons = [_compare_run(run) for run in study.runs_of(study.candidate)]
        return ReplicaDriftMeasurement(
            num_tensors=sum(c.num_tensors for c in comparisons),
            num_unequal=sum(c.num_unequal for c in comparisons),
            num_not_finite=sum(c.num_not_finite for c in comparisons),
            drifts=tuple(drift for c in comparisons for drift in c.drifts),
            missing=tuple(gap for c in comparisons for gap in c.missing),
            is_replicated=any(c.is_replicated for c in comparisons),
        )

    def judge(self, measurement: ReplicaDriftMeasurement) -> Judgement:
        beyond = [d for d in measurement.drifts if self._is_beyond(d)]
        if beyond:
            first = min(beyond, key=_told_first)
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=self._sentence(first, beyond),
                remedy=_REMEDIES[first.kind],
            )
        if measurement.missing:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"State records are missing: {listed(measurement.missing)}.",
                remedy="Run the study again to its end and copy the whole folder.",
            )
        if not measurement.is_replicated:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="The training state is sharded: no rank holds a replica.",
            )
        if measurement.num_not_finite:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{counted(measurement.num_not_finite, 'tensor')} differ between ranks "
                "and are not finite on any of them: they have no distance.",
                remedy="Mend the values that are not finite first (see non-finite).",
            )
        if measurement.drifts:
            most = max(measurement.drifts, key=lambda d: d.distance or 0.0)
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"Replicas agree up to rounding: {measurement.num_unequal} of "
                f"{counted(measurement.num_tensors, 'comparison')} are unequal, at most "
                f"{most.distance or 0.0:.1e} of the norm ({most.kind} {most.tensor!r}).",
            )
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"Replicas agree byte for byte "
            f"({counted(measurement.num_tensors, 'comparison')} of tensors).",
        )

    def _is_beyond(self, drift: Drift) -> bool:
        return drift.distance is None or drift.distance > self.tolerance

    def _sentence(self, first: Drift, beyond: list[Drift]) -> str:
        when = "before training" if first.epochs_done == 0 else f"after epoch {first.epochs_done}"
        if first.distance is None:
            how = first.difference
        else:
            how = (
                f"differs from rank {first.reference_rank} by {first.distance:.1e} of its norm "
                f"(tolerance {self.tolerance:.0e})"
            )
        kinds = {drift.kind for drift in beyond} - {first.kind}
        also = [_KIND_WORDS[kind] for kind in TensorKind if kind in kinds]
        rest = f" (and {listed(also)} too)" if also else ""
        what = f"{_KIND_WORDS[first.kind]} {first.tensor!r}"
        return f"{first.run}, rank {first.rank}, {when}: {what} {how}{rest}."


_KIND_ORDER = {TensorKind.PARAMETER: 0, TensorKind.BUFFER: 1, TensorKind.OPTIMIZER: 2}
_KIND_WORDS = {
    TensorKind.PARAMETER: "parameter",
    TensorKind.BUFFER: "buffer",
    TensorKind.OPTIMIZER: "optimizer state",
}
_REMEDIES = {
    TensorKind.PARAMETER: "Call the wrapped module (never .module), wrap it after its last "
    "parameter is added or unfrozen, and change weights through the optimizer only.",
    TensorKind.BUFFER: "Use SyncBatchNorm, or broadcast the buffers before evaluating and saving.",
    TensorKind.OPTIMIZER: "Give all ranks the same learning rate, loss scale and number of steps.",
}


def _told_first(drift: Drift) -> tuple[int, int, str]:
    return drift.epochs_done, _KIND_ORDER[drift.kind], drift.run


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _RunComparison:
    num_tensors: int
    num_unequal: int
    num_not_finite: int
    drifts: list[Drift]
    missing: list[str]
    is_replicated: bool


@final
@dataclass(frozen=True)
class _RankState:
    """The state of one rank after one epoch, with its sketches read once, when needed."""

    rank: Rank
    record: StateRecord

    @cached_property
    def index_by_key(self) -> dict[TensorKey, int]:
        table = {(t.kind, t.name): index for index, t in enumerate(self.record.tensors)}
        if len(table) != len(self.record.tensors):
            raise EvidenceError(
                f"{self.rank.folder} lists a tensor twice in its state after epoch "
                f"{self.record.epochs_done}. Restore the folder from where the study was made."
            )
        return table

    @cached_property
    def sketches(self) -> NDArray[np.float64]:
        return self.rank.sketches(self.record)

    def tensor(self, key: TensorKey) -> TensorState | None:
        index = self.index_by_key.get(key)
        return None if index is None else self.record.tensors[index]

    def digest(self, key: TensorKey) -> str | None:
        tensor = self.tensor(key)
        return None if tensor is None else tensor.digest


def _compare_run(run: Run) -> _RunComparison:
    by_epoch: dict[int, list[_RankState]] = {}
    for rank in run.ranks:
        for record in rank.states:
            if record.replicated:
                state = _RankState(rank=rank, record=record)
                by_epoch.setdefault(record.epochs_done, []).append(state)
    missing: list[str] = []
    drifts: list[Drift] = []
    num_tensors = num_unequal = num_not_finite = 0
    for epochs_done, states in sorted(by_epoch.items()):
        present = {state.rank.rank for state in states}
        missing += [
            f"{run.name}, rank {rank.rank}, after epoch {epochs_done}"
            for rank in run.ranks
            if rank.rank not in present
        ]
        num_tensors += sum(len(state.record.tensors) for state in states[1:])
        found = list(_compare_states(run.name, states))
        comparable = [drift for drift in found if drift is not None]
        num_unequal += len(found)
        num_not_finite += len(found) - len(comparable)
        for kind in TensorKind:
            of_kind = [drift for drift in comparable if drift.kind is kind]
            if of_kind:
                drifts.append(max(of_kind, key=_severity))
    return _RunComparison(
        num_tensors=num_tensors,
        num_unequal=num_unequal,
        num_not_finite=num_not_finite,
        drifts=drifts,
        missing=missing,
        is_replicated=bool(by_epoch),
    )


def _severity(drift: Drift) -> float:
    return float("inf") if drift.distance is None else drift.distance


def _compare_states(run: str, states: list[_RankState]) -> Iterator[Drift | None]:
    """Every tensor of every rank that differs from what most ranks hold; None where there is no
    finite number on either side to compare."""
    for key in sorted({key for state in states for key in state.index_by_key}):
        digests = Counter(state.digest(key) for state in states)
        if len(digests) == 1:
            continue
        usual, _ = digests.most_common(1)[0]  # of equally common ones, the lowest rank's
        reference = next(state for state in states if state.digest(key) == usual)
        for state in states:
            if state.digest(key) != usual:
                yield _drift(run, key, reference, state)


def _drift(run: str, key: TensorKey, reference: _RankState, state: _RankState) -> Drift | None:
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
        epochs_done=state.record.epochs_done,
        rank=state.rank.rank,
        reference_rank=reference.rank.rank,
        kind=key[0],
        tensor=key[1],
        distance=distance,
        difference=difference,
    )
