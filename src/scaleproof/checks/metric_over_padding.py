"""The check ``metric-over-padding``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, METRICS, PREDICTIONS, SCRIPT, TWO_RANKS
from scaleproof.checks.reported_accuracy import ReportedAccuracy, reported_accuracies
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.study import Study


@final
class OverPaddingMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    accuracies: tuple[ReportedAccuracy, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOverPadding(AbstractCheck[OverPaddingMeasurement]):
    """A reported accuracy counts some evaluation samples twice.

    What it looks for
        An accuracy that is the share of right answers of all rows that the ranks scored, although
        some samples are there twice, and not that of all samples.

    Why it matters
        `DistributedSampler` repeats samples until every rank has as many. They are then counted
        twice, and the accuracy changes with the number of devices and the batch, on which it
        should not depend: compared with another paper, or with the run on one device, it is off.

    How it decides
        From the predictions that the script reports with `scaleproof.report_predictions`, by
        sample id. It fails when the figure is that of all rows, as far as it was written out (to
        half a unit in the third decimal), and is not that of the samples, each counted once. A
        difference too small to be seen in the figure passes. A figure that is neither is another
        one than the share of right answers, and is not judged.

    What it can't see
        Figures other than accuracy, and scripts that report no predictions: padded-evaluation
        says whether there is padding at all.

    How to fix it
        Evaluate without padding: give rank r the samples r, r + N, r + 2 N ... Or drop the
        repeated rows after gathering (accelerate's `gather_for_metrics` does).

    References
        pytorch/pytorch#25162, huggingface/accelerate#226, #575, #1674, roboflow/rf-detr#1507.
    """

    name: ClassVar[str] = "metric-over-padding"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, PREDICTIONS, METRICS)
    consequence_of: ClassVar[tuple[str, ...]] = ("padded-evaluation",)

    def measure(self, study: Study) -> OverPaddingMeasurement:
        runs = study.runs_of(study.candidate)
        return OverPaddingMeasurement(
            accuracies=tuple(found for run in runs for found in reported_accuracies(run))
        )

    def judge(self, measurement: OverPaddingMeasurement) -> Judgement:
        for found in measurement.accuracies:
            if found.is_given(found.with_repeats) and not found.is_given(found.unique):
                return _judge_padded(found)
        right = [found for found in measurement.accuracies if found.is_given(found.unique)]
        if not right:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="No reported figure is the share of right answers that the predictions of "
                "all ranks give.",
            )
        names = listed(sorted({found.name for found in right}))
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"{names}: each of {counted(right[0].num_unique, 'sample')} counts once.",
        )


def _judge_padded(found: ReportedAccuracy) -> Judgement:
    num_repeats = found.num_rows - found.num_unique
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{found.run}, rank {found.rank}, after step {found.steps_done:,}: {found.name} = "
        f"{found.reported:.4g} counts {counted(num_repeats, 'sample')} again; over the "
        f"{counted(found.num_unique, 'sample')} it is {found.unique:.4g}.",
        remedy="Evaluate without padding (rank r takes the samples r, r + N, r + 2 N ...), or drop "
        "the repeated rows before you count.",
    )
