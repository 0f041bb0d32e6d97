"""The check ``unstable-loss``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import ALL_EPOCHS, CANDIDATE_RUN, TRAINING_LOSSES
from scaleproof.checks.script_losses import (
    KNOWN_LOSS,
    ONE_LOSS,
    epochs_of_steps,
    global_losses,
)
from scaleproof.checks.wording import counted, short_percent
from scaleproof.evidence.study import Run, Study
from scaleproof.stats.shares import chance_of_at_least, chance_of_larger_share

WINDOW = 20
"""Steps before a step that say what its loss ought to be about."""
SPIKE_SIGMAS = 8.0
"""A spike lies this many standard deviations (upper quartile over 0.6745) above the median ..."""
SPIKE_SHARE_OF_START = 0.1
"""... and at least this share of the loss at the start above it."""
MIN_JUDGED_STEPS = 10
MAX_NEGATIVE_SHARE = 0.05
"""A loss below zero at more steps than this share has no floor there that it should come near."""
RISE_STANDARD_ERRORS = 4.0
_SIGMA_OF_UPPER_QUARTILE = 0.6745
_SMALLEST_LOSS = 1e-9  # of the loss at the start; below it a ratio of losses is rounding
_WINDOWS_AT_ONCE = 50_000  # a long run needs no more than a few MB at a time


@final
class LossCurve(msgspec.Struct, frozen=True, kw_only=True):
    """How the training loss of one run went. Epochs (or parts) and steps count from 0.

    ``num_spikes`` counts spikes that follow each other without a pause as one, among the
    ``num_judged`` steps that have a full window before them. ``rise`` is how far the last epoch's
    mean loss lies above the lowest one, ``rise_error`` its standard error. ``negative_share``: of
    steps whose loss is below zero.
    """

    run: str
    num_judged: int
    num_spikes: int
    first_spike: tuple[int, int] | None
    first_loss: float
    lowest_loss: float
    lowest_epoch: int
    last_loss: float
    last_epoch: int
    rise_error: float
    negative_share: float = 0.0
    part: str = "epoch"
    """Of a script with fewer than two epochs ``fifth``: an equal part of its steps."""

    @property
    def rise(self) -> float:
        return self.last_loss - self.lowest_loss

    @property
    def rise_share(self) -> float:
        """Of the first epoch's mean loss."""
        return self.rise / self.first_loss if self.first_loss > 0 else 0.0

    @property
    def has_floor(self) -> bool:
        """Zero is the least there is, near enough: shares of a loss mean something."""
        return self.negative_share <= MAX_NEGATIVE_SHARE


@final
class UnstableLossMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``too_short``: candidate runs with too few finite steps to say anything."""

    candidate: tuple[LossCurve, ...]
    baseline_arm: str | None
    baseline: tuple[LossCurve, ...]
    too_short: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnstableLoss(AbstractCheck[UnstableLossMeasurement]):
    """The training loss spikes or rises again, as it does not on one device.

    What it looks for
        Steps whose loss jumps far above that of the steps before, and runs whose last epoch has a
        clearly higher loss than an earlier one.

    Why it matters
        N devices mean a larger batch and usually a larger learning rate, which may be too large.
        Even when training recovers, the final quality then depends on luck, and the next seed
        may not recover.

    How it decides
        Spike: a loss above the median of the 20 steps before by 8 of their standard deviations
        (from the upper quartile, so that skewed noise counts as noise, and at least what is usual
        in the run) and by a tenth of the loss
        at the start; spikes in a row count once. More than `max_spike_share` of the steps, and at
        least two, are a fault when Fisher's exact test at `confidence` shows them to be more than
        the baseline's (without a baseline: an exact binomial test against `max_spike_share`);
        undecided when it can't.
        Rise: the mean of the last epoch lies above the lowest epoch's by more than `max_rise` of
        the first epoch's and by 4 standard errors, in any run. It is no fault when a run of the
        baseline rises at least half as much. A script with fewer than two epochs is cut into five
        equal parts instead; one with several losses, as a GAN, is not judged. Nor is a loss that
        is below zero at more than 5 % of the steps (a policy gradient, which may rise while the
        reward does, or a log-density): there is no floor to measure shares from. Its spikes are
        compared with the baseline's, where there is one.

    What it can't see
        The first 20 steps. Training that is smooth and merely slower, or that ends at another
        loss: see loss-mismatch. Losses that are not finite: see non-finite.

    How to fix it
        Lower the learning rate of the N-device arm (another scaling rule), lengthen its warm-up,
        or clip gradients. Look at the samples of the step named: a rare bad batch spikes on one
        device too.

    References
        Goyal et al. (2017), Accurate, large minibatch SGD, arXiv 1706.02677. Molybog et al. (2023),
        A theory on Adam instability in large-scale machine learning, arXiv 2304.09871.
    """

    name: ClassVar[str] = "unstable-loss"
    question: ClassVar[Question] = Question.AS_GOOD
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (
        CANDIDATE_RUN,
        TRAINING_LOSSES,
        ALL_EPOCHS,
        KNOWN_LOSS,
        ONE_LOSS,
    )

    max_spike_share: float = 0.01
    max_rise: float = 0.1
    confidence: float = 0.95

    def measure(self, study: Study) -> UnstableLossMeasurement:
        candidate = study.runs_of(study.candidate)
        baseline = study.runs_of(study.baseline) if study.baseline is not None else ()
        curves = {
            run.name: _curve(run, is_script=study.is_script) for run in (*candidate, *baseline)
        }
        return UnstableLossMeasurement(
            candidate=tuple(_present(curves, candidate)),
            baseline_arm=study.baseline.name if study.baseline is not None else None,
            baseline=tuple(_present(curves, baseline)),
            too_short=tuple(run.name for run in candidate if curves[run.name] is None),
        )

    def judge(self, measurement: UnstableLossMeasurement) -> Judgement:
        below = [curve for curve in measurement.candidate if not curve.has_floor]
        if below and not measurement.baseline:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence=f"{_below_words(below[0])}: by itself nobody can say whether such a loss "
                "is unstable.",
            )
        rise = self._judge_rise(measurement)
        spikes = self._judge_spikes(measurement)
        for judgement in (rise, spikes):
            if judgement.outcome is Outcome.FAIL:
                return judgement
        if measurement.too_short:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{measurement.too_short[0]} has too few steps to tell whether its loss "
                f"is stable: it takes two epochs of two steps and "
                f"{WINDOW + MIN_JUDGED_STEPS} steps in all.",
                remedy="Train for more epochs.",
            )
        if spikes.outcome is Outcome.UNDECIDED:
            return spikes
        return Judgement(outcome=Outcome.PASS, sentence=f"{rise.sentence} {spikes.sentence}")

    def _judge_rise(self, measurement: UnstableLossMeasurement) -> Judgement:
        rising = [curve for curve in measurement.candidate if self._rises(curve)]
        below = [curve for curve in measurement.candidate if not curve.has_floor]
        if below and not rising:
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{_below_words(below[0])}: whether it rises again is not judged.",
            )
        if not rising:
            return Judgement(
                outcome=Outcome.PASS, sentence="The training loss did not rise again in any run."
            )
        worst = max(rising, key=lambda curve: curve.rise_share)
        words = (
            f"{worst.run}: the training loss rose again from {worst.lowest_loss:.3g} in "
            f"{worst.part} {worst.lowest_epoch + 1} to {worst.last_loss:.3g} in {worst.part} "
            f"{worst.last_epoch + 1}"
        )
        alike = [
            curve
            for curve in measurement.baseline
            if self._rises(curve) and curve.rise_share >= worst.rise_share / 2
        ]
        if alike:
            return Judgement(
                outcome=Outcome.PASS,
                sentence=f"{words}, as it does with {measurement.baseline_arm} (from "
                f"{alike[0].lowest_loss:.3g} to {alike[0].last_loss:.3g}).",
            )
        against = f"; {measurement.baseline_arm} shows no such rise" if measurement.baseline else ""
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{words} ({len(rising)} of {counted(len(measurement.candidate), 'run')})"
            f"{against}.",
            remedy="Lower the learning rate for many devices, or lengthen its warm-up.",
        )

    def _rises(self, curve: LossCurve) -> bool:
        is_clear = curve.rise > RISE_STANDARD_ERRORS * curve.rise_error
        return is_clear and curve.has_floor and curve.rise_share > self.max_rise

    def _judge_spikes(self, measurement: UnstableLossMeasurement) -> Judgement:
        spikes, steps = _total(measurement.candidate)
        base_spikes, base_steps = _total(measurement.baseline)
        words = f"{counted(spikes, 'loss spike')} in {counted(steps, 'step')}"
        if measurement.baseline:
            words += f" against {base_spikes:,} in {base_steps:,} with {measurement.baseline_arm}"
        if spikes < 2 or spikes / steps <= self.max_spike_share:
            return Judgement(outcome=Outcome.PASS, sentence=f"{words}.")
        if measurement.baseline:
            p_value = chance_of_larger_share(spikes, steps, base_spikes, base_steps)
            is_alike = base_spikes / base_steps > self.max_spike_share
        else:
            p_value = chance_of_at_least(spikes, steps, self.max_spike_share)
            is_alike = False
        curve = next(c for c in measurement.candidate if c.first_spike is not None)
        assert curve.first_spike is not None  # as selected
        epoch, step = curve.first_spike
        where = f"{short_percent(spikes / steps)}, first in {curve.run}, {curve.part} {epoch + 1}, "
        words = f"{words} ({where}step {step + 1})"
        if p_value <= 1 - self.confidence:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{words}.",
                remedy="Lower the learning rate for many devices, lengthen its warm-up or clip "
                "gradients; look at the samples of the step named.",
                p_value=p_value,
            )
        if is_alike:
            return Judgement(outcome=Outcome.PASS, sentence=f"{words}: not clearly more.")
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=f"{words}: too few to tell chance from instability.",
            remedy="Add seeds or epochs.",
        )


def _below_words(curve: LossCurve) -> str:
    return (
        f"{curve.run}: {short_percent(curve.negative_share)} of the training losses lie below "
        "zero, as those of policy gradients and log-densities do"
    )


def _present(curves: dict[str, LossCurve | None], runs: tuple[Run, ...]) -> Iterator[LossCurve]:
    yield from (curve for run in runs if (curve := curves[run.name]) is not None)


def _total(curves: tuple[LossCurve, ...]) -> tuple[int, int]:
    return sum(c.num_spikes for c in curves), sum(c.num_judged for c in curves)


def _curve(run: Run, *, is_script: bool) -> LossCurve | None:
    """None when the run is too short: see the sentence in ``judge``."""
    if is_script:
        all_losses = global_losses(run)
        epoch_of, step_of, is_by_epoch = epochs_of_steps(run, len(all_losses))
    else:
        all_losses, is_by_epoch = run.step_losses, True
        num_steps = [record.num_steps for record in run.ranks[0].epochs]
        epoch_of = np.repeat(np.arange(len(num_steps)), num_steps)[: len(all_losses)]
        step_in_epoch = np.concatenate([np.arange(num) for num in num_steps] or [np.zeros(0)])
        step_of = step_in_epoch[: len(all_losses)]
    is_judged = np.isfinite(all_losses)
    if is_script:  # the last epoch may have been left after one step
        epochs, place, sizes = np.unique(
            epoch_of[is_judged], return_inverse=True, return_counts=True
        )
        is_judged[is_judged] = sizes[place] > 1
    losses, epoch_of, step_of = all_losses[is_judged], epoch_of[is_judged], step_of[is_judged]
    epochs, sizes = np.unique(epoch_of, return_counts=True)
    if len(epochs) < 2 or sizes.min() < 2 or len(losses) < WINDOW + MIN_JUDGED_STEPS:
        return None
    by_epoch = [losses[epoch_of == epoch] for epoch in epochs]
    means = np.array([values.mean() for values in by_epoch])
    variances = np.array([values.var(ddof=1) / len(values) for values in by_epoch])
    lowest = int(means.argmin())
    onsets = spike_onsets(losses)
    return LossCurve(
        run=run.name,
        num_judged=len(losses) - WINDOW,
        num_spikes=len(onsets),
        first_spike=(int(epoch_of[onsets[0]]), int(step_of[onsets[0]])) if len(onsets) else None,
        part="epoch" if is_by_epoch else "fifth",
        first_loss=float(means[0]),
        lowest_loss=float(means[lowest]),
        lowest_epoch=int(epochs[lowest]),
        last_loss=float(means[-1]),
        last_epoch=int(epochs[-1]),
        rise_error=float(np.sqrt(variances[lowest] + variances[-1])),
        negative_share=float((losses < 0).mean()),
    )


def spike_onsets(losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the first step of each spike; ``losses`` has shape ``(num_steps,)``, all finite."""
    if len(losses) <= WINDOW:
        return np.zeros(0, np.int64)
    start = float(np.median(losses[:WINDOW]))
    windows = sliding_window_view(losses, WINDOW)[:-1]  # the one that ends just before each step
    chunks = [
        np.percentile(windows[at : at + _WINDOWS_AT_ONCE], [50, 75], axis=1)
        for at in range(0, len(windows), _WINDOWS_AT_ONCE)
    ]
    median, quartile = np.concatenate(chunks, axis=1)
    sigma = (quartile - median) / _SIGMA_OF_UPPER_QUARTILE
    # A window may be calm by chance: the noise usual in this run, in proportion, is the least.
    is_ratio = median > _SMALLEST_LOSS * start
    usual = float(np.median(sigma[is_ratio] / median[is_ratio])) if is_ratio.any() else 0.0
    sigma = np.maximum(sigma, usual * median)
    is_spike = losses[WINDOW:] > median + np.maximum(
        SPIKE_SIGMAS * sigma, SPIKE_SHARE_OF_START * start
    )
    is_onset = is_spike & ~np.concatenate([[False], is_spike[:-1]])
    return np.flatnonzero(is_onset) + WINDOW
