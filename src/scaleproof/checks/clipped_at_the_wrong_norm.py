"""The check ``clipped-at-the-wrong-norm``."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.clipping_facts import ClipFacts, StageNorms, clip_facts, stage_norms
from scaleproof.checks.needs import CANDIDATE_RUN, CLOSE_UPS, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.study import Study

_MIN_TENSORS = 3
"""Fewer that are clipped one by one are parts, and may be meant so."""


_CONSTANT = 0.01
"""Relative difference of factors that are one number: norms change by more from step to step."""


@final
class WrongNormMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``steps``: that were looked at. ``stages``: runs whose ranks own different tensors."""

    steps: tuple[ClipFacts, ...]
    stages: tuple[StageNorms, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedAtTheWrongNorm(AbstractCheck[WrongNormMeasurement]):
    """Gradients are clipped by the norm of something else than the whole gradient.

    What it looks for
        Clipping by the norm of a rank's own shard, of every tensor by itself, of one pipeline
        stage, or by a norm that counts replicated tensors once for each rank.

    Why it matters
        The limit is another than the one that was set, and depends on the number of ranks: a norm
        counted on 64 ranks is 8 times too large, one of a shard is 8 times too small. Where ranks
        clip by different factors, the parts of one gradient no longer belong together.

    How it decides
        The norm that clipping measured, or that the factor shows by which the gradient was made
        smaller, on every rank, against the norm of all that clipping was given (over all shards;
        replicated tensors once). It fails at `min_steps` steps where the factor that comes of it is
        off by more than `tolerance`, if the norm is that of the rank's own shard or off by the root
        of the number of ranks; if ranks made one gradient smaller by different factors; if
        `clip_grad_norm_` was called for each of three or more tensors alone; if ranks that own
        different tensors clip by unequal norms; and if a replay on one device made the same
        gradient smaller by another factor. Clipping two parts of a model apart is no fault, and
        neither is a factor that nothing was called for and that is the same at all steps, or the
        number of ranks or backwards: that is no clipping (see misscaled-gradients).

    What it can't see
        A limit that is never reached. Clipping single values. Norms of another kind (`norm_type`)
        are told from wrong ones by the replay only.

    How to fix it
        Call `torch.nn.utils.clip_grad_norm_(model.parameters(), limit)` once, on the model's own
        (sharded) parameters. By hand: add up squares over shards with an all-reduce, replicated
        tensors once; over pipeline stages likewise.

    References
        pytorch/pytorch#72548, #170862, pytorch/torchtitan#596, PrimeIntellect-ai/OpenDiloco PR#6,
        deepspeedai/DeepSpeed PR#1801.
    """

    name: ClassVar[str] = "clipped-at-the-wrong-norm"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS, CLOSE_UPS)
    consequence_of: ClassVar[tuple[str, ...]] = (
        "unsynced-gradients",
        "clipped-before-reduction",
        "unscaled-clipping",
        "schedule-drift",
    )

    tolerance: float = 0.05
    min_steps: int = 2

    def measure(self, study: Study) -> WrongNormMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        stages = [stage_norms(run) for run in runs]
        return WrongNormMeasurement(
            steps=tuple(facts for run in runs for facts in clip_facts(run)),
            stages=tuple(stage for stage in stages if stage is not None),
        )

    def judge(self, measurement: WrongNormMeasurement) -> Judgement:
        for stage in measurement.stages:
            return _judge_stages(stage, is_sure=stage.num_steps >= self.min_steps)
        told = [(step, _is_scaled(step, measurement.steps)) for step in measurement.steps]
        wrong = [
            (step, why)
            for step, is_scaled in told
            if (why := self._what_is_wrong(step, is_scaled=is_scaled))
        ]
        if wrong:
            return self._judge_wrong(wrong)
        clipped = [s for s, is_scaled in told if s.is_called or (_is_smaller(s) and not is_scaled)]
        if not measurement.steps:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No step was looked at on all ranks.",
                remedy="Check the script for a few steps.",
            )
        if not clipped:
            return Judgement(outcome=Outcome.PASS, sentence="No gradient was clipped.")
        first = clipped[0]
        parts = ""
        if 0 < first.num_first < first.num_clipped:
            parts = ", in parts: the first of "
            parts += f"{first.num_first} of {counted(first.num_clipped, 'tensor')}"
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"Gradients were clipped at {counted(len(clipped), 'step')}{_at(first)}"
            f"{parts}, on all ranks by the norm of what was given.",
        )

    def _judge_wrong(self, wrong: Sequence[tuple[ClipFacts, str]]) -> Judgement:
        step, why = wrong[0]
        is_sure = len(wrong) >= self.min_steps
        return Judgement(
            outcome=Outcome.FAIL if is_sure else Outcome.UNDECIDED,
            sentence=f"{step.run}, step {step.step} ({step.where}{_at(step)}): {why}; so at "
            f"{counted(len(wrong), 'step')}.",
            remedy="Call torch.nn.utils.clip_grad_norm_ once for all of the model's own parameters."
            if is_sure
            else "Look at more steps (--steps).",
        )

    def _what_is_wrong(self, step: ClipFacts, *, is_scaled: bool) -> str:
        """Empty when nothing is."""
        return (
            self._per_tensor(step)
            or self._by_other_norms(step)
            or self._by_unequal_factors(step)
            or ("" if is_scaled else self._by_another_than_replayed(step))
        )

    def _per_tensor(self, step: ClipFacts) -> str:
        is_one_by_one = step.num_first == 1 and step.num_clipped >= _MIN_TENSORS
        if not is_one_by_one or step.num_clipped < step.num_tensors:
            return ""
        return f"each of {counted(step.num_clipped, 'tensor')} is clipped by its own norm"

    def _by_other_norms(self, step: ClipFacts) -> str:
        """Norms that are another's, and are known to be: another kind of norm is not."""
        whole, limit, num_ranks = step.whole, step.limit, len(step.ranks)
        if whole is None or limit is None:
            return ""
        for rank, norm, own in zip(step.ranks, step.norms, step.own, strict=True):
            if norm is None or own is None or not self._is_apart(norm, whole, limit):
                continue
            words = f"rank {rank} clips by a norm of {norm:.4g}, the whole gradient's is "
            words += f"{whole:.4g}: "
            if step.is_sharded and abs(norm / own - 1) <= self.tolerance:
                return f"{words}it is that of the rank's own shard"
            if abs(norm / (sqrt(num_ranks) * whole) - 1) <= self.tolerance / 2:
                return f"{words}it counts the same tensors on each of {num_ranks} ranks"
        return ""

    def _is_apart(self, norm: float, whole: float, limit: float) -> bool:
        factors = min(1.0, limit / norm), min(1.0, limit / whole)
        return abs(factors[0] - factors[1]) > self.tolerance * max(factors)

    def _by_unequal_factors(self, step: ClipFacts) -> str:
        factors = [factor for factor in step.factors if factor is not None]
        if len(factors) < len(step.ranks):
            return ""
        if max(factors) - min(factors) <= self.tolerance * max(factors):
            return ""
        words = listed([f"{factor:.3g}" for factor in factors], most=8)
        kind = "their shards of one gradient" if step.is_sharded else "one gradient"
        return f"ranks {listed(step.ranks, most=8)} multiplied {kind} by {words}"

    def _by_another_than_replayed(self, step: ClipFacts) -> str:
        factor, expected = step.factors[0], step.replayed
        if factor is None or expected is None or max(factor, expected) > 1 + self.tolerance:
            return ""
        ratio = expected / factor
        if abs(factor - expected) <= self.tolerance * max(factor, expected):
            return ""
        num_ranks = len(step.ranks)
        why = ""
        for name, power in (("the root of the number", 0.5), ("the number", 1.0)):
            for over, exponent in (("", power), ("1 over ", -power)):
                if abs(ratio / num_ranks**exponent - 1) <= self.tolerance / 2:
                    why = f" ({over}{name} of ranks, {num_ranks})"
        return (
            f"the gradient is multiplied by {factor:.3g} and by {expected:.3g} on one device, from "
            f"the same gradient: it is clipped by a norm {ratio:.3g} times as large{why}"
        )


def _is_scaled(step: ClipFacts, steps: Sequence[ClipFacts]) -> bool:
    """Nothing was called to clip, and the factor is no norm's: it is that of all steps of the
    optimizer, or a number that a division too much or too little leaves."""
    factor = step.factors[0]
    if step.is_called or factor is None:
        return False
    own = [s for s in steps if (s.run, s.where) == (step.run, step.where) and not s.is_called]
    factors = [one.factors[0] for one in own if one.factors[0] is not None]
    replayed = [one.replayed for one in own if one.replayed is not None]
    is_constant = len(factors) > 1 and all(
        max(some, default=1.0) - min(some, default=1.0) <= _CONSTANT * max(some, default=1.0)
        for some in (factors, replayed)
    )
    numbers = {len(step.ranks), step.num_backwards, len(step.ranks) * step.num_backwards}
    is_named = any(_is_near(factor, n) or _is_near(factor, 1 / n) for n in numbers)
    is_unclipped = step.replayed is not None and _is_near(step.replayed, 1.0)
    return is_constant or (is_named and is_unclipped)


def _is_near(value: float, expected: float) -> bool:
    return abs(value - expected) <= _CONSTANT * expected


def _is_smaller(step: ClipFacts) -> bool:
    return any(factor is not None and factor < 0.99 for factor in step.factors)


def _at(step: ClipFacts) -> str:
    return f", clipping at {step.clip_where}" if step.clip_where else ""


def _judge_stages(stage: StageNorms, *, is_sure: bool) -> Judgement:
    norms = listed([f"{norm:.4g}" for norm in stage.norms], most=8)
    return Judgement(
        outcome=Outcome.FAIL if is_sure else Outcome.UNDECIDED,
        sentence=f"{stage.run}, step {stage.step}: ranks {listed(stage.ranks, most=8)} own "
        f"different tensors and clip by norms of their own, {norms}, to {stage.limit:.4g}: stages "
        f"of one model are made smaller by different factors; so at "
        f"{counted(stage.num_steps, 'step')}.",
        remedy="Take the norm over all stages: add up the squares of the stages' norms with an "
        "all-reduce, then clip each stage by the root of the sum.",
    )
