from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from reported import both, predicting, reporting
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.metric_from_one_shard import MetricFromOneShard
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import PassRecord
from scaleproof.verdict.run_check import run_check


def judge(path: Path, script: FakeScript, **thresholds: float) -> Judgement:
    check = MetricFromOneShard(**thresholds)
    return check.judge(check.measure(build_observed(path, script)))


def everything(_script: FakeScript, _rank: int, _epoch: int) -> np.ndarray:
    return np.arange(16)


def only_rank_0_evaluates(rank: int, record: AnyRecord) -> AnyRecord | None:
    is_evaluation = isinstance(record, PassRecord) and record.use == "evaluation"
    return None if rank and is_evaluation else record


APART = {0: {"val_acc": 0.875}, 1: {"val_acc": 0.75}}


def test_each_rank_reporting_its_own_shard_fails(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(more=reporting(APART)))
    finding = run_check(MetricFromOneShard(), study, blocks=True)

    assert finding.outcome is Outcome.FAIL
    assert finding.sentence == (
        "observed-seed0, after step 18: rank 0 reported val_acc = 0.875 of its own 8 evaluation "
        "samples (train.py:31), rank 1 0.75 of theirs, and no collective ran in between."
    )
    assert "all_reduce the counts" in finding.remedy


def test_rank_0_reporting_its_own_shard_alone_fails(tmp_path: Path) -> None:
    judgement = judge(tmp_path, FakeScript(more=reporting({0: {"accuracy": 0.875}})))

    assert judgement.outcome is Outcome.FAIL
    assert "no other rank reported it" in judgement.sentence


def test_a_shard_that_one_rank_alone_evaluates_fails(tmp_path: Path) -> None:
    script = FakeScript(more=reporting({0: {"val_acc": 0.875}}), change=only_rank_0_evaluates)

    assert judge(tmp_path, script).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    "script",
    [
        pytest.param({"more": reporting(APART, num_collectives=2)}, id="reduced to rank 0"),
        pytest.param({"more": reporting({0: APART[0], 1: APART[0]})}, id="equal everywhere"),
        pytest.param(
            {"more": reporting({0: APART[0]}, num_collectives=1)}, id="reduced, told by rank 0"
        ),
        pytest.param(
            {"more": reporting({0: APART[0]}), "evaluated": everything}, id="whole set each"
        ),
        pytest.param({"more": reporting(APART), "evaluated": everything}, id="whole set, apart"),
    ],
)
def test_figures_of_the_whole_set_pass(tmp_path: Path, script: dict[str, Any]) -> None:
    assert judge(tmp_path, FakeScript(**script)).outcome is Outcome.PASS


def test_one_rank_evaluating_the_whole_set_passes(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        kept = only_rank_0_evaluates(rank, record)
        is_loader = getattr(kept, "where", "") == "train.py:31"
        return msgspec.structs.replace(kept, shards=None) if is_loader else kept

    script = FakeScript(
        more=reporting({0: {"val_acc": 0.875}}), change=change, evaluated=everything
    )
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.PASS
    assert "had evaluated all samples" in judgement.sentence


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("train_loss", {}),
        ("loss", {}),
        ("eval_runtime", {}),
        ("val_loss_step", {}),
        ("accuracy", {"evaluation_loader": -1}),
        ("accuracy", {"steps_done": 17}),
    ],
)
def test_figures_of_training_are_not_judged(
    tmp_path: Path, name: str, fields: dict[str, Any]
) -> None:
    script = FakeScript(more=reporting({0: {name: 1.0}, 1: {name: 2.0}}, **fields))

    assert judge(tmp_path, script).outcome is Outcome.NOT_APPLICABLE


def test_without_a_process_group_it_is_undecided(tmp_path: Path) -> None:
    judgement = judge(tmp_path, FakeScript(more=reporting(APART, num_collectives=-1)))

    assert judgement.outcome is Outcome.UNDECIDED


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    script = FakeScript(more=reporting({0: {"val_acc": 1.0}, 1: {"val_acc": 0.75}}))

    assert judge(tmp_path / "at", script, tolerance=0.25).outcome is Outcome.PASS
    below = judge(tmp_path / "below", script, tolerance=float(np.nextafter(0.25, 0)))
    assert below.outcome is Outcome.FAIL


# Rank 0 recognises 7 of its 8, rank 1 only 4: 11 of 16.
ROWS = {
    0: [(sample, sample != 0) for sample in range(0, 16, 2)],
    1: [(sample, sample < 8) for sample in range(1, 16, 2)],
}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.875, "accuracy = 0.875 is the one of its own 8 of 16 rows"),
        (87.5, "accuracy = 0.875 is the one of its own 8 of 16 rows"),
        (7 / 16, "accuracy = 0.4375 is its own right answers in 8 rows over all 16 samples"),
    ],
)
def test_predictions_prove_it_whatever_collectives_ran(
    tmp_path: Path, value: float, words: str
) -> None:
    more = both(predicting(ROWS), reporting({0: {"accuracy": value}}, num_collectives=5))
    judgement = judge(tmp_path, FakeScript(more=more))

    assert judgement.outcome is Outcome.FAIL
    assert words in judgement.sentence
    assert "all ranks' predictions give 0.6875" in judgement.sentence


def test_predictions_prove_that_it_is_right(tmp_path: Path) -> None:
    more = both(predicting(ROWS), reporting({0: {"accuracy": 0.6875}}))

    assert judge(tmp_path, FakeScript(more=more)).outcome is Outcome.PASS


def test_a_script_that_reports_nothing_is_not_asked(tmp_path: Path) -> None:
    finding = run_check(MetricFromOneShard(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def of_library(
    name: str, *, steps_done: int = 6, num_around: int = 3, usual: int = 2
) -> FakeScript:
    """Each rank's torchmetrics computes for itself after step 6; ``num_around`` collectives from
    that step to the next, ``usual`` between others."""

    def steps(_rank: int, table: np.ndarray) -> None:
        table["num_collectives"] = usual
        table["num_collectives"][6] = num_around

    values = {rank: {name: next(iter(of.values()))} for rank, of in APART.items()}
    more = reporting(values, source="torchmetrics", epoch=None, steps_done=steps_done)
    return FakeScript(more=more, steps=steps)


def test_a_librarys_accuracy_may_be_a_term_of_a_sum_made_later(tmp_path: Path) -> None:
    judgement = judge(tmp_path, of_library("MulticlassAccuracy"))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "rank 0 reported MulticlassAccuracy = 0.875 of its own 8 evaluation samples" in (
        judgement.sentence
    )
    assert "report_metrics" in judgement.remedy


def test_without_a_step_after_it_nobody_counted_what_came_later(tmp_path: Path) -> None:
    script = of_library("MulticlassAccuracy", steps_done=18)

    assert judge(tmp_path, script).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(of_library("BinaryAccuracy", num_around=2), id="nothing else ran"),
        pytest.param(of_library("MulticlassF1Score"), id="no mean of shards is that of all"),
        pytest.param(of_library("BinaryAveragePrecision"), id="nor of its ranks"),
    ],
)
def test_a_librarys_figure_that_is_no_term_fails(tmp_path: Path, script: FakeScript) -> None:
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.FAIL
    assert "no collective ran in between" in judgement.sentence


def test_what_the_script_itself_reports_is_no_term(tmp_path: Path) -> None:
    script = FakeScript(
        more=reporting(APART, steps_done=6), steps=of_library("BinaryAccuracy").steps
    )

    assert judge(tmp_path, script).outcome is Outcome.FAIL


def test_of_two_figures_the_one_that_is_certain_is_told(tmp_path: Path) -> None:
    accuracy, f1 = of_library("MulticlassAccuracy"), of_library("MulticlassF1Score")
    script = FakeScript(more=both(accuracy.more, f1.more), steps=f1.steps)
    judgement = judge(tmp_path, script)

    assert judgement.outcome is Outcome.FAIL
    assert "MulticlassF1Score = 0.875" in judgement.sentence
    assert "a mean of such figures is not that of all samples" in judgement.sentence


@pytest.mark.parametrize(
    ("name", "num_collectives", "outcome"),
    [("val_acc", 1, "pass"), ("val_loss", 1, "undecided"), ("val_acc", 0, "fail")],
)
def test_a_reported_figure_of_its_kind_settles_a_term(
    tmp_path: Path, name: str, num_collectives: int, outcome: str
) -> None:
    term = of_library("MulticlassAccuracy")
    reported = reporting({0: {name: 0.8}}, steps_done=6, num_collectives=num_collectives)
    script = FakeScript(more=both(term.more, reported), steps=term.steps)

    assert judge(tmp_path, script).outcome == outcome
