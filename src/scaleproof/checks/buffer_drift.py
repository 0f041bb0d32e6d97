"""The check ``buffer-drift``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, SNAPSHOTS, TWO_RANKS
from scaleproof.checks.replicas import Compared, Drift, RankState, compare_states
from scaleproof.checks.wording import counted
from scaleproof.evidence.observations import Moment, PassRecord, ProcessRecord, SnapshotRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Run, Study

_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@final
class BuffersCompared(msgspec.Struct, frozen=True, kw_only=True):
    """The buffers of the ranks at one moment, and what would have made them equal.

    ``is_broadcast``: DDP sent rank 0's along with the forward that came next; None: not known.
    ``are_used``: the ranks went on with their own, each for itself.
    """

    compared: Compared
    is_end: bool
    is_broadcast: bool | None
    are_used: bool


@final
class BufferDriftMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_buffers``: the most that any rank has."""

    num_buffers: int
    moments: tuple[BuffersCompared, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BufferDrift(AbstractCheck[BufferDriftMeasurement]):
    """Ranks evaluate or save with buffers of their own, such as BatchNorm's running statistics.

    What it looks for
        Buffers - BatchNorm's running mean and variance, counters, codebooks, queues - that differ
        between ranks when an evaluation begins, or at the end of training, and that nothing makes
        equal.

    Why it matters
        Gradients are averaged over ranks, buffers are not: each rank's running statistics come
        from its own part of the data. If ranks evaluate with them, the metric is one of N
        different models, of which only rank 0's is saved. A codebook or a queue that differs
        makes training itself different on each rank.

    How it decides
        From digests of every buffer at the first forward of an evaluation and at the end; where
        they differ, sketches give the distance relative to the norm. Above `tolerance` it fails,
        unless DDP sends rank 0's buffers along with the forward: then they may differ between
        forwards, and at the end, as the broadcast comes with the next one. An evaluation past the
        wrapper (`.module`) gets no such broadcast. Where one rank alone evaluates, its statistics
        are the ones that are saved and used, as with DDP: differences of running statistics
        then pass. Where the records don't say whether DDP broadcasts, it is undecided.

    What it can't see
        Whether rank 0's statistics stand for all data: broadcasting does not average them.
        Buffers that only some ranks have, or that are of another size on each (caches).
        Evaluations without a DataLoader, when DDP broadcasts.

    How to fix it
        `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)` before wrapping; or evaluate through
        the DDP module with `broadcast_buffers=True`; or broadcast, or average, the buffers before
        each evaluation and before saving.

    References
        pytorch/pytorch#13711, open-mmlab/mmdetection#4582, huggingface/pytorch-image-models#110.
        torch.nn.parallel.DistributedDataParallel, `broadcast_buffers`.
    """

    name: ClassVar[str] = "buffer-drift"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.REPLICAS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, SNAPSHOTS)
    consequence_of: ClassVar[tuple[str, ...]] = (
        "unsynced-gradients",
        "replica-drift",
        "early-stop-differs",
    )

    tolerance: float = 1e-6

    def measure(self, study: Study) -> BufferDriftMeasurement:
        runs = study.runs_of(study.candidate)
        numbers = [
            sum(tensor.kind is TensorKind.BUFFER for tensor in record.tensors)
            for run in runs
            for rank in run.ranks
            for record in rank.of(SnapshotRecord)
        ]
        return BufferDriftMeasurement(
            num_buffers=max(numbers, default=0),
            moments=tuple(moment for run in runs for moment in _moments(run)),
        )

    def judge(self, measurement: BufferDriftMeasurement) -> Judgement:
        if measurement.num_buffers == 0:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE, sentence="The model has no buffers to drift apart."
            )
        if not measurement.moments:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No two ranks recorded their buffers at the same evaluation, or at the "
                "end.",
                remedy="Observe the script again to its end.",
            )
        unclear: list[Drift] = []
        for moment in measurement.moments:
            drifts = [d for d in moment.compared.drifts if d.is_beyond(self.tolerance)]
            if not drifts or moment.is_broadcast or _is_spare(moment, drifts):
                continue
            if moment.is_broadcast is not None:
                return self._fail(moment, drifts[0])
            unclear += drifts
        if unclear:
            first = unclear[0]
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{first.run}, rank {first.rank}, {first.when}: buffer {first.tensor!r} "
                f"{first.how(self.tolerance)}, and whether DDP sends rank 0's along was not seen.",
                remedy="Evaluate through the DDP module, or broadcast the buffers first.",
            )
        return Judgement(outcome=Outcome.PASS, sentence=self._pass_sentence(measurement))

    def _fail(self, moment: BuffersCompared, first: Drift) -> Judgement:
        num_others = moment.compared.num_unequal - 1
        others = f", as do {counted(num_others, 'other')}" if num_others else ""
        use = (
            "and nothing makes them equal before they are saved"
            if moment.is_end
            else "and each rank evaluates with its own"
        )
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{first.run}, rank {first.rank}, {first.when}: buffer {first.tensor!r} "
            f"{first.how(self.tolerance)}{others}, {use}.",
            remedy="Use SyncBatchNorm, evaluate through the DDP module (never .module) with "
            "broadcast_buffers=True, or broadcast the buffers before evaluating and saving.",
        )

    def _pass_sentence(self, measurement: BufferDriftMeasurement) -> str:
        num = counted(len(measurement.moments), "moment")
        drifting = [m for m in measurement.moments if m.compared.is_beyond(self.tolerance)]
        if not drifting:
            return f"All ranks hold the same buffers when they evaluate and at the end ({num})."
        if all(moment.is_broadcast for moment in drifting):
            return "Buffers differ between forwards, and DDP sends rank 0's along with each."
        return (
            "Running statistics differ between ranks, and one rank alone evaluates, with the ones "
            "that are its own, as DDP's would be."
        )


def _is_spare(moment: BuffersCompared, drifts: Sequence[Drift]) -> bool:
    """Nobody uses the ranks' differing running statistics."""
    is_statistics = all(drift.tensor.endswith(_RUNNING_STATISTICS) for drift in drifts)
    return is_statistics and not moment.are_used


def _moments(run: Run) -> Iterator[BuffersCompared]:
    """Evaluations that two ranks or more began after the same number of steps, and the end."""
    by_steps: dict[int, list[RankState]] = {}
    at_end: dict[int, RankState] = {}
    through_wrapper: dict[int, set[bool | None]] = {}
    num_steps = 0
    for rank in run.ranks:
        for record in rank.of(SnapshotRecord):
            state = RankState(
                rank=rank, record=record, when=_words(record), kinds=(TensorKind.BUFFER,)
            )
            if record.moment is Moment.EVALUATION:
                by_steps.setdefault(record.steps_done, []).append(state)
                through_wrapper.setdefault(record.steps_done, set()).add(record.through_wrapper)
            elif record.moment is Moment.END:
                at_end[rank.rank] = state  # of two, the later one
                num_steps = max(num_steps, record.steps_done)
    is_broadcast = _does_ddp_broadcast(run)
    evaluation_steps = {rank.rank: _evaluation_steps(rank) for rank in run.ranks}
    for steps_done, states in sorted(by_steps.items()):
        # A forward without gradients in the middle of training (a teacher's) is no evaluation:
        # with DDP, the broadcast comes before the forward that matters.
        is_evaluation = all(steps_done in evaluation_steps[state.rank.rank] for state in states)
        if len(states) > 1 and (is_evaluation or is_broadcast is False):
            yield BuffersCompared(
                compared=compare_states(run.name, steps_done, states, only_shared=True),
                is_end=False,
                is_broadcast=False if False in through_wrapper[steps_done] else is_broadcast,
                are_used=True,
            )
    if len(at_end) > 1:
        yield BuffersCompared(
            compared=compare_states(run.name, num_steps, list(at_end.values()), only_shared=True),
            is_end=True,
            is_broadcast=is_broadcast,
            are_used=_num_evaluating(run) != 1,
        )


def _words(record: SnapshotRecord) -> str:
    when = "at the end" if record.moment is Moment.END else "evaluating"
    return f"{when} after step {record.steps_done:,}"


def _does_ddp_broadcast(run: Run) -> bool | None:
    """Whether rank 0's buffers come along with each forward; None: not known."""
    processes = [process for rank in run.ranks for process in rank.of(ProcessRecord)]
    if not any(process.parallelism == "ddp" for process in processes):
        return False
    says = {process.broadcasts_buffers for process in processes}
    return None if None in says else says == {True}


def _evaluation_steps(rank: Rank) -> set[int]:
    """Steps done before each of its evaluations."""
    return {record.first_step for record in rank.of(PassRecord) if record.use == "evaluation"}


def _num_evaluating(run: Run) -> int:
    """Ranks that evaluate: by their loaders, where there are any for it."""
    by_loader = sum(bool(_evaluation_steps(rank)) for rank in run.ranks)
    return by_loader or sum(
        any(record.moment is Moment.EVALUATION for record in rank.of(SnapshotRecord))
        for rank in run.ranks
    )
