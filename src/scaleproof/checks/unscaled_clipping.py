"""The check ``unscaled-clipping``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, CLOSE_UPS, SCRIPT, STEPS
from scaleproof.checks.probes import where_of
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.observations import ProbeRecord, StepFlag
from scaleproof.evidence.study import Run, Study


@final
class ScaledClip(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's clipping at one step that a ``GradScaler`` scaled.

    ``scale``: what the gradients were still multiplied with, 1 after ``unscale_``. ``norm``: what
    clipping measured, ``limit``: what it allowed; None when unknown (shards).
    """

    run: str
    rank: int
    step: int
    where: str
    clip_where: str
    scale: float
    norm: float | None
    limit: float | None

    @property
    def is_reached(self) -> bool:
        """Gradients were made smaller; where that is not known, they may have been."""
        return self.norm is None or self.limit is None or self.norm > self.limit


@final
class UnscaledMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_scaled``: steps of all ranks that were looked at and came through a ``GradScaler``."""

    num_scaled: int
    clips: tuple[ScaledClip, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnscaledClipping(AbstractCheck[UnscaledMeasurement]):
    """Gradients are clipped while they are still multiplied by the loss scale.

    What it looks for
        `clip_grad_norm_` or `clip_grad_value_` between `scaler.scale(loss).backward()` and
        `scaler.step(optimizer)` without `scaler.unscale_(optimizer)` before it.

    Why it matters
        The gradients are, say, 65,536 times as large as they are meant, and all of them are clipped
        to the limit; then they are divided by the scale. What is left is 65,536 times too small a
        limit: training crawls, and changes its pace whenever the scaler changes its scale.

    How it decides
        At every step that was looked at: whether the gradients were unscaled when clipping was
        called. It fails when they were not, the scale was above `max_scale`, and the limit was
        reached.

    What it can't see
        Clipping by hand. A scaler that is not torch's.

    How to fix it
        Call `scaler.unscale_(optimizer)` once per step, after the last backward and before
        clipping; `scaler.step` knows that it was done.

    References
        PyTorch, Automatic Mixed Precision examples, Gradient clipping. pytorch/pytorch#136009.
    """

    name: ClassVar[str] = "unscaled-clipping"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, STEPS, CLOSE_UPS)

    max_scale: float = 1.0

    def measure(self, study: Study) -> UnscaledMeasurement:
        runs = study.runs_of(study.candidate)
        looks = [found for run in runs for found in _clips(run)]
        return UnscaledMeasurement(
            num_scaled=len(looks), clips=tuple(clip for clip in looks if clip is not None)
        )

    def judge(self, measurement: UnscaledMeasurement) -> Judgement:
        if measurement.num_scaled == 0:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No step that was looked at came through a GradScaler.",
            )
        scaled = [clip for clip in measurement.clips if clip.scale > self.max_scale]
        wrong = [clip for clip in scaled if clip.is_reached]
        if wrong:
            return _judge_wrong(wrong)
        if not measurement.clips:
            sentence = f"{counted(measurement.num_scaled, 'scaled step')} without clipping."
        elif scaled:
            sentence = (
                f"Gradients were clipped while they were scaled ({_at(scaled[0])}), but the limit "
                "was never reached."
            )
        else:
            sentence = (
                f"Gradients were unscaled before they were clipped, at "
                f"{counted(len(measurement.clips), 'step')} of all ranks."
            )
        return Judgement(outcome=Outcome.PASS, sentence=sentence)


def _judge_wrong(wrong: list[ScaledClip]) -> Judgement:
    first = wrong[0]
    ranks = sorted({clip.rank for clip in wrong if clip.run == first.run})
    steps = {(clip.run, clip.where, clip.step) for clip in wrong}
    measured = ""
    if first.norm is not None and first.limit is not None:
        measured = f": a norm of {first.norm:.4g} was measured, {first.limit:.4g} allowed"
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{first.run}, rank{'s' if len(ranks) > 1 else ''} {listed(ranks, most=8)}, step "
        f"{first.step}: gradients were clipped{_at(first, ' at ')} while they were multiplied by "
        f"the loss scale, {first.scale:,.10g} ({first.where}){measured}; so at "
        f"{counted(len(steps), 'step')}.",
        remedy="Call scaler.unscale_(optimizer) before clipping.",
    )


def _at(clip: ScaledClip, before: str = "") -> str:
    return f"{before}{clip.clip_where}" if clip.clip_where or before == "" else ""


def _clips(run: Run) -> Iterator[ScaledClip | None]:
    """Of each rank's steps that were scaled and looked at: its clipping; None without one."""
    for rank in run.ranks:
        table = rank.observed_steps
        scales = {(p.optimizer, p.step): p.grad_scale for p in rank.of(ProbeRecord)}
        for look in rank.of(CloseUpRecord):
            scale = scales.get((look.optimizer, look.step))
            if scale is None or not 1 <= look.step <= len(table):
                continue
            row = table[look.step - 1]
            if not int(row["flags"]) & StepFlag.SCALED:
                continue
            if not int(row["flags"]) & StepFlag.CLIPPED:
                yield None
                continue
            norm, limit = float(row["clip_norm"]), float(row["clip_max"])
            yield ScaledClip(
                run=run.name,
                rank=rank.rank,
                step=look.step,
                where=where_of(rank, look.optimizer),
                clip_where=look.clip_where,
                scale=scale if look.is_clipped_scaled else 1.0,
                norm=norm if norm == norm else None,
                limit=limit if limit == limit else None,
            )
