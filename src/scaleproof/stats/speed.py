"""How many times faster the candidate arm trains than the baseline arm, with its uncertainty.

Formula: the arms take turns epoch by epoch (A1 B1 A2 B2 ...), so the two epochs with the same
number ran next to each other in time. For each such pair take ``log(t_baseline / t_candidate)``;
the speed-up is ``exp`` of the mean and its interval ``exp`` of a t-interval (equivalently: the
ratio of geometric means). The first epoch of every run is warm-up and is dropped. With three or
more seeds the mean of each seed is one observation (``df = seeds - 1``); with one or two, each
pair of epochs is.

Source: paired differences of logarithms; Fleming and Wallace, How not to lie with statistics,
CACM 29(3), 1986 (ratios are averaged geometrically); Kalibera and Jones, Rigorous benchmarking in
reasonable time, ISMM 2013 (repeat at the highest level that varies: the run).

Assumes that what slows the machine down hits both epochs of a pair alike, and that the means are
near normal on the log scale. An interval over epochs (one or two seeds) also assumes that epochs
of a run are independent: it leaves out how much one run differs from the next, and is therefore
narrower than it should be.

What the number does not mean: that another machine, batch size or number of devices would see the
same; nor time to a given accuracy, since nothing here knows about learning.
"""

from collections.abc import Sequence
from typing import Literal, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import EvidenceError, UsageError
from scaleproof.stats.numerics import t_probability_below, t_quantile
from scaleproof.stats.sample_size import repetitions_to_decide

NUM_WARM_UP_EPOCHS = 1
MIN_SEEDS_FOR_RUNS = 3
"""From this many seeds on, the run is the unit that varies: one or two show too little of it."""


@final
class SpeedUp(msgspec.Struct, frozen=True, kw_only=True):
    """Speed-up and what follows from it; every interval holds ``confidence``, both sides.

    ``efficiency`` is ``speed_up / num_devices``; ``time_reduction`` is ``1 - 1 / speed_up``, the
    share of the baseline's epoch time that is saved (negative: the candidate is slower). The epoch
    times are medians over the pairs used. A single pair of epochs gives the interval (0, inf).
    ``log_standard_error`` is that of ``log(speed_up)``: 0 when all pairs agree exactly, inf for a
    single one.
    """

    num_runs: int
    num_epoch_pairs: int
    num_devices: float
    baseline_epoch_time_s: float
    candidate_epoch_time_s: float
    speed_up: float
    speed_up_low: float
    speed_up_high: float
    efficiency: float
    efficiency_low: float
    efficiency_high: float
    time_reduction: float
    time_reduction_low: float
    time_reduction_high: float
    varies_over: Literal["runs", "epochs"]
    confidence: float
    log_standard_error: float
    degrees_of_freedom: int


def measure_speed_up(
    baseline_times_s: Sequence[NDArray[np.float64]],
    candidate_times_s: Sequence[NDArray[np.float64]],
    *,
    num_devices: float,
    confidence: float = 0.95,
) -> SpeedUp:
    """Compare the epoch times of two arms, one array of shape ``(num_epochs,)`` per paired seed.

    The arrays hold every epoch, the first one included: it is dropped here. Where one run of a
    pair is shorter, the epochs that only the other one has are left out; a seed in which nothing
    remains counts for nothing. ``num_devices`` is the number of devices of the candidate for each
    one of the baseline.

    Raises ``EvidenceError`` for a time that is not positive and finite and when no pair of epochs
    remains; ``UsageError`` for an impossible ``confidence`` or ``num_devices``.
    """
    _check_request(num_devices, confidence)
    log_ratios, baseline_s, candidate_s = _pair_epochs(baseline_times_s, candidate_times_s)
    pooled = np.concatenate(log_ratios)
    varies_over: Literal["runs", "epochs"]
    if len(log_ratios) >= MIN_SEEDS_FOR_RUNS:
        varies_over = "runs"
        observations = np.array([ratios.mean() for ratios in log_ratios])
    else:
        varies_over = "epochs"
        observations = pooled
    mean = float(observations.mean())
    df = len(observations) - 1
    if df == 0:
        standard_error = half_width = np.inf
    else:
        standard_error = float(observations.std(ddof=1)) / np.sqrt(len(observations))
        half_width = t_quantile((1 - confidence) / 2, df) * standard_error
    with np.errstate(over="ignore"):  # too wide for a number: inf, as for a single pair
        bounds = np.exp([mean, mean - half_width, mean + half_width])
    estimate, low, high = (float(bound) for bound in bounds)
    return SpeedUp(
        num_runs=len(log_ratios),
        num_epoch_pairs=len(pooled),
        num_devices=num_devices,
        baseline_epoch_time_s=float(np.median(baseline_s)),
        candidate_epoch_time_s=float(np.median(candidate_s)),
        speed_up=estimate,
        speed_up_low=low,
        speed_up_high=high,
        efficiency=estimate / num_devices,
        efficiency_low=low / num_devices,
        efficiency_high=high / num_devices,
        time_reduction=1 - 1 / estimate,
        time_reduction_low=1 - 1 / low if low > 0 else -np.inf,
        time_reduction_high=1 - 1 / high,
        varies_over=varies_over,
        confidence=confidence,
        log_standard_error=float(standard_error),
        degrees_of_freedom=df,
    )


def p_value_at_least(speed: SpeedUp, wanted: float) -> float:
    """Probability of a speed-up as low as this one if the true one were ``wanted``, or more.

    One-sided t-test on the log scale. Without variation: 0 below ``wanted``, else 1; with a single
    pair of epochs nothing is known: 1.
    """
    distance = float(np.log(speed.speed_up) - np.log(wanted))
    if speed.degrees_of_freedom == 0:
        return 1.0
    if speed.log_standard_error == 0:
        return 0.0 if distance < 0 else 1.0
    return t_probability_below(distance / speed.log_standard_error, speed.degrees_of_freedom)


def repetitions_to_decide_speed(speed: SpeedUp, wanted: float) -> int | None:
    """How many in all - seeds if it ``varies_over`` runs, else pairs of epochs - would decide
    whether the speed-up is ``wanted``, should the mean and spread stay as they are.

    None when that is unknown (a single pair) or no sensible number would do.
    """
    if speed.degrees_of_freedom == 0:
        return None
    return repetitions_to_decide(
        gap=abs(float(np.log(speed.speed_up) - np.log(wanted))),
        standard_deviation=speed.log_standard_error * float(np.sqrt(speed.degrees_of_freedom + 1)),
        tail=(1 - speed.confidence) / 2,
    )


def _pair_epochs(
    baseline_times_s: Sequence[NDArray[np.float64]],
    candidate_times_s: Sequence[NDArray[np.float64]],
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Per seed the log ratios of its pairs of epochs; and the times used, of all seeds."""
    if len(baseline_times_s) != len(candidate_times_s):
        raise EvidenceError(
            f"{len(baseline_times_s)} baseline runs and {len(candidate_times_s)} candidate runs "
            "can't be paired. Give both arms the same seeds."
        )
    log_ratios: list[NDArray[np.float64]] = []
    used: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for index, (first, second) in enumerate(zip(baseline_times_s, candidate_times_s, strict=True)):
        _check_times(first, arm="baseline", index=index)
        _check_times(second, arm="candidate", index=index)
        end = min(len(first), len(second))
        baseline_s = np.asarray(first, dtype=np.float64)[NUM_WARM_UP_EPOCHS:end]
        candidate_s = np.asarray(second, dtype=np.float64)[NUM_WARM_UP_EPOCHS:end]
        if len(baseline_s):
            log_ratios.append(np.log(baseline_s) - np.log(candidate_s))
            used.append((baseline_s, candidate_s))
    if not used:
        raise EvidenceError(
            f"no epoch after the warm-up was run by both arms in any of {len(baseline_times_s)} "
            f"seeds, expected one or more. Train for {NUM_WARM_UP_EPOCHS + 1} epochs or more."
        )
    baseline, candidate = zip(*used, strict=True)
    return log_ratios, np.concatenate(baseline), np.concatenate(candidate)


def _check_request(num_devices: float, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(
            f"confidence is {confidence}, expected a number between 0 and 1, such as 0.95."
        )
    if not (np.isfinite(num_devices) and num_devices > 0):
        raise UsageError(f"num_devices is {num_devices}, expected a positive number.")


def _check_times(times_s: NDArray[np.float64], *, arm: str, index: int) -> None:
    wrong = np.flatnonzero(~(np.isfinite(times_s) & (np.asarray(times_s) > 0)))
    if len(wrong):
        raise EvidenceError(
            f"epoch {wrong[0]} of the {arm}'s run {index} took {times_s[wrong[0]]} s, expected a "
            "positive number. The machine's clock was set while it ran, or the records were "
            "changed: run this seed again."
        )
