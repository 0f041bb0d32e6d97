"""What ``misweighted-gradients`` says where one device computed the same steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.reference_numbers import Fit
from scaleproof.checks.relations import (
    TOLD,
    Consistency,
    Relation,
    relation_of,
    sameness_words,
    shares,
    steps_words,
    where_words,
    worst_tensor,
)
from scaleproof.checks.replayed import ComparedStep
from scaleproof.checks.wording import counted, listed

_MISWEIGHTED = frozenset(
    {Relation.MISWEIGHTED, Relation.ONE_TENSOR_MISWEIGHTED, Relation.ONE_SIDED}
)

_REMEDY = (
    "Weight each loss by its items: sum it over the items, divide by the items of all ranks and of "
    "all backwards of the step, and multiply by the number of ranks."
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ByReference:
    """``is_same``: every single step could be compared, and none differs."""

    judgement: Judgement
    is_same: bool

    def overrules(self, outcome: Outcome) -> bool:
        """What effective weights alone led to. A fail stands where one device did not compute the
        very same: weights of 1 are a fault, though all ranks count alike."""
        is_told = self.is_same or self.judgement.outcome is Outcome.FAIL
        return is_told or outcome is not Outcome.FAIL


def judge_by_reference(
    steps: Sequence[ComparedStep], tolerance: float, min_steps: int, min_share: float
) -> ByReference | None:
    """One optimizer of one run; None where no step of it can be compared."""
    relations = [relation_of(step, tolerance) for step in steps]
    told = [s for s, relation in zip(steps, relations, strict=True) if relation in TOLD]
    if not told:
        return None
    consistency = Consistency(
        found=tuple(s for s, r in zip(steps, relations, strict=True) if r in _MISWEIGHTED),
        num_told=len(told),
        min_steps=min_steps,
        min_share=min_share,
    )
    return ByReference(
        judgement=_judgement(consistency, told, steps, tolerance),
        is_same=all(relation is Relation.SAME for relation in relations),
    )


def _judgement(
    consistency: Consistency,
    told: Sequence[ComparedStep],
    steps: Sequence[ComparedStep],
    tolerance: float,
) -> Judgement:
    if consistency.is_frequent:
        first = consistency.found[0]
        return Judgement(
            outcome=Outcome.FAIL if consistency.is_fault else Outcome.UNDECIDED,
            sentence=f"{where_words(first)}: {_difference(first, tolerance)}, {consistency.words}.",
            remedy=_REMEDY
            if consistency.is_fault
            else "Check more steps (--steps): one alone may be special.",
        )
    same = [step for step in told if relation_of(step, tolerance) is Relation.SAME]
    notes = f" ({sameness_words(same)})" if same else ""
    ragged = ""
    if consistency.found:
        first = consistency.found[0]
        ragged = (
            f" Not at {steps_words(consistency.found)}: there, {_difference(first, tolerance)}."
        )
    untold = ""
    if len(told) < len(steps):
        untold = f" {counted(len(steps) - len(told), 'step')} could not be compared."
    return Judgement(
        outcome=Outcome.PASS,
        sentence=f"All {len(told[0].ranks)} ranks count as they do on one device with the same "
        f"items, at {counted(len(told) - len(consistency.found), 'compared step')}{notes}."
        f"{ragged}{untold}",
    )


def _difference(step: ComparedStep, tolerance: float) -> str:
    if relation_of(step, tolerance) is Relation.ONE_SIDED:
        words = f"tensor {step.one_sided[-1]!r}"
        if len(step.one_sided) > 1:
            words += f", the first in the order of backward of {len(step.one_sided)},"
        return (
            f"{words} has a gradient on one side only, on the ranks or on one device with the same "
            "items, while the others agree"
        )
    if relation_of(step, tolerance) is Relation.ONE_TENSOR_MISWEIGHTED:
        tensor = worst_tensor(step)
        others = step.num_tensors - len(step.off)
        words = f"in tensor {tensor.name!r}"
        if len(step.off) > 1:
            words += f", the first in the order of backward of {len(step.off)} that are off,"
        if tensor.effective.weights is None or tensor.effective.residual > 0.05:
            return (
                f"{words} what was used is no weighted sum of the ranks' gradients, and not what "
                f"one device computes, while {counted(others, 'tensor')} agree"
            )
        pair = _by_rank(step, tensor.effective, tensor.reference, tolerance)
        return f"{words} {pair}, while {counted(others, 'tensor')} agree"
    return _by_rank(step, step.effective, step.in_reference, tolerance)


def _by_rank(step: ComparedStep, effective: Fit, reference: Fit, tolerance: float) -> str:
    """The ranks' weights on both sides or, where ranks are as they should be, the microbatch's."""
    used, wanted = shares(effective), shares(reference)
    ranks = sorted({rank for rank, _ in step.sources})
    used_by, wanted_by = _summed(step, ranks, used), _summed(step, ranks, wanted)
    if np.abs(used_by - wanted_by).max() * len(ranks) > tolerance:
        samples = ""
        if step.num_samples is not None and len(set(step.num_samples)) > 1:
            samples = f" (batches of {listed(step.num_samples, most=8)} samples)"
        return (
            f"the ranks{_numbers(ranks, step)} count {_words(used_by)} in the gradient that was "
            f"used, and {_words(wanted_by)} on one device with the same items{samples}"
        )
    gaps = np.abs(used - wanted)
    worst = int(np.argmax(gaps >= 0.99 * gaps.max()))  # of many that are off alike, the first
    rank, backward = step.sources[worst]
    return (
        f"microbatch {backward + 1} of rank {rank} counts {used[worst]:.3g} in the gradient that "
        f"was used, and {wanted[worst]:.3g} on one device with the same items"
    )


def _numbers(ranks: Sequence[int], step: ComparedStep) -> str:
    """Ranks without a gradient of their own are not among them."""
    return "" if len(ranks) == len(step.ranks) else f" {listed(ranks, most=8)}"


def _summed(
    step: ComparedStep, ranks: Sequence[int], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    owners = np.array([rank for rank, _ in step.sources])
    return np.array([weights[owners == rank].sum() for rank in ranks])


def _words(weights: NDArray[np.float64]) -> str:
    return listed([f"{round(weight, 4) + 0.0:.3g}" for weight in weights.tolist()], most=8)
