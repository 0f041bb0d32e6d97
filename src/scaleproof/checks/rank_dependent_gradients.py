"""The check ``rank-dependent-gradients``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.closer_looks import CloserLook, closer_looks
from scaleproof.checks.gradient_weights import has_weight
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, TWO_RANKS
from scaleproof.checks.relations import Relation, relation_of
from scaleproof.checks.replayed import compared_steps
from scaleproof.checks.wording import counted, percent
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run, Study

_TOLERANCE = 0.01
"""Of weights and factors, as in batch-coupled-operation."""

LAST_RANK = Need(
    text="a replay of the last rank's items alone, which is made when the ranks' gradients don't "
    "explain that of one process",
    kind="structure",
    is_met=lambda study: any(
        "last-rank" in replays_of(run) for run in study.runs_of(study.candidate)
    ),
)


def is_unexplained(study: Study) -> bool:
    """Whether some replayed gradient is no weighted sum of the ranks' own."""
    return any(
        relation_of(step, _TOLERANCE) is Relation.COUPLED
        for run in study.runs_of(study.candidate)
        for step in compared_steps(run)
    )


@final
class AloneStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the last rank, and the same step on one process with that rank's items.

    ``ratio``: the multiple of the replayed gradient that comes closest to the rank's own; ``rest``:
    the share of the latter that it leaves over. ``worst``: the tensor with the largest gap;
    ``tensor_rest``: the largest share of a single tensor, of those whose gap weighs.
    """

    run: str
    rank: int
    where: str
    backward_where: str
    step: int
    ratio: float
    rest: float
    worst: str
    tensor_rest: float
    is_random: bool


@final
class RankDependentMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    steps: tuple[AloneStep, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankDependentGradients(AbstractCheck[RankDependentMeasurement]):
    """A rank computes another gradient on its items than rank 0 would.

    What it looks for
        Ranks that run different code, or on different inputs than were handed out: a term of the
        loss behind `if rank == 0`, inputs normalised on one rank only, class weights or a
        temperature of each rank's own, another mode (train, eval) or precision, state that only
        one rank has.

    Why it matters
        The ranks share their gradients and agree, so that nothing diverges: they train on the
        average of two different objectives.

    How it decides
        Where the gradient of one process is no weighted sum of the ranks' own, `scaleproof check`
        replays the last rank's items alone, from the same weights, in a process that is rank 0.
        What that gradient, times one factor, leaves over of the rank's own must stay below
        `max_rest`, and of any one tensor that weighs below `max_tensor_rest`. It fails when it
        does not at `min_steps` steps and `min_share` of those compared. When the rank's gradient
        is reproduced, an operation couples the items of a batch instead (see
        batch-coupled-operation).

    What it can't see
        Ranks in between: the last one is looked at. Differences that re-weighting explains, which
        misweighted-gradients has. Steps in which the script draws random numbers that can't be
        drawn again. State of the script's own that is neither parameter nor buffer.

    How to fix it
        Let all ranks run the same code on what they are given, and seed or broadcast what must be
        the same. Keep `if rank == 0` to logging and checkpoints.

    References
        pytorch/pytorch#41101 (a branch that only some ranks run is averaged with zeros).
    """

    name: ClassVar[str] = "rank-dependent-gradients"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, LAST_RANK)
    consequence_of: ClassVar[tuple[str, ...]] = ("unsynced-gradients", "replica-drift")

    max_rest: float = 0.02
    """Sound scripts reproduce theirs to 1e-6, in 16 bits to 5e-3."""
    max_tensor_rest: float = 0.1
    min_steps: int = 2
    min_share: float = 0.25

    def measure(self, study: Study) -> RankDependentMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        return RankDependentMeasurement(steps=tuple(s for run in runs for s in _steps_of(run)))

    def judge(self, measurement: RankDependentMeasurement) -> Judgement:
        known = [step for step in measurement.steps if not step.is_random]
        if not known:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="At no replayed step can it be told whether the last rank's gradient is "
                "that of its items: the script draws random numbers of its own.",
                remedy="Seed what is drawn, alike on all ranks, or draw it with torch item by "
                "item; then check again.",
            )
        off = [step for step in known if self._is_off(step)]
        if len(off) >= self.min_steps and len(off) >= self.min_share * len(known):
            return _judge_off(off, known)
        if off:
            first = off[0]
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_where(first)} is not reproduced from its items on one process "
                f"({percent(first.rest, 0)} is left over), at {len(off)} of "
                f"{counted(len(known), 'step')}: too few to tell.",
                remedy="Check more steps: --steps 0 runs the script to its end.",
            )
        worst = max(step.rest for step in known)
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"The last rank's gradients are those of its items on one process (all but "
            f"{worst:.1e}), at {counted(len(known), 'step')}.",
        )

    def _is_off(self, step: AloneStep) -> bool:
        return step.rest > self.max_rest or step.tensor_rest > self.max_tensor_rest


_LEAST_GAP = 5e-3
"""Of a tensor, as a share of the whole gradient: smaller ones are rounding in 16 bits."""


def _judge_off(off: Sequence[AloneStep], known: Sequence[AloneStep]) -> Judgement:
    first = off[0]
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{_where(first)} is not what the same script computes on the same items as rank "
        f"0: {percent(first.rest)} of it is left over, most in tensor {first.worst!r}, at "
        f"{len(off)} of {counted(len(known), 'compared step')}. Ranks run different code, or on "
        "other inputs than they were handed.",
        remedy="Look for what depends on the rank between the loader and backward (if rank == 0, "
        "seeds, modes, statistics of the rank's own), and do it alike on all ranks.",
    )


def _where(step: AloneStep) -> str:
    backward = f", the backward at {step.backward_where}" if step.backward_where else ""
    return f"{step.run}, step {step.step}, {step.where}{backward}: the gradient of rank {step.rank}"


def _steps_of(run: Run) -> Iterator[AloneStep]:
    replay = replays_of(run).get("last-rank")
    if replay is None:
        return
    alone = {
        (look.probe.optimizer, look.probe.step): look
        for look in closer_looks(replay.run)
        if look.probe.step <= replay.end.num_steps
    }
    for look in closer_looks(run):
        one = alone.get((look.probe.optimizer, look.probe.step))
        if one is not None:
            found = _compare(look, one)
            if found is not None:
                yield found


def _compare(look: CloserLook, alone: CloserLook) -> AloneStep | None:
    """None where the two have no gradient in common."""
    weighs = dict(zip(look.probe.names, has_weight(look.probe), strict=True))
    names = [name for name in look.probe.names if weighs[name] and name in alone.probe.names]
    if not names:
        return None
    own = np.stack([look.probe.local[-1, look.probe.names.index(name)] for name in names])
    other = np.stack([alone.probe.local[0, alone.probe.names.index(name)] for name in names])
    is_known = np.isfinite(own) & np.isfinite(other)
    own, other = np.where(is_known, own, 0.0), np.where(is_known, other, 0.0)
    size, other_size = float(np.linalg.norm(own)), float(np.linalg.norm(other))
    if not (size > 0 and other_size > 0):
        return None
    ratio = float((own * other).sum()) / other_size**2
    gaps = np.linalg.norm(own - ratio * other, axis=1)
    sizes = np.linalg.norm(own, axis=1)
    weighty = (gaps > _LEAST_GAP * size) & (sizes > 0)
    return AloneStep(
        run=look.probe.run,
        rank=look.probe.ranks[-1],
        where=look.probe.where,
        backward_where=look.records[-1].backward_where,
        step=look.probe.step,
        ratio=ratio,
        rest=float(np.linalg.norm(gaps)) / size,
        worst=names[int(np.argmax(gaps))],
        tensor_rest=float(np.max(gaps[weighty] / sizes[weighty])) if weighty.any() else 0.0,
        is_random=bool(look.records[-1].drawn or alone.records[0].drawn),
    )
