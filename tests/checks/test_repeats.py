"""Repeats of a script that are the same run again: they are no independent seeds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from reported import predicting, reporting
from scaleproof.checks.accuracy_drop import AccuracyDrop
from scaleproof.checks.check import AbstractCheck, Outcome
from scaleproof.checks.metric_drop import MetricDrop
from scaleproof.checks.recall_drop import RecallDrop
from scaleproof.checks.repeats import independent_pairs, measure_repeats
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import Moment, SnapshotRecord
from scaleproof.evidence.study import Study
from scaleproof.verdict.run_check import run_check

SEEDS = (0, 1, 2)
ROWS = {0: [(sample, sample >= 100) for sample in range(2_000)], 1: []}
NOTE = (
    "2 of 3 repeats are bit for bit the same as an earlier one: they count once; pass {seed} to "
    "the script."
)
PREDICTING = FakeScript(more=predicting(ROWS))
MEASURING = FakeScript(more=reporting({0: {"accuracy": 0.95}}, evaluation_loader=-1))


def compare(path: Path, script: FakeScript, *, fixed: str = "", **fields: Any) -> Study:
    """Both arms as ``script``; ``fixed`` is the arm, or ``both``, that ignores its seed."""
    candidate = replace(script, ignores_seed=fixed in ("candidate", "both"), **fields)
    baseline = replace(
        script,
        num_ranks=1,
        parallelism="none",
        ignores_seed=fixed in ("baseline", "both"),
        **fields,
    )
    return build_observed(path, candidate, baseline=baseline, seeds=SEEDS)


QUALITY = [(AccuracyDrop(), PREDICTING), (RecallDrop(), PREDICTING), (MetricDrop(), MEASURING)]


@pytest.mark.parametrize("fixed", ["baseline", "candidate", "both"])
@pytest.mark.parametrize(("check", "script"), QUALITY)
def test_the_same_run_again_is_no_second_seed(
    tmp_path: Path, check: AbstractCheck[Any], script: FakeScript, fixed: str
) -> None:
    finding = run_check(check, compare(tmp_path, script, fixed=fixed), blocks=True)

    assert finding.outcome is Outcome.UNDECIDED
    assert "one seed per arm can't show" in finding.sentence
    assert finding.sentence.endswith(NOTE)
    assert "Pass {seed} to the script" in finding.remedy


@pytest.mark.parametrize(("check", "script"), QUALITY)
def test_runs_of_their_own_all_count_though_they_score_the_same(
    tmp_path: Path, check: AbstractCheck[Any], script: FakeScript
) -> None:
    finding = run_check(check, compare(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.PASS
    assert "over 3 seeds" in finding.sentence
    assert "{seed}" not in finding.sentence


def rounding(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> Any:
    """Parameters that end a little different in each repeat, though they began alike."""
    state = FakeScript().state(FakeScript(), rank, steps_done, moment)
    if moment is Moment.END:
        state = {key: values + 1e-9 * script.seed for key, values in state.items()}
    return state


def same_order(script: FakeScript, rank: int, epoch: int) -> Any:
    return np.arange(rank, script.num_samples, script.num_ranks)


def test_what_began_alike_and_predicts_the_same_is_the_same_again(tmp_path: Path) -> None:
    alike = {"state": rounding, "fed": same_order}
    assert len(independent_pairs(compare(tmp_path / "alike", PREDICTING, **alike))) == 1
    # Without predictions, what differs in its last bits is not the same.
    assert len(independent_pairs(compare(tmp_path / "figures", MEASURING, **alike))) == 3
    # In another order, a training from the same weights is one of its own.
    assert len(independent_pairs(compare(tmp_path / "order", PREDICTING, state=rounding))) == 3


def test_shards_tell_nothing_so_predictions_do(tmp_path: Path) -> None:
    def change(_rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, SnapshotRecord):
            return msgspec.structs.replace(record, num_sharded=1)
        return record

    sharded = {"change": change}
    assert len(independent_pairs(compare(tmp_path / "f", MEASURING, fixed="both", **sharded))) == 3
    assert len(independent_pairs(compare(tmp_path / "p", PREDICTING, fixed="both", **sharded))) == 1


def test_one_of_three_is_named_in_numbers(tmp_path: Path) -> None:
    def state(script: FakeScript, rank: int, steps_done: int, moment: Moment) -> Any:
        return FakeScript().state(replace(script, seed=min(script.seed, 1)), rank, 0, moment)

    script = FakeScript(more=predicting(ROWS), state=state)
    study = compare(tmp_path, script)
    finding = run_check(AccuracyDrop(), study, blocks=True)

    assert measure_repeats(study).seeds == (2,)
    assert "over 2 seeds" in finding.sentence
    assert (
        "1 of 3 repeats is bit for bit the same as an earlier one: it counts once; pass {seed} to "
        "the script." in finding.sentence
    )
