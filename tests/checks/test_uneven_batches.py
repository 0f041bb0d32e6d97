from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.early_stop_differs import EarlyStopDiffers
from scaleproof.checks.uneven_batches import UnevenBatches
from scaleproof.checks.wording import counted
from scaleproof.evidence.observations import PassRecord, ProbeRecord, StepsRecord
from scaleproof.evidence.study import Study
from scaleproof.verdict.run_check import run_check


def judge(study: Study, **thresholds: float) -> Judgement:
    check = UnevenBatches(**thresholds)
    return check.judge(check.measure(study))


def sizes(*of_rank: Any) -> Callable[[int, np.ndarray], None]:
    """``num_samples`` of every step, by rank: a number, or one for each of the 18 steps."""

    def steps(rank: int, table: np.ndarray) -> None:
        table["num_samples"] = of_rank[rank]

    return steps


def loss(reduction: Literal["mean", "sum", "unknown"]) -> Callable[[int, Any], Any]:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, ProbeRecord):
            return msgspec.structs.replace(record, loss_reduction=reduction)
        return record

    return change


def weighted(*weights: float) -> Any:
    """The optimizer uses the ranks' gradients with these weights."""
    return lambda script, rank, step, locals_: np.tensordot(weights, locals_, axes=1)


def tail(size: int) -> np.ndarray:
    """Batches of 4, the last of each of 3 epochs of ``size``."""
    return np.tile([4, 4, 4, 4, 4, size], 3)


def test_even_batches_pass(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == "All ranks had as many samples in each of 18 steps."


def test_it_runs_as_a_check(tmp_path: Path) -> None:
    finding = run_check(UnevenBatches(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_six_and_two_samples_that_count_alike_fail(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(steps=sizes(6, 2))))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0: 18 of 18 steps had batches of different sizes (the loader of train.py:30; "
        "at step 1 6 and 2 samples on ranks 0 and 1): a sample's weight is off by 50 % on average, "
        "and the ranks' gradients count alike."
    )
    assert "multiply it by the number of ranks" in judgement.remedy


def test_summed_losses_make_up_for_it(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(steps=sizes(6, 2), change=loss("sum"))))

    assert judgement.outcome is Outcome.PASS
    assert "summed losses make up for it" in judgement.sentence


def test_weights_by_the_number_of_samples_make_up_for_it(tmp_path: Path) -> None:
    script = FakeScript(steps=sizes(6, 2), final=weighted(0.75, 0.25))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert "weights by the number of samples make up for it" in judgement.sentence


def test_clipped_gradients_are_told_by_the_ratio_of_their_weights(tmp_path: Path) -> None:
    script = FakeScript(steps=sizes(6, 2), final=weighted(0.05, 0.05))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


@pytest.mark.parametrize("final", [weighted(0.5, 0.5), weighted(0.9, 0.1)])
def test_a_loss_that_was_divided_later_is_undecided(tmp_path: Path, final: Any) -> None:
    script = FakeScript(steps=sizes(6, 2), change=loss("unknown"), final=final)
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "whether the loss makes up for it can't be seen" in judgement.sentence


def test_without_probes_of_uneven_steps_a_mean_is_enough(tmp_path: Path) -> None:
    script = FakeScript(steps=sizes(tail(4), tail(1)))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_an_error_exactly_as_allowed_passes_with_a_note(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(steps=sizes(5, 3)))

    at = judge(study, max_share=0.25)
    assert at.outcome is Outcome.PASS
    assert "off by 25 % on average: no more than max_share" in at.sentence
    assert judge(study, max_share=0.25 - 1e-9).outcome is Outcome.FAIL


def test_the_error_is_averaged_over_all_steps(tmp_path: Path) -> None:
    """Of 6 steps, one with 5 and 3 samples is off by a quarter: 1/24 on average."""
    study = build_observed(tmp_path, FakeScript(steps=sizes(tail(5), tail(3))))

    judgement = judge(study, max_share=0.05)
    assert judgement.outcome is Outcome.PASS
    assert "3 of 18 steps had batches of different sizes" in judgement.sentence
    assert "off by 4.2 % on average" in judgement.sentence


def test_a_rank_that_makes_fewer_steps_fails_and_is_named(tmp_path: Path) -> None:
    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return np.arange(24 if rank == 0 else 20)

    judgement = judge(build_observed(tmp_path, FakeScript(fed=fed)))

    assert judgement.outcome is Outcome.FAIL
    assert "rank 0 made 18 steps and rank 1 15, and 3 of 18 steps" in judgement.sentence


def test_steps_that_draw_nothing_anew_do_not_count(tmp_path: Path) -> None:
    """A second optimizer steps on the same batch."""
    both = np.tile([4, 0], 9)
    study = build_observed(tmp_path, FakeScript(steps=sizes(both, both)))

    judgement = judge(study)
    assert judgement.outcome is Outcome.PASS
    assert "each of 9 steps" in judgement.sentence


@pytest.mark.parametrize("of_rank", [(-1, -1), (4, 0)])
def test_nothing_known_or_one_rank_that_draws_for_all_is_not_applicable(
    tmp_path: Path, of_rank: tuple[int, int]
) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(steps=sizes(*of_rank))))

    assert judgement.outcome is Outcome.NOT_APPLICABLE


def test_no_table_of_steps_is_missing_evidence(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        return None if isinstance(record, StepsRecord) else record

    study = build_observed(tmp_path, FakeScript(change=change))
    finding = run_check(UnevenBatches(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert finding.is_evidence_missing


def test_one_rank_can_not_be_uneven(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=1, parallelism="none"))
    finding = run_check(UnevenBatches(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def stops(*, in_pass: int, is_whole: bool) -> Callable[[int, Any], Any]:
    """Rank 1 makes no more steps; ``in_pass`` is from 0."""

    def change(rank: int, record: Any) -> Any:
        if rank == 1 and isinstance(record, PassRecord):
            if record.number > in_pass:
                return None
            if record.number == in_pass and not is_whole:
                return msgspec.structs.replace(record, is_whole=False)
        return record

    return change


def cut(num_steps: int) -> Any:
    """Rank 1 is handed no more than ``num_steps`` batches of 4."""

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        num_left = max(0, 4 * num_steps - 24 * epoch)
        return np.arange(24)[: num_left if rank == 1 else 24]

    return fed


@pytest.mark.parametrize(
    ("num_steps", "is_whole"), [(12, True), (15, False), (17, False), (6, True)]
)
def test_steps_after_a_rank_has_stopped_are_not_uneven(
    tmp_path: Path, num_steps: int, is_whole: bool
) -> None:
    """It stops at the end of a pass, or within one."""
    last = (num_steps - 1) // 6
    script = FakeScript(fed=cut(num_steps), change=stops(in_pass=last, is_whole=is_whole))
    study = build_observed(tmp_path, script)
    judgement = judge(study)

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        f"All ranks had as many samples in each of {num_steps} steps. "
        f"{counted(18 - num_steps, 'step')} of observed-seed0 that not all ranks went "
        "on to are not counted (see early-stop-differs)."
    )
    assert run_check(EarlyStopDiffers(), study, blocks=True).outcome is Outcome.FAIL


def test_uneven_passes_before_a_rank_stops_fail_for_themselves(tmp_path: Path) -> None:
    """Rank 1 has 5 batches in a pass and makes 2 passes, rank 0 makes 3 of 6 batches."""

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return np.arange(24 if rank == 0 else 20 * (epoch < 2))

    change = stops(in_pass=1, is_whole=True)
    judgement = judge(build_observed(tmp_path, FakeScript(fed=fed, change=change)))

    assert judgement.outcome is Outcome.FAIL
    assert "rank 0 made 12 steps and rank 1 10, and 2 of 12 steps" in judgement.sentence
