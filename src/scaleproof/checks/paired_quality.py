"""What the checks that compare the quality of two arms share: when there is nothing to compare."""

from collections.abc import Sequence
from typing import final

import msgspec

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.repeats import PASS_THE_SEED, Repeats, measure_repeats
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.study import Study
from scaleproof.stats.paired import PairedEvaluations

MIN_SEEDS = 3
"""With fewer, the interval is so wide that it seldom decides anything."""

DIVERGED_REMEDY = (
    "Lower the learning rate of the arm with many devices or lengthen its warm-up; non-finite "
    "names the first step whose loss is not finite."
)


@final
class PairedEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """Which seeds both arms evaluated at the same point, and on how many samples.

    ``diverged_seeds``: the candidate diverged before its last evaluation. ``left_out_seeds``: the
    arms have no evaluation after the same last epoch. ``num_unmatched``: samples that some of the
    runs did not score.
    """

    num_devices: int
    num_baseline_devices: int
    seeds: tuple[int, ...]
    num_samples: int
    num_unmatched: int
    diverged_seeds: tuple[int, ...]
    left_out_seeds: tuple[int, ...]
    repeats: Repeats = Repeats()

    @property
    def devices(self) -> str:
        return counted(self.num_devices, "device")

    @property
    def baseline_devices(self) -> str:
        return "one" if self.num_baseline_devices == 1 else str(self.num_baseline_devices)

    @property
    def basis(self) -> str:
        """What an interval rests on, in words."""
        if len(self.seeds) == 1:
            return "from 1 seed, without the variation from run to run"
        return f"over {len(self.seeds)} seeds"


def paired_evidence(study: Study, samples: PairedEvaluations) -> PairedEvidence:
    """The facts about ``samples`` that every quality check reports."""
    assert study.baseline is not None  # a need of every check that calls this
    return PairedEvidence(
        num_devices=study.candidate.num_devices,
        num_baseline_devices=study.baseline.num_devices,
        seeds=samples.seeds,
        num_samples=samples.num_samples,
        num_unmatched=samples.num_unmatched,
        diverged_seeds=samples.diverged_seeds,
        left_out_seeds=samples.left_out_seeds,
        repeats=measure_repeats(study),
    )


def judge_comparability(evidence: PairedEvidence, *, what: str) -> Judgement | None:
    """The judgement when ``what`` (such as "accuracy") can't be compared at all; else None."""
    if evidence.diverged_seeds:
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=(
                f"Training with {evidence.devices} diverged in "
                f"{name_seeds(evidence.diverged_seeds)} and left no final {what}; with "
                f"{evidence.baseline_devices} it went on."
            ),
            remedy=DIVERGED_REMEDY,
        )
    if evidence.left_out_seeds:
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=(
                "The arms were not evaluated after the same last epoch, or not after training, "
                f"in {name_seeds(evidence.left_out_seeds)}: no final {what} to compare."
            ),
            remedy="Evaluate both arms after the same last epoch, then run the study again.",
        )
    if evidence.num_unmatched:
        total = evidence.num_samples + evidence.num_unmatched
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=(
                f"{evidence.num_unmatched:,} of {counted(total, 'evaluation sample')} were not "
                f"scored by every run: {what} would be compared on a selection."
            ),
            remedy=(
                "Score every evaluation sample exactly once in each run: no dropped last batch, "
                "and the ranks' shares must cover the whole set."
            ),
        )
    return None


def judge_single_seed(evidence: PairedEvidence, *, measured: str, what: str) -> Judgement | None:
    """Undecided when there is one seed only; ``measured`` states the numbers that it gave."""
    if len(evidence.seeds) > 1:
        return None
    return Judgement(
        outcome=Outcome.UNDECIDED,
        sentence=(
            f"{measured}, but one seed per arm can't show whether {what} as good: it may be the "
            f"luck of one run. At least {MIN_SEEDS} seeds are needed to decide."
            f"{evidence.repeats.sentence}"
        ),
        remedy=_add_seeds(evidence),
    )


def more_seeds(seeds_to_decide: int | None, evidence: PairedEvidence) -> str:
    """What to do about an interval that is too wide."""
    if len(evidence.seeds) == 1 or evidence.repeats.seeds:
        return _add_seeds(evidence)
    if seeds_to_decide is None:
        return (
            "More seeds would not decide: the difference lies too close to the limit, or the "
            "evaluation set is too small. Use more evaluation samples, or choose another limit."
        )
    num_seeds = max(seeds_to_decide, len(evidence.seeds) + 1)
    return f"About {num_seeds} seeds per arm would decide (--seeds {num_seeds})."


def _add_seeds(evidence: PairedEvidence) -> str:
    if evidence.repeats.seeds:
        return PASS_THE_SEED
    return f"Run at least {MIN_SEEDS} seeds per arm (--seeds {MIN_SEEDS})."


def name_seeds(seeds: Sequence[int]) -> str:
    """The seeds in words: "seed 3", "seeds 0, 1 and 2"."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"
