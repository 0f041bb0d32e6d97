"""The check ``metric-drop``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.final_scores import has_too_many_classes
from scaleproof.checks.metric_names import (
    Direction,
    direction_of,
    is_accuracy,
    is_loss,
    is_of_evaluation,
    is_of_training,
    may_be_share,
)
from scaleproof.checks.needs import BASELINE, METRICS, PAIRED_RUN, SCRIPT, has_predictions
from scaleproof.checks.paired_quality import DIVERGED_REMEDY, MIN_SEEDS, name_seeds
from scaleproof.checks.repeats import PASS_THE_SEED, Repeats, independent_pairs, measure_repeats
from scaleproof.checks.wording import counted, listed, percent, signed
from scaleproof.evidence.observations import LoaderRecord, MetricRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Pair, Run, Study
from scaleproof.stats.noninferiority import NonInferiority, measure_noninferiority
from scaleproof.stats.shares import holm

NO_PREDICTIONS = Need(
    text="figures only: the script reported predictions, from which accuracy-drop judges it",
    kind="structure",
    is_met=lambda study: not has_predictions(study) or has_too_many_classes(study),
)


@final
class MetricValues(msgspec.Struct, frozen=True, kw_only=True):
    """The last value that rank 0 reported, one per seed; None where it is not finite.

    ``is_share``: from 0 to 1, and compared as it is; others are compared in relation to ``scales``,
    one per seed: the size of the baseline's figure, of a loss at least its fall in training.
    ``num_samples`` of the evaluation set, when known.
    """

    name: str
    direction: Direction
    is_share: bool
    seeds: tuple[int, ...]
    baseline: tuple[float | None, ...]
    candidate: tuple[float | None, ...]
    scales: tuple[float, ...]
    num_samples: int | None

    @property
    def gains(self) -> NDArray[np.float64]:
        """Candidate minus baseline, higher is better, shape ``(num_seeds,)``."""
        difference = np.array(self.candidate, np.float64) - np.array(self.baseline, np.float64)
        better = difference if self.direction == "higher" else -difference
        return better if self.is_share else better / np.array(self.scales)


@final
class MetricDropMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``left_out``: figures that were reported and are not judged."""

    num_devices: int
    num_baseline_devices: int
    metrics: tuple[MetricValues, ...]
    left_out: tuple[str, ...]
    repeats: Repeats

    @property
    def devices(self) -> str:
        return counted(self.num_devices, "device")

    @property
    def baseline_devices(self) -> str:
        return "one" if self.num_baseline_devices == 1 else str(self.num_baseline_devices)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDrop(AbstractCheck[MetricDropMeasurement]):
    """A figure of quality that the script reported is worse on N devices than on one.

    What it looks for
        Figures of evaluation - accuracy, F1, loss, perplexity, whatever the script reports - whose
        last value is worse than the baseline's by more than `max_drop` (of shares, 0.01 is one
        percentage point) or `max_relative_drop` (of others).

    Why it matters
        N devices see a larger batch, take fewer steps and split the data; each can cost quality
        without any error, and a faster training of a worse model is no gain.

    How it decides
        For scripts that report figures but no predictions. Which way is better is told by the
        name: accuracy, F1, AUC, recall, precision, IoU, BLEU, R2, mAP are better when higher; loss,
        error, perplexity, MSE, RMSE, MAE when lower. Others are left out, and so are figures of
        training. Runs are paired by seed, and the mean difference of rank 0's last values gets a
        t-interval over seeds whose bounds hold `confidence` each; for shares of a known number of
        samples it is never narrower than these allow. Figures that are no shares are taken
        relative to the baseline's value, a loss to its fall in training where that is more. It
        passes when all figures are shown to be within their margin, fails when one is shown to be
        beyond it after Holm's correction for their number, and is undecided otherwise, as it is
        with one seed. Repeats that are the same run again count once. A figure that is not finite
        on N devices only fails.

    What it can't see
        How the figure was computed: a metric of one rank's part (metric-from-one-shard) or over
        padding (metric-over-padding) is compared as it was reported. Single classes and samples:
        report predictions for that.

    How to fix it
        Check the learning rate: with Adam it grows with the square root of the global batch, with
        SGD linearly, and needs warm-up. Train for the same number of samples. For a sharper answer,
        call `scaleproof.report_predictions` in the evaluation.

    References
        Schuirmann 1987, two one-sided tests, J. Pharmacokin. Biopharm. 15. Holm 1979, Scand. J.
        Stat. 6. Bouthillier et al. 2021, Accounting for variance in machine learning benchmarks,
        arXiv 2103.03098.
    """

    name: ClassVar[str] = "metric-drop"
    question: ClassVar[Question] = Question.AS_GOOD
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (BASELINE, SCRIPT, PAIRED_RUN, NO_PREDICTIONS, METRICS)

    max_drop: float = 0.01
    max_relative_drop: float = 0.02
    confidence: float = 0.95

    def measure(self, study: Study) -> MetricDropMeasurement:
        assert study.baseline is not None  # a need
        pairs = independent_pairs(study)
        names = sorted({name for pair in pairs for name in _reported(pair.candidate)})
        found = {name: _values(name, pairs) for name in names}
        return MetricDropMeasurement(
            num_devices=study.candidate.num_devices,
            num_baseline_devices=study.baseline.num_devices,
            metrics=tuple(values for values in found.values() if values is not None),
            left_out=tuple(name for name, values in found.items() if values is None),
            repeats=measure_repeats(study),
        )

    def judge(self, measurement: MetricDropMeasurement) -> Judgement:
        metrics = measurement.metrics
        if not metrics:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="Both arms reported no figure of evaluation whose name says which way is "
                f"better{_listed_after(': ', measurement.left_out)}.",
                remedy="Report one, for example scaleproof.report_metrics(accuracy=...).",
            )
        for values in metrics:
            if (refusal := _judge_finite(values, measurement)) is not None:
                return refusal
        if any(len(values.seeds) < 2 for values in metrics):
            return _judge_single_seed(metrics[0], measurement)
        results = [self._result(values) for values in metrics]
        p_values = holm([result.p_value_worse for result in results])
        not_judged = _listed_after(" Not judged: ", measurement.left_out)
        not_judged += "." if not_judged else ""
        not_judged += measurement.repeats.sentence
        lost = [i for i, p_value in enumerate(p_values) if p_value <= 1 - self.confidence]
        if lost:
            guilty = min(lost, key=lambda i: results[i].mean_difference / self._margin(metrics[i]))
            others = [metrics[i].name for i in lost if i != guilty]
            also = _listed_after(" Also shown to be worse: ", others)
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=self._sentence(metrics[guilty], results[guilty], measurement)
                + (f"{also}." if also else "")
                + not_judged,
                remedy="Check how the learning rate was scaled to the global batch and its "
                "warm-up, then train one device at the global batch: if it is as bad, the batch "
                "size is the reason, otherwise look at data and gradients.",
                p_value=min(p_values),
            )
        unshown = [i for i, values in enumerate(metrics) if results[i].low < -self._margin(values)]
        if unshown:
            widest = min(unshown, key=lambda i: results[i].low / self._margin(metrics[i]))
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=self._sentence(metrics[widest], results[widest], measurement) + not_judged,
                remedy=_more_seeds([results[i] for i in unshown], measurement.repeats),
            )
        sentences = [
            self._sentence(values, result, measurement)
            for values, result in zip(metrics, results, strict=True)
        ]
        return Judgement(outcome=Outcome.PASS, sentence=" ".join(sentences[:3]) + not_judged)

    def _margin(self, values: MetricValues) -> float:
        return self.max_drop if values.is_share else self.max_relative_drop

    def _result(self, values: MetricValues) -> NonInferiority:
        return measure_noninferiority(
            values.gains,
            margin=self._margin(values),
            confidence=self.confidence,
            num_samples=values.num_samples if values.is_share else None,
        )

    def _sentence(
        self, values: MetricValues, result: NonInferiority, measurement: MetricDropMeasurement
    ) -> str:
        unit = "points" if values.is_share else "%"
        better = "" if values.direction == "higher" else ", lower is better"
        return (
            f"{_means(values, measurement)}{better}: {signed(100 * result.mean_difference, 2)} "
            f"{unit} ({100 * (2 * self.confidence - 1):.3g} % interval "
            f"{signed(100 * result.low, 2)} to {signed(100 * result.high, 2)}, over "
            f"{counted(result.num_seeds, 'seed')}; allowed "
            f"{signed(-100 * self._margin(values), 2)})."
        )


def _listed_after(words: str, names: Sequence[str]) -> str:
    return f"{words}{listed(names, most=5)}" if names else ""


def _means(values: MetricValues, measurement: MetricDropMeasurement) -> str:
    """The figure in both arms, as far as it is finite."""

    def mean(of: tuple[float | None, ...]) -> str:
        number = float(np.mean([value for value in of if value is not None]))
        return percent(number, 2) if values.is_share else f"{number:.4g}"

    return (
        f"{values.name} with {measurement.devices} is {mean(values.candidate)}, with "
        f"{measurement.baseline_devices} {mean(values.baseline)}"
    )


def _judge_finite(values: MetricValues, measurement: MetricDropMeasurement) -> Judgement | None:
    broken = [s for s, v in zip(values.seeds, values.candidate, strict=True) if v is None]
    if not broken:
        return None
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{values.name} with {measurement.devices} is not finite in {name_seeds(broken)}; "
        f"with {measurement.baseline_devices} it is.",
        remedy=DIVERGED_REMEDY,
    )


def _judge_single_seed(values: MetricValues, measurement: MetricDropMeasurement) -> Judgement:
    return Judgement(
        outcome=Outcome.UNDECIDED,
        sentence=f"{_means(values, measurement)}, but one seed per arm can't show whether it is as "
        f"good: it may be the luck of one run. At least {MIN_SEEDS} seeds are needed to decide."
        f"{measurement.repeats.sentence}",
        remedy=PASS_THE_SEED
        if measurement.repeats.seeds
        else f"Run at least {MIN_SEEDS} seeds per arm (--seeds {MIN_SEEDS}).",
    )


def _more_seeds(results: Sequence[NonInferiority], repeats: Repeats) -> str:
    if repeats.seeds:
        return PASS_THE_SEED
    wanted = [result.seeds_to_decide for result in results]
    known = [number for number in wanted if number is not None]
    if len(known) < len(wanted):
        return (
            "More seeds would not decide: a difference lies too close to its limit. Report "
            "predictions (scaleproof.report_predictions), or choose another limit."
        )
    number = max(*known, results[0].num_seeds + 1)
    return f"About {number} seeds per arm would decide (--seeds {number})."


def _reported(run: Run) -> dict[str, list[MetricRecord]]:
    """By name: what rank 0 reported of it, in order."""
    reported: dict[str, list[MetricRecord]] = {}
    for rank in run.ranks[:1]:
        for record in rank.of(MetricRecord):
            reported.setdefault(record.name, []).append(record)
    return reported


def _values(name: str, pairs: Sequence[Pair]) -> MetricValues | None:
    """None when the figure can't be judged: its name says too little, it is one of training, or
    the baseline does not have it."""
    direction = direction_of(name)
    compared = [
        (pair.seed, ours, theirs)
        for pair in pairs
        if (ours := _reported(pair.candidate).get(name))
        and (theirs := _reported(pair.baseline).get(name))
        and theirs[-1].value is not None
    ]
    if direction is None or not compared:
        return None
    records = [record for _, *both in compared for one in both for record in one]
    if is_of_training(name) or (is_loss(name) and not _is_evaluated(name, records)):
        return None
    unit = _unit(name, [record.value for record in records if record.value is not None])
    last = [theirs[-1].value or 0.0 for _, _, theirs in compared]
    first = [theirs[0].value for _, _, theirs in compared]
    falls = [
        abs(f - value) if is_loss(name) and f is not None else 0.0
        for f, value in zip(first, last, strict=True)
    ]
    scales = tuple(max(abs(v), fall) for v, fall in zip(last, falls, strict=True))
    is_share = may_be_share(name) and all(
        0 <= record.value <= unit for record in records if record.value is not None
    )
    if not is_share and 0 in scales:
        return None
    return MetricValues(
        name=name,
        direction=direction,
        is_share=is_share,
        seeds=tuple(seed for seed, _, _ in compared),
        baseline=tuple(_in(unit, theirs[-1].value) for _, _, theirs in compared),
        candidate=tuple(_in(unit, ours[-1].value) for _, ours, _ in compared),
        scales=tuple(scale / unit for scale in scales),
        num_samples=_num_samples(pairs[0].candidate.ranks[0], compared[0][1][-1]),
    )


def _is_evaluated(name: str, records: Sequence[MetricRecord]) -> bool:
    """A loss is one of evaluation when its name says so, or an evaluation came before it."""
    return is_of_evaluation(name) or all(record.evaluation_loader >= 0 for record in records)


def _unit(name: str, values: Sequence[float]) -> float:
    """100 for an accuracy in per cent, otherwise 1."""
    is_percent = is_accuracy(name) and max(values) > 1 and min(values) >= 0 and max(values) <= 100
    return 100.0 if is_percent else 1.0


def _in(unit: float, value: float | None) -> float | None:
    return None if value is None else value / unit


def _num_samples(rank: Rank, record: MetricRecord) -> int | None:
    """Of the evaluation that the figure was reported after."""
    loaders: Iterator[int] = (
        loader.num_items
        for loader in rank.of(LoaderRecord)
        if loader.loader == record.evaluation_loader and loader.num_items > 0
    )
    return next(loaders, None)
