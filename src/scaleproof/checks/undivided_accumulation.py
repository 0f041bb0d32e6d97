"""The check ``undivided-accumulation``."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.accumulation import accumulates, batches_per_backward
from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.closer_looks import (
    CloserLook,
    closer_looks,
    replayed_looks,
    unclipped_gradient,
)
from scaleproof.checks.needs import CANDIDATE_RUN, CLOSE_UPS, SCRIPT, STEPS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.close_ups import CloseUpRecord, LossArrival
from scaleproof.evidence.observations import PassRecord
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run, Study

_Label = tuple[str, str]
"""A loss function and the line that called it."""


@final
class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived at the principal loss of a step that adds up several backwards.

    ``weights``: by backward, the mean over the ranks of the largest call's weight; ``sums``: of all
    calls' weights. ``later``: what the sum of the backwards was multiplied with before it was used;
    None unknown. ``is_plain_sum``: nothing divided the sum over the items; ``is_divided_sum``: the
    number of backwards did, and nothing else.
    """

    weights: tuple[float, ...]
    sums: tuple[float, ...]
    later: float | None
    is_plain_sum: bool
    is_divided_sum: bool


@final
class AccumulatedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step that adds up several backwards.

    ``arrived``: on the ranks and, where the step was replayed, on one device; empty where no loss
    function was seen in every backward of every rank. ``is_one_batch_each``: None where no loader
    says, or several are drawn from at a time.
    """

    run: str
    where: str
    step: int
    num_backwards: int
    function: str
    line: str
    arrived: tuple[Arrived, ...]
    is_one_batch_each: bool | None
    has_loss_of_its_own: bool
    """Every backward of every rank has a loss function, and none of them is in all."""


@final
class AccumulationMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_steps``: steps that were looked at, with those that accumulate nothing."""

    num_steps: int
    steps: tuple[AccumulatedStep, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UndividedAccumulation(AbstractCheck[AccumulationMeasurement]):
    """Gradients of several microbatches are added up, and nothing divides them by their number.

    What it looks for
        Steps that add up the gradients of A backwards, each on a batch of its own, whose losses are
        each the whole mean over their batch: the step is A times as large as that of one batch of
        the same items.

    Why it matters
        The learning rate is A times what was meant. Adam hides it in the update, so that no loss
        curve tells, while clipping, weight decay that is not decoupled, and the gradient norms in
        the log are all A times off. A replay on one device repeats the mistake, and agrees.

    How it decides
        By the gradient that arrives in backward at what the loss functions returned: the weight of
        each in what is added up, on the ranks and, where the step was replayed, on one device: a
        factor of the number of ranks is not there. Sound weights add up to 1, up to `max_miscount`,
        over the backwards of a step (1/A each, or by items or tokens) on either; it fails when each
        is 1, up to `tolerance`, at `min_steps` steps and `min_share` of those that accumulate.
        Losses are told apart by function and line; of several, the one with the largest weight
        counts, if it is in every backward. Dividing the gradients themselves before the step is as
        good. Sums over the items need no division; where a rank's items are as many as the
        backwards, a division by the one may be by the other: undecided.

    What it can't see
        Losses that are not computed by torch's functions. A constant factor in front of the loss
        that is no 1/A, and two loaders drawn from at a time: it is undecided then. A loss
        multiplied with A on purpose. Two backwards on one batch (a GAN) are no accumulation.

    How to fix it
        `loss = loss / accumulation_steps` before `backward()`; with batches of unequal items or
        tokens, divide the sum by the number of items of the whole step. With Accelerate use
        `accelerator.backward` with `gradient_accumulation_steps`, which divides.

    References
        pytorch/torchtitan#1733 and PR#1732, lukas-blecher/LaTeX-OCR PR#148, Hugging Face (2024),
        Fixing Gradient Accumulation.
    """

    name: ClassVar[str] = "undivided-accumulation"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, STEPS, CLOSE_UPS)
    consequence_of: ClassVar[tuple[str, ...]] = ("discarded-microbatches",)

    tolerance: float = 0.05
    """Of a weight: losses in 16 bits arrive with one that is off by less than 0.01."""
    max_miscount: float = 0.15
    """Of the sum of the weights: token counts include the first of each sequence, or padding."""
    min_steps: int = 2
    min_share: float = 0.25
    """Of the steps that accumulate: a ragged end of an epoch alone is no fault."""

    def measure(self, study: Study) -> AccumulationMeasurement:
        runs = study.runs_of(study.candidate)
        looked = [step for run in runs for step in _steps(run)]
        return AccumulationMeasurement(
            num_steps=len(looked), steps=tuple(step for step in looked if step is not None)
        )

    def judge(self, measurement: AccumulationMeasurement) -> Judgement:
        steps = [s for s in measurement.steps if s.is_one_batch_each is not False]
        if not steps:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No step that was looked at adds up the gradients of several batches.",
            )
        told = [step for step in steps if step.arrived]
        # A replay of some steps says what those are that it did not come to.
        told = [step for step in told if len(step.arrived) > 1] or told
        if not told and all(step.has_loss_of_its_own for step in steps):
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="Each backward of a step has a loss of its own: terms of one loss, not "
                "microbatches.",
            )
        if not told:
            why = "no loss function of torch was seen in every backward"
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{steps[0].run}: {counted(steps[0].num_backwards, 'backward')} make a "
                f"step, and {why}.",
                remedy="Compute the loss with a function of torch.nn.functional, or compare the "
                "gradients' norm with that of one batch of all items.",
            )
        wrong = [step for step in told if self._is_undivided(step)]
        if self._is_enough(wrong, told):
            return self._judge_undivided(wrong, told)
        return self._judge_the_rest(told, wrong)

    def _judge_undivided(
        self, wrong: Sequence[AccumulatedStep], told: Sequence[AccumulatedStep]
    ) -> Judgement:
        step = wrong[0]
        seen = next(one for one in step.arrived if self._is_one_each(one))
        on_one = "" if seen is step.arrived[0] else "on one device, "
        weights = listed([f"{weight:.3g}" for weight in seen.weights], most=4)
        text = (
            f"{step.run}, step {step.step}: {step.num_backwards} backwards add up ({step.where}), "
            f"and {on_one}{step.function} of {step.line} counts {weights} in them, expected 1 "
            f"altogether: the gradient is {step.num_backwards} times too large; so at "
            f"{len(wrong)} of {counted(len(told), 'step')}."
        )
        sure = [one for one in wrong if one.is_one_batch_each]
        if not self._is_enough(sure, told):
            text = text.replace(": the gradient is", ": if each ran on a batch, the gradient is")
        return Judgement(
            outcome=Outcome.FAIL if self._is_enough(sure, told) else Outcome.UNDECIDED,
            sentence=text,
            remedy=f"Divide the loss at {step.line} by the number of backwards of a step before "
            "backward().",
        )

    def _judge_the_rest(
        self, told: Sequence[AccumulatedStep], wrong: Sequence[AccumulatedStep]
    ) -> Judgement:
        usual = Counter(step.num_backwards for step in told).most_common(1)[0][0]
        odd = [
            s
            for s in told
            if s not in wrong
            and (self._is_one_each(s.arrived[-1]) or not self._is_divided(s, usual))
        ]
        if self._is_enough(odd, told):
            step = odd[0]
            weights = listed([f"{weight:.3g}" for weight in step.arrived[0].weights], most=4)
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{step.run}, step {step.step}: {step.function} of {step.line} counts "
                f"{weights} in the {step.num_backwards} backwards of a step, which is neither 1 "
                "altogether nor 1 each: a factor of the script's hides which was meant.",
                remedy="Make sure that the loss is divided by the number of backwards of a step.",
            )
        first = told[0]
        how = "divided by their number"
        if all(step.arrived[0].is_plain_sum for step in told):
            how = "sums over their items, which need no division"
        elif all(step.arrived[0].is_divided_sum for step in told):
            how = "sums over their items, divided by their number"
        end = f" ({len(wrong) + len(odd)} of them odd)" if wrong or odd else ""
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"The losses of {usual} backwards, which make a step ({first.where}), are "
            f"{how}, at {counted(len(told), 'step')}{end}.",
        )

    def _is_enough(self, some: Sequence[AccumulatedStep], of: Sequence[AccumulatedStep]) -> bool:
        return len(some) >= self.min_steps and len(some) >= self.min_share * len(of)

    def _is_undivided(self, step: AccumulatedStep) -> bool:
        """Each backward counts 1, by its largest call or by all calls, and nothing divides later.
        Where one reading of several calls says 1 each and the other 1 altogether, it is open; and
        where one device says so, a factor is of the ranks and not of the backwards."""
        is_one_each = any(self._is_one_each(one) for one in step.arrived)
        is_open = step.arrived[-1].is_divided_sum  # by as many items, perhaps
        return is_one_each and not is_open and not self._is_divided(step, step.num_backwards)

    def _is_one_each(self, one: Arrived) -> bool:
        if one.is_plain_sum or self._is_divided_later(one):
            return False
        return any(
            all(abs(weight - 1) <= self.tolerance for weight in weights)
            for weights in (one.weights, one.sums)
        )

    def _is_divided_later(self, one: Arrived) -> bool:
        """The gradients themselves were divided, before the step."""
        num_backwards = len(one.weights)
        return one.later is not None and abs(one.later * num_backwards - 1) <= self.tolerance

    def _is_divided(self, step: AccumulatedStep, usual: int) -> bool:
        """``usual``: backwards of most steps; a last one of an epoch may have fewer."""
        return any(self._is_whole(one, usual) for one in step.arrived)

    def _is_whole(self, one: Arrived, usual: int) -> bool:
        if one.is_plain_sum or (one.is_divided_sum and not self._is_one_each(one)):
            return True
        later = 1 / len(one.weights) if self._is_divided_later(one) else 1.0
        return any(
            abs(later * sum(weights) - 1) <= self.max_miscount
            or all(abs(later * weight * usual - 1) <= self.tolerance for weight in weights)
            for weights in (one.weights, one.sums)
        )


def _steps(run: Run) -> Iterator[AccumulatedStep | None]:
    batches: Mapping[int, float | None] = {}
    if not _has_parallel_loaders(run):
        batches = batches_per_backward(run)
    replay = replays_of(run).get("union")
    replayed = {} if replay is None else replayed_looks(replay)
    for look in closer_looks(run):
        key = look.probe.optimizer, look.probe.step
        yield _step(look, replayed.get(key), batches.get(look.probe.optimizer))


def _has_parallel_loaders(run: Run) -> bool:
    """Training draws from two loaders at a time: whether backwards are microbatches of one loss, or
    terms of it, each for the batch of one loader, nothing says."""
    for rank in run.ranks:
        passes = [record for record in rank.of(PassRecord) if record.use == "training"]
        ends: dict[int, int] = {}
        for one in sorted(passes, key=lambda record: record.first_step):
            others = [end for loader, end in ends.items() if loader != one.loader]
            if one.last_step > one.first_step and max(others, default=0) > one.first_step:
                return True
            ends[one.loader] = max(one.last_step, ends.get(one.loader, 0))
    return False


def _step(
    look: CloserLook, replayed: CloserLook | None, batches: float | None
) -> AccumulatedStep | None:
    """None for a step of one backward."""
    probe, num_backwards, label = look.probe, _num_backwards(look), _principal(look)
    if num_backwards < 2:
        return None
    looks = [look]
    if replayed is not None and _num_backwards(replayed) == num_backwards:
        looks.append(replayed)
    arrived = [] if label is None else [_arrived(one, label) for one in looks]
    return AccumulatedStep(
        run=probe.run,
        where=probe.where,
        step=probe.step,
        num_backwards=num_backwards,
        function=label[0] if label else "",
        line=label[1] if label else "",
        arrived=tuple(one for one in arrived if one is not None),
        is_one_batch_each=None if batches is None else accumulates(probe, batches),
        has_loss_of_its_own=label is None
        and all(
            len({a.backward for a in record.arrivals if a.weight is not None})
            == probed.num_backwards
            for record, probed in zip(look.records, probe.records, strict=True)
        ),
    )


def _arrived(look: CloserLook, label: _Label) -> Arrived | None:
    by_rank = [_by_backward(record, label) for record in look.records]
    # Ranks may accumulate unlike each other at the end of an epoch: the shortest counts.
    num_backwards = min(map(len, by_rank))
    if num_backwards < _num_backwards(look):
        return None
    return Arrived(
        weights=_means([[max(w) for w in calls] for calls in by_rank]),
        sums=_means([[sum(w) for w in calls] for calls in by_rank]),
        later=_later(look),
        is_plain_sum=_is_sum(look.records, label, 1),
        is_divided_sum=_is_sum(look.records, label, num_backwards),
    )


def _num_backwards(look: CloserLook) -> int:
    return min(record.num_backwards for record in look.probe.records)


def _principal(look: CloserLook) -> _Label | None:
    """Of the losses that are in every backward of every rank, the one with the largest weight."""
    weight: dict[_Label, float] = defaultdict(float)
    seen: dict[_Label, set[tuple[int, int]]] = defaultdict(set)
    for rank, record in zip(look.probe.ranks, look.records, strict=True):
        for arrival in record.arrivals:
            label = arrival.function, arrival.where
            if arrival.weight is not None:
                seen[label].add((rank, arrival.backward))
                weight[label] = max(weight[label], abs(arrival.weight))
    num_all = sum(record.num_backwards for record in look.probe.records)
    there = [label for label in weight if len(seen[label]) == num_all]
    return max(there, key=lambda label: weight[label], default=None)


def _by_backward(record: CloseUpRecord, label: _Label) -> list[list[float]]:
    weights: dict[int, list[float]] = defaultdict(list)
    for arrival in record.arrivals:
        if (arrival.function, arrival.where) == label and arrival.weight is not None:
            weights[arrival.backward].append(arrival.weight)
    return [weights[backward] for backward in sorted(weights)]


def _means(by_rank: Sequence[Sequence[float]]) -> tuple[float, ...]:
    num_backwards = min(map(len, by_rank))
    columns = [[of_rank[index] for of_rank in by_rank] for index in range(num_backwards)]
    return tuple(float(np.mean(column)) for column in columns)


def _is_sum(records: Sequence[CloseUpRecord], label: _Label, divisor: int) -> bool:
    own = [a for r in records for a in r.arrivals if (a.function, a.where) == label]
    return all(_is_whole_sum(arrival, divisor) for arrival in own)


def _is_whole_sum(arrival: LossArrival, divisor: int) -> bool:
    """A sum over its items that was divided by ``divisor`` and nothing else."""
    if arrival.reduction == "mean" or arrival.weight is None:
        return False
    is_one = arrival.reduction == "none" and arrival.num_items == 1
    gap = abs(arrival.weight * divisor - arrival.num_items)
    return not is_one and gap <= 1e-3 * arrival.num_items


def _later(look: CloserLook) -> float | None:
    """The multiple of the ranks' mean gradient that was used, before clipping."""
    used = unclipped_gradient(look).values
    if used is None:
        return None
    mean = look.probe.local.mean(axis=0)
    known = np.isfinite(used) & np.isfinite(mean)
    size = float((mean[known] ** 2).sum())
    return float((used[known] * mean[known]).sum()) / size if size > 0 else None
