"""The check ``replica-drift``."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, REPLICA_RECORDS, TWO_RANKS
from scaleproof.checks.replicas import KIND_WORDS, Compared, Drift, RankState, compare_states
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import Moment, ProcessRecord, SnapshotRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Run, Study

_REPLICATED_KINDS = (TensorKind.PARAMETER, TensorKind.OPTIMIZER)
"""Of a script: its buffers may differ between steps, and are buffer-drift's."""


@final
class ReplicaDriftMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``moments``: of each run, in order, those at which two or more ranks could be compared.

    ``missing``: state records that a rank lacks and another has. ``left_out``: why a run's ranks
    hold no replicas.
    """

    is_script: bool
    moments: tuple[Compared, ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDrift(AbstractCheck[ReplicaDriftMeasurement]):
    """Ranks that must hold the same model do not.

    What it looks for
        Parameters or optimizer state that differ between ranks although each keeps a replica: of
        a recipe, at the end of an epoch, and buffers too; of a script, before the first step,
        after the first steps and some later ones, and at the end, together with the modules that
        run beside the trained ones: teachers, target networks, frozen encoders.

    Why it matters
        A forward past the DDP wrapper, a parameter added or unfrozen after wrapping, a weight
        that one rank changes on its own, or weights that were never sent from rank 0 in a loop of
        one's own: gradients then belong to other weights, each rank trains a model of its own on
        its part of the data, and what is saved is rank 0's. No error tells. A teacher or target
        network is in no wrapper: what one rank alone updates, or copies before rank 0's weights
        were sent, gives each rank other targets.

    How it decides
        Each rank records a digest of every tensor. Equal digests mean equal bytes. Where they
        differ, sketches (64 signed bucket sums per tensor) give the distance relative to the norm,
        to about a tenth; above `tolerance` it fails, up to there it is rounding, as reductions
        that are not deterministic leave it. It names the first moment, in it parameters before
        buffers before optimizer state, the rank that differs from most others, and the tensor
        that differs most. Sharded tensors are left out.

        Of a recipe, another set of tensors or another size fails too. Of a script, these mean that
        the ranks hold parts of one model, which have no replica; weights that differ before the
        first step and agree after it were sent from rank 0 in between; and ranks that differ and
        agree again later train apart and average now and then (local SGD), if on purpose is
        undecided. Modules that no optimizer trains are compared from the step on after which they
        first ran, in evenly spaced numbers, unless some rank has more of their class.

    What it can't see
        A fault that all ranks share: an average over the wrong number of ranks leaves them equal.
        Drift that is mended between two records. Hand-written tensor parallelism whose parts have
        the same names and sizes on all ranks looks like drift: name the check in the profile's
        `advisory` list. Modules made after the first step, or that ran on one rank only, and their
        buffers. Random-number state.

    How to fix it
        Parameters: call the wrapped module, not `.module`; wrap after the last parameter is added,
        unfrozen or converted; in a loop of your own, broadcast the weights once before the first
        step; leave every change of weights to the optimizer. Buffers: use `SyncBatchNorm`, or
        broadcast buffers before evaluating and saving. Optimizer state alone: give all ranks the
        same learning rate, loss scale and steps.

    References
        Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams (count
        sketch). Lin et al. (2020), Don't use large mini-batches, use local SGD, arXiv 1808.07217.
        pytorch/pytorch#104336, #13711, Lightning-AI/pytorch-lightning#20340.
    """

    name: ClassVar[str] = "replica-drift"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.REPLICAS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, TWO_RANKS, REPLICA_RECORDS)
    consequence_of: ClassVar[tuple[str, ...]] = (
        "unsynced-gradients",
        "schedule-drift",
        "early-stop-differs",
        "uneven-batches",
        "clipped-before-reduction",
        "unrestored-state",
    )

    tolerance: float = 1e-6

    def measure(self, study: Study) -> ReplicaDriftMeasurement:
        compare = _compare_script if study.is_script else _compare_recipe
        found = [compare(run) for run in study.runs_of(study.candidate)]
        return ReplicaDriftMeasurement(
            is_script=study.is_script,
            moments=tuple(moment for one in found for moment in one.moments),
            missing=tuple(gap for one in found for gap in one.missing),
            left_out=tuple(one.left_out for one in found if one.left_out),
        )

    def judge(self, measurement: ReplicaDriftMeasurement) -> Judgement:
        moments = measurement.moments
        if measurement.is_script:
            if (undecided := self._judge_averaging(moments)) is not None:
                return undecided
            moments = self._without_first_broadcast(moments)
        beyond = [d for moment in moments for d in moment.drifts if d.is_beyond(self.tolerance)]
        if beyond:
            return self._judge_drift(beyond, is_script=measurement.is_script)
        if measurement.missing:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"State records are missing: {listed(measurement.missing)}.",
                remedy="Run the study again to its end and copy the whole folder.",
            )
        if not moments:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence=measurement.left_out[0]
                if measurement.left_out
                else "No two ranks recorded their state at the same moment.",
            )
        return _judge_agreement(moments)

    def _judge_drift(self, beyond: list[Drift], *, is_script: bool) -> Judgement:
        first = min(beyond, key=_told_first)
        remedy = _REMEDIES[first.kind]
        kinds = {drift.kind for drift in beyond} - {first.kind}
        also = [KIND_WORDS[kind] for kind in TensorKind if kind in kinds]
        rest = f" (and {listed(also)} too)" if also else ""
        what = f"{KIND_WORDS[first.kind]} {first.tensor!r} {first.how(self.tolerance)}"
        if first.is_beside:
            remedy = _BESIDE_REMEDY
        elif is_script and first.order == 0 and first.kind is TensorKind.PARAMETER:
            remedy = _START_REMEDY
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{first.run}, rank {first.rank}, {first.when}: {what}{rest}.",
            remedy=remedy,
        )

    def _judge_averaging(self, moments: Sequence[Compared]) -> Judgement | None:
        """Undecided when ranks that differed after a step agree again later; else None."""
        for before, after in pairwise(moments):
            is_same_training = before.run == after.run and before.order > 0
            drifted, later = (self._trained_beyond(moment) for moment in (before, after))
            if is_same_training and drifted and not later:
                first = drifted[0]
                return Judgement(
                    outcome=Outcome.UNDECIDED,
                    sentence=f"{first.run}: {KIND_WORDS[first.kind]} {first.tensor!r} of rank "
                    f"{first.rank} {first.how(self.tolerance)} {first.when}, and all ranks agree "
                    f"after step {after.order:,}: they train apart and are made equal now and "
                    "then.",
                    remedy="If this is local SGD, name replica-drift in the profile's advisory "
                    "list; otherwise average the gradients at every step.",
                )
        return None

    def _trained_beyond(self, moment: Compared) -> list[Drift]:
        """A teacher that is an average of the trained model comes close to it by itself."""
        return [d for d in moment.drifts if d.is_beyond(self.tolerance) and not d.is_beside]

    def _without_first_broadcast(self, moments: Sequence[Compared]) -> tuple[Compared, ...]:
        """Without the moment before the first step, of runs whose ranks agree right after it."""
        kept: list[Compared] = []
        for _, of_run in groupby(moments, key=lambda moment: moment.run):
            start, *later = of_run
            is_sent_later = (
                start.order == 0
                and start.is_beyond(self.tolerance)
                and bool(later)
                and not self._trained_beyond(later[0])
            )
            kept += later if is_sent_later else [start, *later]
        return tuple(kept)


_KIND_ORDER = {TensorKind.PARAMETER: 0, TensorKind.BUFFER: 1, TensorKind.OPTIMIZER: 2}
_REMEDIES = {
    TensorKind.PARAMETER: "Call the wrapped module (never .module), wrap it after its last "
    "parameter is added or unfrozen, and change weights through the optimizer only.",
    TensorKind.BUFFER: "Use SyncBatchNorm, or broadcast the buffers before evaluating and saving.",
    TensorKind.OPTIMIZER: "Give all ranks the same learning rate, loss scale and number of steps.",
}
_START_REMEDY = (
    "Send rank 0's weights to all ranks once before the first step (torch.distributed.broadcast of "
    "every parameter), or wrap the model in DistributedDataParallel, which does."
)
_BESIDE_REMEDY = (
    "No optimizer trains this module and no wrapper sends it: make it from the model after rank "
    "0's weights were sent, change it on all ranks alike, or broadcast rank 0's."
)


def _told_first(drift: Drift) -> tuple[int, int, bool, str]:
    return drift.order, _KIND_ORDER[drift.kind], drift.is_beside, drift.run


def _judge_agreement(moments: Sequence[Compared]) -> Judgement:
    num_not_finite = sum(moment.num_not_finite for moment in moments)
    if num_not_finite:
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=f"{counted(num_not_finite, 'tensor')} differ between ranks and are not "
            "finite on any of them: they have no distance.",
            remedy="Mend the values that are not finite first (see non-finite).",
        )
    num_tensors = sum(moment.num_tensors for moment in moments)
    num_unequal = sum(moment.num_unequal for moment in moments)
    drifts = [drift for moment in moments for drift in moment.drifts]
    if drifts:
        most = max(drifts, key=lambda d: d.distance or 0.0)
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"Replicas agree up to rounding: {num_unequal} of "
            f"{counted(num_tensors, 'comparison')} are unequal, at most "
            f"{most.distance or 0.0:.1e} of the norm ({most.kind} {most.tensor!r}).",
        )
    return Judgement(
        outcome=Outcome.PASS,
        sentence=f"Replicas agree byte for byte ({counted(num_tensors, 'comparison')} of tensors).",
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _RunComparison:
    moments: tuple[Compared, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: str = ""


def _compare_recipe(run: Run) -> _RunComparison:
    by_epoch: dict[int, list[RankState]] = {}
    for rank in run.ranks:
        for record in rank.states:
            if record.replicated:
                epochs_done = record.epochs_done
                when = f"after epoch {epochs_done}" if epochs_done else "before training"
                state = RankState(rank=rank, record=record, when=when)
                by_epoch.setdefault(epochs_done, []).append(state)
    if not by_epoch:
        return _RunComparison(left_out="The training state is sharded: no rank holds a replica.")
    moments: list[Compared] = []
    missing: list[str] = []
    for epochs_done, states in sorted(by_epoch.items()):
        present = {state.rank.rank for state in states}
        missing += [
            f"{run.name}, rank {rank.rank}, after epoch {epochs_done}"
            for rank in run.ranks
            if rank.rank not in present
        ]
        moments.append(compare_states(run.name, epochs_done, states, only_shared=False))
    return _RunComparison(moments=tuple(moments), missing=tuple(missing))


def _compare_script(run: Run) -> _RunComparison:
    if (left_out := _why_no_replicas(run)) != "":
        return _RunComparison(left_out=left_out)
    moments = [
        compare_states(run.name, order, states, only_shared=True)
        for order, states in _script_moments(run)
    ]
    ended = {rank.rank for rank in run.ranks for r in rank.of(SnapshotRecord) if _is_end(r)}
    missing = [
        f"{run.name}, rank {rank.rank}, at the end" for rank in run.ranks if rank.rank not in ended
    ]
    return _RunComparison(moments=tuple(moments), missing=tuple(missing))


def _is_end(record: SnapshotRecord) -> bool:
    return record.moment is Moment.END


def _script_moments(run: Run) -> Iterator[tuple[int, list[RankState]]]:
    """The moments that two ranks or more recorded, in order, with the steps done then. The end is
    one moment, however many steps each rank did until then."""
    by_moment: dict[tuple[bool, int], dict[int, RankState]] = {}
    num_steps = 0
    for rank in run.ranks:
        for record in rank.of(SnapshotRecord):
            if record.moment is Moment.EVALUATION:  # weights may be swapped for averaged ones
                continue
            num_steps = max(num_steps, record.steps_done)
            key = (True, 0) if _is_end(record) else (False, record.steps_done)
            state = RankState(
                rank=rank, record=record, when=_words(record), kinds=_REPLICATED_KINDS
            )
            by_moment.setdefault(key, {})[rank.rank] = state  # of two at one moment, the later
    for is_end, steps_done in sorted(by_moment):
        states = list(by_moment[is_end, steps_done].values())
        left_out = _not_on_all_ranks(states)
        if len(states) > 1:
            order = num_steps if is_end else steps_done
            yield order, [replace(state, left_out=left_out) for state in states]


def _not_on_all_ranks(states: Sequence[RankState]) -> tuple[str, ...]:
    """What the names of modules that no optimizer trains begin with, of those classes of which
    some ranks have more: which belongs to which can't be told then."""
    numbers = [Counter(label.partition(" (")[0] for label in state.beside) for state in states]
    labels = {label for state in states for label in state.beside}
    return tuple(
        sorted(
            label
            for label in labels
            if len({of_rank[label.partition(" (")[0]] for of_rank in numbers}) > 1
        )
    )


def _words(record: SnapshotRecord) -> str:
    if record.moment is Moment.START:
        return "before the first step"
    after = f"after step {record.steps_done:,}"
    return f"at the end ({after})" if _is_end(record) else after


def _why_no_replicas(run: Run) -> str:
    """Empty when the ranks hold replicas, in whole or in part."""
    processes = [process for rank in run.ranks for process in rank.of(ProcessRecord)]
    sizes = [_parameter_sizes(rank) for rank in run.ranks]
    is_sharded = any(process.parallelism == "fsdp1" for process in processes)
    if is_sharded or not any(sizes):
        return "The parameters are sharded: no rank holds a replica."
    first, *others = sizes
    for other in others:
        has_own_names = bool(first.keys() - other.keys()) and bool(other.keys() - first.keys())
        shared = first.keys() & other.keys()
        if has_own_names or any(first[name] != other[name] for name in shared):
            return "Each rank holds a part of the model of its own, no replica."
    return ""


def _parameter_sizes(rank: Rank) -> dict[str, int]:
    return {
        tensor.name: tensor.numel
        for record in rank.of(SnapshotRecord)
        for tensor in record.tensors
        if tensor.kind is TensorKind.PARAMETER and not tensor.name.startswith(record.beside)
    }
