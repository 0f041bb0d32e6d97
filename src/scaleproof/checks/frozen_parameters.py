"""The check ``frozen-parameters``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.gradient_weights import NOISE_SHARE
from scaleproof.checks.needs import CANDIDATE_RUN, SCRIPT, STEPS
from scaleproof.checks.probes import owned_tensors, seen_gradients, where_of
from scaleproof.checks.wording import counted, listed, percent
from scaleproof.evidence.observations import OptimizerRecord, SnapshotRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Run, Study

OPTIMIZERS = Need(
    text="records of what every rank's optimizers own",
    kind="evidence",
    is_met=lambda study: all(
        rank.of(OptimizerRecord) for run in study.runs_of(study.candidate) for rank in run.ranks
    ),
)


@final
class OptimizerReach(msgspec.Struct, frozen=True, kw_only=True):
    """What one optimizer of one rank did to what it owns. Names are of trainable parameters.

    ``num_steps``: its steps with a learning rate that is not 0. ``stuck``: had a gradient that is
    not zero, and the same bytes before and after ``num_steps`` or more steps. ``resting``: so too,
    in a parameter group with a learning rate of 0. ``idle``: never seen with a gradient, never seen
    to change. ``zero``: had gradients, and all were exactly 0, at ``num_zeros`` or more probed
    steps; with each one's share of the numbers in all trainable tensors. ``num_moved``: seen to
    change. ``unowned``: trainable, with a gradient, and in no optimizer at all; ``unowned_share``:
    of the numbers in all trainable tensors that have a gradient.
    """

    run: str
    rank: int
    optimizer: int
    where: str
    num_steps: int
    num_owned: int
    num_strangers: int
    num_moved: int
    stuck: tuple[str, ...]
    resting: tuple[str, ...]
    idle: tuple[str, ...]
    zero: dict[str, float]
    num_zeros: int
    unowned: tuple[str, ...]
    unowned_share: float


@final
class FrozenMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """One item for each optimizer of each rank."""

    optimizers: tuple[OptimizerReach, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenParameters(AbstractCheck[FrozenMeasurement]):
    """Parameters that are meant to be trained are not.

    What it looks for
        Parameters with `requires_grad` that get gradients and that no optimizer owns; optimizers
        none of whose parameters ever gets a gradient; parameters that have gradients, are owned,
        and never change; parameters whose gradients are exactly 0.

    Why it matters
        An optimizer built before `fully_shard`, before the model was made anew or before a head
        was added owns tensors that the model no longer uses, or not all that it does. The loss may
        fall all the same, by what the other parameters learn.

    How it decides
        At its first step and at the end each optimizer's parameters are listed, with those that
        belong to none; parameters are hashed before training, at some steps and at the end. It
        fails when parameters with a gradient belong to no optimizer (when these are more than
        `max_share` of what has a gradient, the script may train a part on purpose: undecided);
        when nothing that an optimizer owns ever had a gradient or changed; when a parameter with a
        gradient that is not zero has the same bytes before and after `min_steps` or more steps of
        its optimizer with a learning rate, unless that of its group is 0 at the first step and at
        the end, and another group's is not; and when one never gets a gradient on some ranks, and
        does on others. It fails, too, when every gradient of an optimizer was exactly 0 at all
        probed steps, `min_steps` or more, on all ranks: the loss does not change with what it
        trains. Where that is so of a part, of more than `max_share` of its numbers, it is
        undecided, and of less only counted: `0 * unused.sum()` is how scripts tell DDP of a branch
        that is not used, and an expert may be given nothing. Gradients of a millionth of the whole
        are rounding (a bias before a normalisation) and need not move anything. With fewer steps
        it is undecided.

    What it can't see
        Parameters with `requires_grad` off: they are frozen on purpose. When the
        learning rate of a parameter group after the first changes: it is known at the first step
        and at the end. Whether sharded parameters change. Unused branches: a parameter that
        never gets a gradient on any rank is only counted.

    How to fix it
        Build the optimizer last: after `fully_shard`, after the last layer is added, from the
        `parameters()` of the model that runs; add new parameters with `add_param_group`. Give
        parameters that are meant to stay `requires_grad_(False)`. Weights in 16 bits may be too
        coarse for the update: keep them in float32.

    References
        huggingface/accelerate#3256, #2665, pytorch/pytorch#149205.
    """

    name: ClassVar[str] = "frozen-parameters"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, STEPS, OPTIMIZERS)

    min_steps: int = 2
    """Steps with a learning rate: the first one alone may be a dry run."""
    max_share: float = 0.5
    """Of the numbers that have a gradient: who forgets most of the model does it on purpose."""

    def measure(self, study: Study) -> FrozenMeasurement:
        return FrozenMeasurement(
            optimizers=tuple(
                reach
                for run in study.runs_of(study.candidate)
                for rank in run.ranks
                for reach in _reaches(run, rank)
            )
        )

    def judge(self, measurement: FrozenMeasurement) -> Judgement:
        found = measurement.optimizers
        enough = [reach for reach in found if reach.num_steps >= self.min_steps]
        if foreign := [r for r in enough if len(r.idle) == r.num_owned > 0]:
            return _judge_foreign(foreign)
        zeros = _zero_on_all_ranks(enough, self.min_steps)
        if nothing := [r for r in zeros if r.num_owned == len(r.zero) + len(r.idle)]:
            return _judge_zero(nothing, Outcome.FAIL)
        if unowned := [r for r in found if r.unowned and r.unowned_share <= self.max_share]:
            return _judge_unowned(unowned, Outcome.FAIL)
        if stuck := [r for r in enough if r.stuck]:
            return _judge_stuck(stuck)
        if one_sided := _idle_on_some_ranks(enough):
            reach, names = one_sided
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{reach.run}, rank {reach.rank}: {counted(len(names), 'parameter')} of "
                f"{reach.where} ({listed(names)}) never got a gradient, and did on other ranks.",
                remedy="Share the gradients of all parameters, or use the same ones on all ranks.",
            )
        if unowned := [r for r in found if r.unowned]:
            return _judge_unowned(unowned, Outcome.UNDECIDED)
        if mostly := [r for r in zeros if sum(r.zero.values()) > self.max_share]:
            return _judge_zero(mostly, Outcome.UNDECIDED)
        if len(enough) < len(found):
            few = next(reach for reach in found if reach.num_steps < self.min_steps)
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{few.run}, rank {few.rank}: {few.where} made "
                f"{counted(few.num_steps, 'step')} with a learning rate above 0, too few to tell.",
                remedy=f"Train for {self.min_steps} or more steps.",
            )
        return _judge_sound(found, zeros)


def _judge_foreign(found: Sequence[OptimizerReach]) -> Judgement:
    first = found[0]
    strangers = ""
    if first.num_strangers:
        strangers = f" {first.num_strangers} are in no module that ran forward."
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{first.run}, rank {first.rank}: none of the "
        f"{counted(first.num_owned, 'parameter')} that {first.where} owns got a gradient or "
        f"changed in {counted(first.num_steps, 'step')}: it owns other tensors than the model "
        f"trains.{strangers}{_others(found)}",
        remedy="Build the optimizer last, from the parameters() of the model that runs: after "
        "fully_shard, and after the model is made.",
    )


def _judge_zero(found: Sequence[OptimizerReach], outcome: Outcome) -> Judgement:
    first = found[0]
    which = listed([repr(name) for name in first.zero])
    return Judgement(
        outcome=outcome,
        sentence=f"{first.run}, rank {first.rank}: the gradients of {len(first.zero)} of "
        f"{counted(first.num_owned, 'parameter')} of {first.where} ({which}) were exactly 0 at "
        f"each of {counted(first.num_zeros, 'probed step')}, on all ranks: the loss does not "
        f"change with them.{_others(found)}",
        remedy="Look at what the loss is made of: a softmax over one class, a rounding or an "
        "argmax on the way, a factor of 0, units that are always off, 16 bits that underflow. If "
        "they are meant to stay, requires_grad_(False).",
    )


def _judge_unowned(found: Sequence[OptimizerReach], outcome: Outcome) -> Judgement:
    first = found[0]
    names = listed([repr(name) for name in first.unowned])
    return Judgement(
        outcome=outcome,
        sentence=f"{first.run}, rank {first.rank}: {counted(len(first.unowned), 'parameter')} "
        f"({names}), {percent(first.unowned_share)} of the numbers that have a gradient, "
        f"{'belongs' if len(first.unowned) == 1 else 'belong'} to no optimizer; next to them, "
        f"{first.where} trains the rest.{_others(found)}",
        remedy="Give them to the optimizer, or, if they are meant to stay, requires_grad_(False).",
    )


def _judge_stuck(found: Sequence[OptimizerReach]) -> Judgement:
    first = found[0]
    names = listed([repr(name) for name in first.stuck])
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{first.run}, rank {first.rank}: {len(first.stuck)} of "
        f"{counted(first.num_owned, 'parameter')} of {first.where} ({names}) had a gradient and "
        f"never changed in {counted(first.num_steps, 'step')}.{_others(found)}",
        remedy="Look for what undoes or skips their update: weights in 16 bits that are too coarse "
        "for it, a copy that is stepped instead, a learning rate of 0 in their group. If they are "
        "meant to stay, requires_grad_(False).",
    )


def _judge_sound(found: Sequence[OptimizerReach], zeros: Sequence[OptimizerReach]) -> Judgement:
    first = found[0]
    idle = sorted({name for reach in found for name in reach.idle})
    unused = f" {counted(len(idle), 'parameter')} never got a gradient: {listed(idle)}, a branch"
    unused = f"{unused} that is not used." if idle else ""
    resting = sorted({name for reach in found for name in reach.resting})
    rests = f" At a learning rate of 0, {counted(len(resting), 'parameter')} never changed: "
    rests = f"{rests}{listed(resting)}." if resting else ""
    zero = sorted({name for reach in zeros for name in reach.zero})
    dead = f" The gradient of {counted(len(zero), 'parameter')} was exactly 0 at every probed step:"
    dead = f"{dead} {listed(zero)}, which the loss did not change with." if zero else ""
    of_first = [r for r in found if (r.run, r.rank) == (first.run, first.rank)]
    num_dead = sum(len(r.zero) for r in zeros if (r.run, r.rank) == (first.run, first.rank))
    num_left = sum(r.num_owned - len(r.idle) - len(r.resting) for r in of_first) - num_dead
    moved = "got gradients and changed"
    if all(reach.num_moved == 0 for reach in found):
        moved = "got gradients (whether they changed is not recorded)"
    return Judgement(
        outcome=Outcome.PASS,
        sentence=f"{counted(num_left, 'trainable parameter')} {moved}, and no "
        f"parameter with a gradient is without an optimizer.{rests}{unused}{dead}",
    )


def _others(found: Sequence[OptimizerReach]) -> str:
    others = len({(reach.run, reach.rank) for reach in found}) - 1
    return f" The same on {counted(others, 'other rank')} over all runs." if others else ""


def _zero_on_all_ranks(found: Sequence[OptimizerReach], min_steps: int) -> list[OptimizerReach]:
    """With only those of ``zero`` that are so on every rank, at ``min_steps`` probed steps."""
    zeros: list[OptimizerReach] = []
    for reach in found:
        key = reach.run, reach.optimizer
        same = [r for r in found if (r.run, r.optimizer) == key]
        zero = {n: share for n, share in reach.zero.items() if all(n in r.zero for r in same)}
        if zero and min(r.num_zeros for r in same) >= min_steps:
            zeros.append(msgspec.structs.replace(reach, zero=zero))
    return zeros


def _idle_on_some_ranks(
    found: Sequence[OptimizerReach],
) -> tuple[OptimizerReach, tuple[str, ...]] | None:
    for reach in found:
        key = reach.run, reach.optimizer
        others = [r for r in found if (r.run, r.optimizer) == key and r.rank != reach.rank]
        names = tuple(n for n in reach.idle if others and any(n not in r.idle for r in others))
        if names:
            return reach, names
    return None


def _reaches(run: Run, rank: Rank) -> Iterator[OptimizerReach]:
    records = rank.of(OptimizerRecord)
    numbers = sorted({record.optimizer for record in records})
    owned = {number: owned_tensors(rank, number) for number in numbers}
    of_any = {name for tensors in owned.values() for name in tensors}
    seen = seen_gradients(rank)
    digests = _digests_over_time(rank)
    trained = sum(
        tensor.numel
        for number, tensors in owned.items()
        for name, tensor in tensors.items()
        if tensor.has_gradient or (number, name) in seen
    )
    for number in numbers:
        trainable = {name: t for name, t in owned[number].items() if t.requires_grad}
        num_states = {name: len(set(digests.get(name, ()))) for name in trainable}
        of_group_at_0 = _without_learning_rate([r for r in records if r.optimizer == number])
        stuck: list[str] = []
        resting: list[str] = []
        idle: list[str] = []
        zero: dict[str, int] = {}
        whole = sum(g.size**2 for (of, _), g in seen.items() if of == number) ** 0.5
        num_trainable = max(1, sum(tensor.numel for tensor in trainable.values()))
        for row, (name, tensor) in enumerate(owned[number].items()):
            if name not in trainable:
                continue
            gradient = seen.get((number, name))
            if gradient is None and not tensor.has_gradient and num_states[name] < 2:
                idle.append(name)
            elif gradient is not None and gradient.size == 0:
                zero[name] = gradient.num_zeros
            elif gradient is not None and gradient.size <= NOISE_SHARE * whole:
                continue  # it does not move, and need not
            elif num_states[name] == 1:  # None: a gradient that no probe saw
                (resting if row in of_group_at_0 else stuck).append(name)
        last = [record for record in records if record.optimizer == number][-1]
        unowned = [t for t in last.unowned if t.requires_grad and t.has_gradient]
        unowned = [tensor for tensor in unowned if tensor.name not in of_any]
        num_unowned = sum(tensor.numel for tensor in unowned)
        yield OptimizerReach(
            run=run.name,
            rank=rank.rank,
            optimizer=number,
            where=where_of(rank, number),
            num_steps=_num_steps(rank, number, is_first_group_at_0=0 in of_group_at_0),
            num_owned=len(trainable),
            num_strangers=last.num_strangers,
            num_moved=sum(number > 1 for number in num_states.values()),
            stuck=tuple(stuck),
            resting=tuple(resting),
            idle=tuple(idle),
            zero={name: trainable[name].numel / num_trainable for name in zero},
            num_zeros=min(zero.values(), default=0),
            unowned=tuple(tensor.name for tensor in unowned),
            unowned_share=num_unowned / max(1, num_unowned + trained),
        )


def _digests_over_time(rank: Rank) -> dict[str, tuple[str, ...]]:
    """Of each parameter that is in the first and in the last snapshot, in every one that has it."""
    tables = [
        {t.name: t.digest for t in record.tensors if t.kind is TensorKind.PARAMETER}
        for record in rank.of(SnapshotRecord)
    ]
    if len(tables) < 2:
        return {}
    names = tables[0].keys() & tables[-1].keys()
    return {name: tuple(t[name] for t in tables if name in t) for name in names}


def _without_learning_rate(records: Sequence[OptimizerRecord]) -> frozenset[int]:
    """Rows of the tensors whose learning rate is 0 at the first step and at the end. Where it is
    for all of them, a schedule began and ended there."""
    if len(records) < 2:
        return frozenset()
    at_0 = [{n for n, t in enumerate(r.owned) if t.learning_rate == 0} for r in records]
    rows = frozenset[int]().union(*at_0).intersection(*at_0)
    return rows if len(rows) < min(len(r.owned) for r in records) else frozenset()


def _num_steps(rank: Rank, optimizer: int, *, is_first_group_at_0: bool) -> int:
    """Steps with a learning rate that is not 0, between the first and the last snapshot; without
    two of them, all such steps. The table has the first group's learning rate."""
    table = rank.observed_steps
    snapshots = rank.of(SnapshotRecord)
    if len(snapshots) >= 2:
        table = table[snapshots[0].steps_done : snapshots[-1].steps_done]
    is_effective = table["optimizer"] == optimizer
    if not is_first_group_at_0:
        is_effective &= table["learning_rate"] != 0
    return int(np.count_nonzero(is_effective))
