"""The check ``misweighted-gradients``."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.gradient_scaling import Weighting, weightings
from scaleproof.checks.gradient_weights import is_proportional
from scaleproof.checks.misweighted_by_reference import ByReference, judge_by_reference
from scaleproof.checks.needs import CANDIDATE_RUN, PROBES, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.probes import unlike_tensors
from scaleproof.checks.relations import series_of
from scaleproof.checks.replayed import ComparedStep, compared_steps
from scaleproof.checks.weighting_words import (
    judge_divided,
    judge_reduced,
    judge_summed,
    judge_users,
    nothing_known,
    unclipped,
    undecided,
    unexplained,
    weights,
    where,
    with_number_of_others,
)
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.study import Study


@final
class MisweightedMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """Steps whose gradients the ranks do not share are left out: unsynced-gradients has them.
    ``unlike``: tensors that not every rank holds, or not with the same size. ``compared``: steps
    that were replayed on one device."""

    weightings: tuple[Weighting, ...]
    unlike: tuple[str, ...]
    compared: tuple[ComparedStep, ...]


class _Kind(Enum):
    """What the weights of one step look like."""

    UNKNOWN = auto()
    SOUND = auto()
    USERS_DIFFER = auto()
    OTHER_REDUCTION = auto()
    CLIPPED_ALONE = auto()
    UNEVEN = auto()
    SUMMED = auto()
    AVERAGED_TWICE = auto()
    DIVIDED = auto()  # by the ranks or by the backwards: there are as many of both
    OTHER_FACTOR = auto()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MisweightedGradients(AbstractCheck[MisweightedMeasurement]):
    """Ranks share their gradients, and what the optimizer uses is not their mean.

    What it looks for
        Gradients averaged twice (divided by the number of ranks once more); summed where the loss
        is a mean over the rank's own batch; ranks that count unequally; ranks that use different
        multiples of the same gradient; the largest or smallest of the ranks' values, or their
        product (`ReduceOp.MAX`). With a replay on one device (`scaleproof check`): ranks or
        microbatches that count in other proportions than their items.

    Why it matters
        All ranks agree, so that no comparison of ranks can see it. A factor is a wrong learning
        rate for SGD, and a wrong clipping, weight decay and epsilon for Adam, whose loss curve
        hides it. Unequal weights train on another mix of the data than was asked for.

    How it decides
        By the effective weights at probed steps: the weights `w` that solve
        `final = sum of w_r * local_r`. Sound are weights of 1/N, or in the ratio of the ranks'
        samples, up to `tolerance`; times the factor of `clip_grad_norm_`; times one over the number
        of backwards, which is a division after accumulation. Where one set of weights leaves more
        than `max_residual` unexplained, it looks at each tensor by itself.

        Fails: weights of 1/N times 1/N at `min_steps` steps that clipping does not explain; weights
        of 1 when the loss was a plain mean on all ranks (without that, undecided: it is sound if
        the loss was already divided by all ranks' samples); unequal weights that are the same at
        `min_steps` steps or do not add up to 1; ranks that use multiples of one gradient, more than
        `max_spread` apart; value by value the largest, smallest or product of the ranks' gradients,
        at `min_steps` steps. Unequal weights that change and add up to 1 may follow a number nobody
        recorded (tokens) and are undecided, and so is a constant factor with no such explanation.
        A factor that changes from step to step is a scaling of the script's own, and passes with a
        word.

        Where steps were replayed on one device, that decides, and not what is written above: the
        weights of the ranks' backwards in what was used are set beside their weights in the
        replayed gradient. Fails when their proportions are more than `reference_tolerance` of an
        even weight apart, beyond what rounding could do, at `min_steps` steps and `min_share` of
        those compared; passes when they agree. Steps of another kind (see batch-coupled-operation)
        are judged as without a replay.

    What it can't see
        A factor in the loss itself (`loss / N` under DDP: see misscaled-gradients), or a missing
        division by the accumulated microbatches (see undivided-accumulation): the local gradient
        has it already. Without a replay: that the mean of means is not what was meant when batches
        are uneven (see uneven-batches). Anything, when the ranks' own gradients are alike.

    How to fix it
        Divide once: DDP and FSDP average over the ranks, so that the loss must be the mean over
        the rank's own batch; after an all-reduce that sums, divide by the number of ranks. For
        batches of unequal size, weight each rank's loss by its samples times N over all samples.
        Use the same loss scale on all ranks.

    References
        pytorch/torchtitan PR#2323, pytorch/torchtune PR#2172, neuralmagic/sparseml PR#135,
        pytorch/pytorch#136009.
    """

    name: ClassVar[str] = "misweighted-gradients"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS, PROBES)
    consequence_of: ClassVar[tuple[str, ...]] = (
        "unsynced-gradients",
        "clipped-before-reduction",
        "clipped-at-the-wrong-norm",
        "uneven-batches",
        "discarded-microbatches",
        "undivided-accumulation",
    )

    tolerance: float = 0.05
    """Of an even weight, or of a factor: 16 bits and compression move them by less than 0.01."""
    max_residual: float = 0.05
    """Of the final gradient: above it, weights do not explain what was used."""
    max_spread: float = 1e-3
    """Of what one rank used, as a multiple of what another did: exchanges leave the same bytes."""
    min_steps: int = 2
    """One step may have been special: the first one, or one with a ragged batch."""
    reference_tolerance: float = 0.01
    """Of an even weight, beside one device: weights of both have an error of 0.001 at most."""
    min_share: float = 0.25
    """Of the steps compared with one device: ragged batches end an epoch, and are no fault."""

    def measure(self, study: Study) -> MisweightedMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        return MisweightedMeasurement(
            weightings=tuple(w for run in runs for w in weightings(run)),
            unlike=tuple(f"{run.name}: {name}" for run in runs for name in unlike_tensors(run)),
            compared=tuple(step for run in runs for step in compared_steps(run)),
        )

    def judge(self, measurement: MisweightedMeasurement) -> Judgement:
        series: dict[tuple[str, int, str], list[Weighting]] = {}
        for weighting in measurement.weightings:
            key = weighting.run, weighting.optimizer, weighting.tensor
            series.setdefault(key, []).append(weighting)
        references = self._judge_by_reference(measurement.compared)
        judgements = [reference.judgement for reference in references.values()]
        for key, steps in series.items():
            judgement = self._judge_series(steps)
            reference = references.get(key[:2])
            if reference is None or not reference.overrules(judgement.outcome):
                judgements.append(judgement)
        for outcome in (Outcome.FAIL, Outcome.UNDECIDED):
            found = [judgement for judgement in judgements if judgement.outcome is outcome]
            if found:
                return with_number_of_others(found)
        if references:
            return next(iter(references.values())).judgement
        known = [w for w in measurement.weightings if self._kind(w) is not _Kind.UNKNOWN]
        if not measurement.weightings and measurement.unlike:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="The ranks hold different parameters, parts of one model, so that there "
                f"are no gradients to average: {listed(measurement.unlike)} are not on all ranks.",
            )
        if not known:
            return nothing_known(measurement.weightings)
        return self._judge_sound(known)

    def _judge_by_reference(
        self, compared: Sequence[ComparedStep]
    ) -> dict[tuple[str, int], ByReference]:
        """By run and optimizer, where a step of it could be compared with one device."""
        judged = {
            (steps[0].run, steps[0].optimizer): judge_by_reference(
                steps, self.reference_tolerance, self.min_steps, self.min_share
            )
            for steps in series_of(compared)
        }
        return {key: by for key, by in judged.items() if by is not None}

    def _judge_sound(self, known: Sequence[Weighting]) -> Judgement:
        num_ranks = len(known[0].ranks)
        own = [w for w in known if self._kind(w) is _Kind.OTHER_FACTOR]
        notes = ""
        if own:
            factors = [unclipped(w) for w in own]
            notes += (
                f" All are scaled alike, by {min(factors):.3g} to {max(factors):.3g}, which the "
                "script does itself."
            )
        worst = max(w.residual for w in known)
        if worst > 1e-3:
            notes += f" Up to {worst:.1e} is not explained by weights: 16 bits, or compression."
        if any(self._is_by_samples(w) and not self._is_even(w) for w in known):
            notes += " Where batches were uneven, ranks count by their samples."
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"All {num_ranks} ranks count alike in the gradients that were used "
            f"({counted(len({(w.run, w.optimizer, w.step) for w in known}), 'probed step')})."
            f"{notes}",
        )

    def _judge_series(self, steps: Sequence[Weighting]) -> Judgement:
        """One optimizer of one run, over steps."""
        by_kind: dict[_Kind, list[Weighting]] = {}
        for weighting in steps:
            by_kind.setdefault(self._kind(weighting), []).append(weighting)
        if _Kind.USERS_DIFFER in by_kind:
            return judge_users(by_kind[_Kind.USERS_DIFFER][0])
        if _Kind.OTHER_REDUCTION in by_kind:
            return judge_reduced(
                by_kind[_Kind.OTHER_REDUCTION], is_sure=len(steps) >= self.min_steps
            )
        if _Kind.UNEVEN in by_kind:
            return self._judge_uneven(by_kind[_Kind.UNEVEN])
        if _Kind.SUMMED in by_kind:
            return judge_summed(by_kind[_Kind.SUMMED])
        if _Kind.AVERAGED_TWICE in by_kind:
            return self._judge_twice(by_kind[_Kind.AVERAGED_TWICE], steps)
        if _Kind.DIVIDED in by_kind:
            return judge_divided(by_kind[_Kind.DIVIDED][0])
        if _Kind.OTHER_FACTOR in by_kind:
            return self._judge_factor(by_kind[_Kind.OTHER_FACTOR])
        if all(self._isunexplained(w) for w in steps):
            return unexplained(steps[0])
        if _Kind.CLIPPED_ALONE in by_kind:
            first = by_kind[_Kind.CLIPPED_ALONE][0]
            return undecided(
                f"{where(first)}: the ranks count {weights(first)}, as each clipped its own "
                "gradient.",
                "Clip after the gradients are averaged (see clipped-before-reduction).",
            )
        return Judgement(outcome=Outcome.PASS, sentence="")

    def _isunexplained(self, w: Weighting) -> bool:
        is_clipped_by_value = w.clip_factor is None  # legitimate, and no weighted sum either
        return w.residual > self.max_residual and not is_clipped_by_value

    def _kind(self, w: Weighting) -> _Kind:
        if max(abs(factor - 1) for factor in w.user_factors) > self.max_spread:
            return _Kind.USERS_DIFFER
        if w.reduction:
            return _Kind.OTHER_REDUCTION
        is_sure = w.residual <= self.max_residual and 3 * w.error <= self.tolerance
        if w.shares is None or not is_sure:
            return _Kind.UNKNOWN
        if not self._is_even(w) and not self._is_by_samples(w):
            alone = w.clip_factors is not None and is_proportional(
                np.array(w.shares), np.array(w.clip_factors), self.tolerance
            )
            return _Kind.CLIPPED_ALONE if alone else _Kind.UNEVEN
        if max(w.totals) - min(w.totals) > self.tolerance * max(w.totals):
            return _Kind.USERS_DIFFER
        return self._kind_of_factor(w)

    def _kind_of_factor(self, w: Weighting) -> _Kind:
        num_ranks, divisors = len(w.ranks), {1, w.num_backwards, w.most_backwards} - {0}
        factor = unclipped(w)
        if self._is_near(w.total, 1) or self._is_near(factor, 1):
            return _Kind.SOUND
        if w.clip_factor is None and w.total < 1:
            return _Kind.SOUND  # clipped, by what is not known
        if divided := [n for n in divisors if self._is_near(factor, 1 / n)]:
            is_plain = num_ranks not in divided or w.is_loss_a_mean
            return _Kind.SOUND if is_plain else _Kind.DIVIDED
        for divisor in divisors:
            if self._is_near(factor * divisor, num_ranks):
                return _Kind.SUMMED
            if self._is_near(factor * divisor, 1 / num_ranks):
                return _Kind.AVERAGED_TWICE
        return _Kind.OTHER_FACTOR

    def _is_near(self, value: float, wanted: float) -> bool:
        return abs(value - wanted) <= self.tolerance * wanted

    def _is_even(self, w: Weighting) -> bool:
        assert w.shares is not None  # callers have looked
        return max(abs(s * len(w.shares) - 1) for s in w.shares) <= self.tolerance

    def _is_by_samples(self, w: Weighting) -> bool:
        if w.samples is None or w.shares is None:
            return False
        share = np.array(w.samples) / sum(w.samples)
        return bool((np.abs(np.array(w.shares) - share) * len(share) <= self.tolerance).all())

    def _judge_uneven(self, found: Sequence[Weighting]) -> Judgement:
        first = found[0]
        shares = np.array([w.shares for w in found])
        is_constant = bool((shares.max(axis=0) - shares.min(axis=0) <= self.tolerance).all())
        is_mean = all(self._is_near(unclipped(w), 1) for w in found)
        sentence = (
            f"{where(first)}: the ranks count {weights(first)} in the gradient that was used "
            f"(expected {1 / len(first.ranks):.2f} each), which their samples do not explain; "
            f"uneven at {counted(len(found), 'probed step')}."
        )
        remedy = "Average the gradients: every rank divided by the number of ranks, once."
        if not is_mean or (is_constant and len(found) >= self.min_steps):
            return Judgement(outcome=Outcome.FAIL, sentence=sentence, remedy=remedy)
        return undecided(
            f"{sentence} They add up to 1, and may follow a number that is not recorded (tokens).",
            "If the ranks are weighted on purpose, name this check in the profile's advisory list.",
        )

    def _judge_twice(self, found: Sequence[Weighting], steps: Sequence[Weighting]) -> Judgement:
        first = found[0]
        num_ranks = len(first.ranks)
        sentence = (
            f"{where(first)}: the ranks count {weights(first)} in the gradient that was used, "
            f"expected {1 / num_ranks:.2f} each: averaged twice over {num_ranks} ranks, at "
            f"{len(found)} of {counted(len(steps), 'probed step')}."
        )
        others = [w for w in steps if self._kind(w) not in (_Kind.AVERAGED_TWICE, _Kind.UNKNOWN)]
        if len(found) < self.min_steps or others:
            return undecided(sentence, "Train for more steps, so that more are probed.")
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=sentence,
            remedy="Divide by the number of ranks once: DDP and FSDP do already.",
        )

    def _judge_factor(self, found: Sequence[Weighting]) -> Judgement:
        factors = [unclipped(w) for w in found]
        if max(factors) - min(factors) > self.tolerance * max(factors):
            return Judgement(outcome=Outcome.PASS, sentence="")  # a clipping of its own, say
        return undecided(
            f"{where(found[0])}: all ranks count alike, and the gradient that was used is "
            f"{np.mean(factors):.3g} times their mean, at {counted(len(found), 'probed step')}; "
            "neither clipping nor the number of ranks or backwards explains it.",
            "Find what scales the gradients between backward and step. If it is meant, name this "
            "check in the profile's advisory list.",
        )
