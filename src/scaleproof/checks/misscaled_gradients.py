"""The check ``misscaled-gradients``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import (
    CANDIDATE_RUN,
    CLOSE_UPS,
    PROBES,
    REPLAY,
    SCRIPT,
    STEPS,
    TWO_RANKS,
)
from scaleproof.checks.relations import (
    TOLD,
    Consistency,
    Relation,
    factor_of,
    is_spread_over_ranks,
    name_of_factor,
    relation_of,
    sameness_words,
    series_of,
    steps_words,
    where_words,
    worst_tensor,
)
from scaleproof.checks.replayed import ComparedStep, compared_steps
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Study

_SCALED = frozenset({Relation.SCALED, Relation.ONE_TENSOR_SCALED})


@final
class MisscaledMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``not_replayed``: why a replay ended before the steps that were asked of it, by run."""

    steps: tuple[ComparedStep, ...]
    not_replayed: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MisscaledGradients(AbstractCheck[MisscaledMeasurement]):
    """The gradient that was used is a multiple of the one that a single device computes.

    What it looks for
        A factor between the gradient that the ranks' optimizers used and that of one device on the
        same items from the same weights: the number of ranks (summed instead of averaged, or a loss
        multiplied by it), one over it (divided once too often, or a sum divided by the items of all
        ranks), the number of microbatches, of samples, of tokens.

    Why it matters
        All ranks agree and all are wrong: no comparison of ranks can see it. For SGD it is a wrong
        learning rate; Adam hides it in the loss curve, but not from clipping, weight decay and
        epsilon. A learning rate found on one device is then tuned to another training.

    How it decides
        `scaleproof check` runs the script once more on one process, feeds each backward what all
        ranks fed theirs, from the recorded weights, and compares gradients before clipping. Their
        ratio is the factor where they point the same way, or where both are weighted sums of the
        ranks' own gradients in the same proportions. Fails when it is more than `tolerance` from 1,
        beyond what rounding (the replay with its items in another order) and what weights leave
        unexplained could do, at `min_steps` steps and at `min_share` of those compared. Tensors
        are looked at one by one, too: of those off alone, the first in the order of backward is
        named. Fails, too, where both sides agree and are the ranks' mean over the samples of a
        batch, though the loss was a mean over them.

        Passes with a word: one over the number of ranks, where the loss is a plain sum over its
        items - it keeps the size that it has for one rank's batch. Where it can't be seen whether
        the loss is a sum, that factor is undecided. Gradients that are no weighted sum of the
        ranks' own, and steps that differ where the script drew random numbers, are not compared.

    What it can't see
        Any other factor that is the same on one device: a missing division by the accumulated
        microbatches (see undivided-accumulation). A factor that clipping by the script's own hand
        takes out again.

    How to fix it
        DDP and FSDP average over the ranks: let the loss be the mean over the rank's own items.
        Where it is a sum over the items of all ranks, divide it by their number and multiply it by
        the number of ranks. After an all-reduce of your own that sums, divide by the ranks once.

    References
        huggingface/transformers#34242, pytorch/torchtitan PR#2323, pytorch/torchtune PR#2172.
    """

    name: ClassVar[str] = "misscaled-gradients"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (
        CANDIDATE_RUN,
        SCRIPT,
        TWO_RANKS,
        STEPS,
        PROBES,
        CLOSE_UPS,
        REPLAY,
    )
    consequence_of: ClassVar[tuple[str, ...]] = (
        "unsynced-gradients",
        "clipped-before-reduction",
        "clipped-at-the-wrong-norm",
        "misweighted-gradients",
        "undivided-accumulation",
    )

    tolerance: float = 0.01
    """Of the factor: sound agreement is a ten-thousandth of it in 32 bits."""
    min_steps: int = 2
    """One step may have been special: the first one, or one with a ragged batch."""
    min_share: float = 0.25
    """Of the compared steps: ragged batches end an epoch, and are no fault of the script's."""

    def measure(self, study: Study) -> MisscaledMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        return MisscaledMeasurement(
            steps=tuple(step for run in runs for step in compared_steps(run)),
            not_replayed=tuple(
                f"{run.name}: {replay.end.why_not}"
                for run in runs
                for name, replay in replays_of(run).items()
                if name == "union" and replay.end.why_not
            ),
        )

    def judge(self, measurement: MisscaledMeasurement) -> Judgement:
        judgements = [
            judgement
            for steps in series_of(measurement.steps)
            for judgement in (self._judge_series(steps), self._judge_divided(steps))
        ]
        for outcome in (Outcome.FAIL, Outcome.UNDECIDED):
            for judgement in judgements:
                if judgement.outcome is outcome:
                    return judgement
        told = [s for s in measurement.steps if relation_of(s, self.tolerance) in TOLD]
        if not told:
            return self._judge_nothing_told(measurement.steps)
        return self._judge_sound(told, measurement)

    def _judge_series(self, steps: Sequence[ComparedStep]) -> Judgement:
        relations = {step.step: relation_of(step, self.tolerance) for step in steps}
        found = tuple(
            step for step in steps if relations[step.step] in _SCALED and not self._is_summed(step)
        )
        consistency = Consistency(
            found=found,
            num_told=sum(relation in TOLD for relation in relations.values()),
            min_steps=self.min_steps,
            min_share=self.min_share,
        )
        if not consistency.is_frequent:
            return Judgement(outcome=Outcome.PASS, sentence="")
        first = found[0]
        sentence = f"{where_words(first)}: {self._factor_words(found)}, {consistency.words}."
        if not consistency.is_fault:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=sentence,
                remedy="Check more steps (--steps): one alone may be special.",
            )
        if all(self._may_be_summed(step) for step in found):
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{sentence} That is as it should be for a loss that is summed over its "
                "items, and a fault for a mean; which it is can't be seen.",
                remedy="Use a loss of torch's, whose reduction can be seen. If the loss is a plain "
                "sum, name this check in the profile's advisory list.",
            )
        return Judgement(outcome=Outcome.FAIL, sentence=sentence, remedy=_remedy(first))

    def _judge_divided(self, steps: Sequence[ComparedStep]) -> Judgement:
        """By the items of a batch, though the loss was a mean over them; one device does it too."""
        same = [s for s in steps if relation_of(s, self.tolerance) is Relation.SAME]
        divided = [(s, number) for s in same if (number := self._divided_by(s)) is not None]
        consistency = Consistency(
            found=tuple(step for step, _ in divided),
            num_told=len(same),
            min_steps=self.min_steps,
            min_share=self.min_share,
        )
        if not consistency.is_fault:
            return Judgement(outcome=Outcome.PASS, sentence="")
        first, (number, whose) = divided[0]
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{where_words(first)}: the gradient that was used is 1/{number} of the mean "
            f"of the ranks' ({number} samples are the batch of {whose}), {consistency.words}: the "
            "loss is a mean over its batch already, and on one device it is divided once more too.",
            remedy="Divide by the samples once: in the loss, or in the gradients of a sum.",
        )

    def _divided_by(self, step: ComparedStep) -> tuple[int, str] | None:
        samples, total = step.num_samples, step.effective.total
        is_known = samples is not None and min(samples) > len(step.ranks) and total > 0
        if samples is None or not is_known or not step.is_plain_mean or step.num_backwards != 1:
            return None
        for number, whose in ((max(samples), "a rank"), (sum(samples), "all ranks")):
            if abs(total * number - 1) <= self.tolerance:
                return number, whose
        return None

    def _is_summed(self, step: ComparedStep) -> bool:
        """A loss that is summed over its items: the mean over ranks keeps the size of one."""
        is_whole = relation_of(step, self.tolerance) is Relation.SCALED
        return is_whole and step.is_plain_sum and is_spread_over_ranks(step, factor_of(step))

    def _may_be_summed(self, step: ComparedStep) -> bool:
        is_whole = relation_of(step, self.tolerance) is Relation.SCALED
        return is_whole and not step.is_loss_seen and is_spread_over_ranks(step, factor_of(step))

    def _factor_words(self, found: Sequence[ComparedStep]) -> str:
        first = found[0]
        if relation_of(first, self.tolerance) is Relation.ONE_TENSOR_SCALED:
            tensor = worst_tensor(first)
            name = name_of_factor(tensor.ratio, first)
            others = len(first.off) - 1
            return (
                f"tensor {tensor.name!r} is used with {tensor.ratio:.3g} times the gradient that "
                f"one device computes on the same items{f' ({name})' if name else ''}"
                + (f", the first in the order of backward of {others + 1}" if others else "")
                + f", while {counted(first.num_tensors - others - 1, 'tensor')} agree"
            )
        factors = [factor_of(step) for step in found]
        name = name_of_factor(factors[0], first)
        is_constant = max(factors) - min(factors) <= self.tolerance * abs(max(factors))
        many = f"{factors[0]:.3g}" if is_constant else f"{min(factors):.3g} to {max(factors):.3g}"
        return (
            f"the gradient that was used is {many} times that of one device on the same items"
            f"{f' ({name})' if name else ''}"
        )

    def _judge_sound(
        self, told: Sequence[ComparedStep], measurement: MisscaledMeasurement
    ) -> Judgement:
        sentence = (
            f"At {counted(len({(s.run, s.step) for s in told}), 'compared step')} the gradient "
            "that was used has the size of that of one device on the same items"
        )
        summed = [step for step in told if self._is_summed(step)]
        single = [
            step
            for step in told
            if relation_of(step, self.tolerance) in _SCALED and not self._is_summed(step)
        ]
        same = [s for s in told if relation_of(s, self.tolerance) is Relation.SAME]
        if summed:
            sentence = (
                f"The loss is a sum over its items, so that the mean over the ranks is "
                f"1/{len(summed[0].ranks)} of one device's gradient on the items of all: the size "
                "that it has for one rank's batch"
            )
        elif same:
            sentence += f" ({sameness_words(same)})"
        notes = ""
        if single:
            notes += (
                f" At {steps_words(single)} alone it is {factor_of(single[0]):.3g} times as large: "
                "a ragged batch, perhaps."
            )
        if len(told) < len(measurement.steps):
            notes += (
                f" {counted(len(measurement.steps) - len(told), 'step')} could not be compared."
            )
        if measurement.not_replayed:
            notes += f" Not replayed to its end: {listed(measurement.not_replayed)}."
        return Judgement(outcome=Outcome.PASS, sentence=f"{sentence}.{notes}")

    def _judge_nothing_told(self, steps: Sequence[ComparedStep]) -> Judgement:
        relations = {relation_of(step, self.tolerance) for step in steps}
        if Relation.COUPLED in relations:
            why = (
                "one device's gradient is no weighted sum of the ranks' (see "
                "batch-coupled-operation), so that it has no ratio to what was used"
            )
        elif Relation.RANDOM in relations:
            why = "the script draws random numbers in every step, so that no two runs of it agree"
        else:
            why = next((step.why_not for step in steps if step.why_not), "") or (
                "what was used is no weighted sum of the ranks' gradients (see "
                "misweighted-gradients)"
                if steps
                else "no step was looked at closely and replayed"
            )
        return Judgement(
            outcome=Outcome.NOT_APPLICABLE,
            sentence=f"No step could be compared with one device: {why}.",
        )


def _remedy(step: ComparedStep) -> str:
    factor, num_ranks = factor_of(step), len(step.ranks)
    if factor > 1:
        return (
            "Average over ranks exactly once: divide after an all-reduce that sums, and don't "
            "multiply a mean loss by the number of ranks. As it is, the learning rate is "
            f"{factor:.3g} times the one that was set."
        )
    if is_spread_over_ranks(step, factor):
        return (
            "DDP and FSDP divide by the number of ranks already: don't divide again; where the "
            f"loss is a sum divided by the items of all ranks, multiply it by {num_ranks}."
        )
    return "Find what scales the loss or the gradients by a number that depends on the ranks."
