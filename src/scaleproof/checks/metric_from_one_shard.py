"""The check ``metric-from-one-shard``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.metric_names import are_of_one_kind, is_mean_over_samples, is_of_evaluation
from scaleproof.checks.needs import CANDIDATE_RUN, METRICS, SCRIPT, TWO_RANKS
from scaleproof.checks.reported_accuracy import ReportedAccuracy, reported_accuracies
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import LoaderRecord, MetricRecord, PassRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study


@final
class ReportedFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure as the ranks reported it after one evaluation.

    ``num_collectives``: the most that any of these ranks started between the evaluation's begin
    and the report; -1: not known. ``num_fed``: samples that the first of them evaluated.
    ``may_be_a_term``: a library computed it, and a collective may have run between that and the
    next step: the script may put together what it reports from such figures.
    """

    run: str
    name: str
    steps_done: int
    where: str
    is_sharded: bool
    ranks: tuple[int, ...]
    values: tuple[float, ...]
    num_collectives: int
    num_fed: int
    may_be_a_term: bool

    @property
    def spread(self) -> float:
        """Largest difference between ranks, over the largest value."""
        largest = max(abs(value) for value in self.values)
        return (max(self.values) - min(self.values)) / largest if largest > 0 else 0.0


@final
class OneShardMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``accuracies``: of the evaluations that left predictions."""

    figures: tuple[ReportedFigure, ...]
    accuracies: tuple[ReportedAccuracy, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFromOneShard(AbstractCheck[OneShardMeasurement]):
    """A figure of quality is that of one rank's part of the evaluation set, not of all of it.

    What it looks for
        Figures reported after an evaluation that was split over the ranks, which each rank
        computed from its own part and nobody put together.

    Why it matters
        The accuracy on the screen is that of 1/N of the evaluation set: noisier, and of other
        samples when N changes. Divided by the length of the whole set, it falls to 1/N. Early
        stopping, plateau schedules and the choice of a checkpoint follow it.

    How it decides
        An evaluation is split when the ranks were fed different samples, or when one rank alone
        was fed what its sampler says is one of several shards. A figure reported after it, before
        the next training step, fails when no collective ran on that rank since the evaluation
        began, and the ranks' values differ by more than `tolerance` of themselves or one rank
        alone reported it. Equal values on all ranks pass, and so does any collective.
        What torchmetrics computes may be one term of a sum that the ranks make of it: where more
        collectives ran around an evaluation than between other steps, or no step followed that
        counts them, a figure that is a mean over samples (an accuracy, a mean error) is undecided,
        unless the script reports one of that kind that was put together.
        A figure that is none, such as F1 or a precision, fails all the same: no mean of the
        shards' figures is that of all samples.
        With `scaleproof.report_predictions`, accuracy is proven instead: it fails when the figure
        is the share of right answers of the rank's own rows, or these over all rows, and not that
        of all ranks' rows.

    What it can't see
        Losses and other figures of training: these differ between ranks by nature. Figures put
        together past torch's default process group: by files, or in a group of one's own. A
        collective that did something else, when there are no predictions.

    How to fix it
        Add up the counts, not the shares: `all_reduce` the number of right answers and the number
        of samples, then divide. Or use torchmetrics on every rank, Lightning's `sync_dist=True`,
        accelerate's `gather_for_metrics`. Or evaluate the whole set on one rank.

    References
        pyannote/pyannote-audio#591, Lyken17/Efficient-PyTorch#24,
        jia-zhuang/pytorch-multi-gpu-training#5 (89 % on 1, 29 % on 3, 17 % on 4 GPUs).
    """

    name: ClassVar[str] = "metric-from-one-shard"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, METRICS)

    tolerance: float = 1e-6

    def measure(self, study: Study) -> OneShardMeasurement:
        runs = study.runs_of(study.candidate)
        return OneShardMeasurement(
            figures=tuple(figure for run in runs for figure in _figures(run)),
            accuracies=tuple(found for run in runs for found in reported_accuracies(run)),
        )

    def judge(self, measurement: OneShardMeasurement) -> Judgement:
        proven = [found for found in measurement.accuracies if _is_own(found)]
        if proven:
            return _judge_proven(proven[0])
        shown = {(a.run, a.name) for a in measurement.accuracies if _is_of_all(a)}
        open_figures = [
            figure
            for figure in measurement.figures
            if figure.is_sharded and (figure.run, figure.name) not in shown
        ]
        alone = [figure for figure in open_figures if self._is_each_for_itself(figure)]
        together = [figure for figure in open_figures if figure not in alone]
        known = [
            figure
            for figure in alone
            if figure.num_collectives == 0 and not _is_reported_of_all(figure, together)
        ]
        certain = [figure for figure in known if not _may_add_up(figure)]
        if certain:
            return _judge_alone(certain[0])
        if known:
            return _judge_open(known[0])
        unknown = [figure for figure in alone if figure.num_collectives < 0]
        if unknown:
            figure = unknown[0]
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{_words(figure)}, and whether the ranks put it together is not known: "
                "there is no process group of torch.",
                remedy="Report it on every rank, after it was put together.",
            )
        if not measurement.figures and not shown:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No figure of quality was reported right after an evaluation.",
            )
        names = listed(sorted({f.name for f in measurement.figures} | {name for _, name in shown}))
        if not shown and not any(figure.is_sharded for figure in measurement.figures):
            sentence = f"Whoever reported {names} had evaluated all samples."
        else:
            sentence = f"{names}: put together from the shards of all ranks."
        return Judgement(outcome=Outcome.PASS, sentence=sentence)

    def _is_each_for_itself(self, figure: ReportedFigure) -> bool:
        if figure.num_collectives > 0:
            return False
        return len(figure.ranks) == 1 or figure.spread > self.tolerance


def _is_of_all(found: ReportedAccuracy) -> bool:
    return found.is_given(found.unique) or found.is_given(found.with_repeats)


def _is_own(found: ReportedAccuracy) -> bool:
    is_part = found.num_own < found.num_rows
    given = found.is_given(found.own) or found.is_given(found.own_over_all)
    return is_part and given and not _is_of_all(found)


def _judge_proven(found: ReportedAccuracy) -> Judgement:
    if found.is_given(found.own):
        what = f"the one of its own {found.num_own:,} of {counted(found.num_rows, 'row')}"
    else:
        what = (
            f"its own right answers in {found.num_own:,} rows over all "
            f"{counted(found.num_unique, 'sample')}"
        )
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{found.run}, rank {found.rank}, after step {found.steps_done:,}: {found.name} = "
        f"{found.reported:.4g} is {what}; all ranks' predictions give {found.unique:.4g}.",
        remedy=_REMEDY,
    )


def _may_add_up(figure: ReportedFigure) -> bool:
    return figure.may_be_a_term and is_mean_over_samples(figure.name)


def _is_reported_of_all(figure: ReportedFigure, together: Sequence[ReportedFigure]) -> bool:
    """The script itself reported what came of the ranks' figures."""
    return _may_add_up(figure) and any(
        (other.run, other.steps_done) == (figure.run, figure.steps_done)
        and are_of_one_kind(other.name, figure.name)
        for other in together
    )


def _judge_alone(figure: ReportedFigure) -> Judgement:
    also = ""
    if figure.may_be_a_term:
        also = "; a mean of such figures is not that of all samples"
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{_words(figure)}, and no collective ran in between{also}.",
        remedy=_REMEDY,
    )


def _judge_open(figure: ReportedFigure) -> Judgement:
    return Judgement(
        outcome=Outcome.UNDECIDED,
        sentence=f"{_words(figure)}, and no collective ran before it was computed. Whether the "
        "ranks put the figures together afterwards, each weighted by its samples, can't be seen.",
        remedy="Report the figure that counts with scaleproof.report_metrics on every rank; or let "
        "the metric put its own counts together (sync_on_compute=True).",
    )


_REMEDY = (
    "all_reduce the counts (right answers, samples, sum of losses) over the ranks, then divide; or "
    "evaluate the whole set on one rank."
)


def _words(figure: ReportedFigure) -> str:
    others = [
        f"rank {rank} {value:.4g}"
        for rank, value in zip(figure.ranks[1:], figure.values[1:], strict=True)
    ]
    also = f"{listed(others)} of theirs" if others else "no other rank reported it"
    loader = f" ({figure.where})" if figure.where else ""
    return (
        f"{figure.run}, after step {figure.steps_done:,}: rank {figure.ranks[0]} reported "
        f"{figure.name} = {figure.values[0]:.4g} of its own "
        f"{counted(figure.num_fed, 'evaluation sample')}{loader}, {also}"
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluation:
    """One rank's pass over an evaluation loader, and the figure reported after it."""

    rank: Rank
    record: MetricRecord
    value: float
    this: PassRecord


def _figures(run: Run) -> Iterator[ReportedFigure]:
    found: dict[tuple[str, int], dict[int, _Evaluation]] = {}
    for rank in run.ranks:
        for record in rank.of(MetricRecord):
            this = _pass_before(rank, record)
            if this is not None and record.value is not None and is_of_evaluation(record.name):
                found.setdefault((record.name, record.steps_done), {})[rank.rank] = _Evaluation(
                    rank=rank, record=record, value=record.value, this=this
                )
    terms = {name for name in {name for name, _ in found} if _may_be_terms(_all_of(found, name))}
    for (name, steps_done), by_rank in found.items():
        evaluations = list(by_rank.values())
        first = evaluations[0]
        loader = _loader_of(first.rank, first.this)
        yield ReportedFigure(
            run=run.name,
            name=name,
            steps_done=steps_done,
            where="" if loader is None else loader.where,
            is_sharded=_is_sharded(run, first),
            ranks=tuple(by_rank),
            values=tuple(evaluation.value for evaluation in evaluations),
            num_collectives=max(evaluation.record.num_collectives for evaluation in evaluations),
            num_fed=first.this.num_fed,
            may_be_a_term=name in terms,
        )


def _all_of(
    found: Mapping[tuple[str, int], Mapping[int, _Evaluation]], name: str
) -> list[_Evaluation]:
    return [one for key, by_rank in found.items() if key[0] == name for one in by_rank.values()]


def _may_be_terms(evaluations: Sequence[_Evaluation]) -> bool:
    """A library computed these figures, and after one of them there were more collectives than
    between other steps; or training did not go on after any, so that nobody counted them."""
    if any(one.record.source != "torchmetrics" for one in evaluations):
        return False
    known = [more for one in evaluations if (more := _num_more_collectives(one)) is not None]
    return not known or max(known) > 0


def _num_more_collectives(evaluation: _Evaluation) -> float | None:
    """Around an evaluation, from the step before it to the one after, above what is usual between
    two steps; None when there is no such step, or no other."""
    counts = evaluation.rank.observed_steps["num_collectives"]
    after = evaluation.record.steps_done
    others = np.delete(counts, after) if after < len(counts) else counts[:0]
    return float(counts[after] - np.median(others)) if len(others) else None


def _pass_before(rank: Rank, record: MetricRecord) -> PassRecord | None:
    """The evaluation that the figure was reported right after: no step was made in between."""
    passes = [
        this
        for this in rank.of(PassRecord)
        if this.use == "evaluation"
        and this.loader == record.evaluation_loader
        and this.first_step == record.steps_done
    ]
    return passes[-1] if passes else None


def _loader_of(rank: Rank, this: PassRecord) -> LoaderRecord | None:
    records = rank.of(LoaderRecord)
    return next((loader for loader in records if loader.loader == this.loader), None)


def _is_sharded(run: Run, evaluation: _Evaluation) -> bool:
    """Ranks evaluated different samples at that moment; of a rank that was alone, its sampler
    says so."""
    this, rank = evaluation.this, evaluation.rank
    others = [
        (other, theirs)
        for other in run.ranks
        for theirs in other.of(PassRecord)
        if other is not rank
        and theirs.use == "evaluation"
        and (theirs.loader, theirs.first_step) == (this.loader, this.first_step)
    ]
    for other, theirs in others:
        if _are_different(rank, this, other, theirs):
            return True
    loader = _loader_of(rank, this)
    is_shard = loader is not None and loader.shards is not None and loader.shards[1] > 1
    return not others and is_shard


def _are_different(rank: Rank, this: PassRecord, other: Rank, theirs: PassRecord) -> bool:
    if this.has_ids and theirs.has_ids:
        return rank.bitmap(this.seen) != other.bitmap(theirs.seen)
    if this.contents is None or theirs.contents is None:
        return False
    kind = np.dtype("<u8")
    ours = rank.array(this.contents, kind)
    limit = min(this.content_limit, theirs.content_limit)
    others = other.array(theirs.contents, kind)
    return not np.array_equal(ours[ours <= limit], others[others <= limit])
