from pathlib import Path

from observed import FakeScript, build_observed
from reported import both, predicting, reporting
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.metric_over_padding import MetricOverPadding
from scaleproof.checks.reported_accuracy import ROUNDING
from scaleproof.verdict.run_check import run_check

# 15 samples on two ranks: sample 0, which is not recognised, is there twice.
PADDED = {
    0: [(sample, sample != 0) for sample in range(0, 16, 2)],
    1: [*((sample, True) for sample in range(1, 15, 2)), (0, False)],
}
UNIQUE = {0: PADDED[0], 1: PADDED[1][:-1]}


def judge(path: Path, rows: dict[int, list[tuple[int, bool]]], value: float) -> Judgement:
    more = both(predicting(rows), reporting({0: {"val_acc": value}}, num_collectives=1))
    check = MetricOverPadding()
    return check.judge(check.measure(build_observed(path, FakeScript(more=more))))


def test_an_accuracy_over_all_rows_fails(tmp_path: Path) -> None:
    judgement = judge(tmp_path, PADDED, 14 / 16)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 0, after step 18: val_acc = 0.875 counts 1 sample again; over the "
        "15 samples it is 0.9333."
    )
    assert "without padding" in judgement.remedy


def test_an_accuracy_over_the_samples_passes_padded_or_not(tmp_path: Path) -> None:
    assert judge(tmp_path / "padded", PADDED, 14 / 15).outcome is Outcome.PASS
    assert judge(tmp_path / "per cent", PADDED, 93.33).outcome is Outcome.PASS
    assert judge(tmp_path / "unique", UNIQUE, 14 / 15).outcome is Outcome.PASS


def test_rows_that_every_rank_gathered_are_no_padding(tmp_path: Path) -> None:
    everything = [*UNIQUE[0], *UNIQUE[1]]

    assert judge(tmp_path, {0: everything, 1: everything}, 14 / 15).outcome is Outcome.PASS


def test_exactly_at_the_rounding_it_is_the_same_figure(tmp_path: Path) -> None:
    within = 0.875 + ROUNDING * 0.999
    beyond = 0.875 + ROUNDING * 1.001

    assert judge(tmp_path / "within", PADDED, within).outcome is Outcome.FAIL
    assert judge(tmp_path / "beyond", PADDED, beyond).outcome is Outcome.NOT_APPLICABLE


def test_another_figure_is_not_judged(tmp_path: Path) -> None:
    assert judge(tmp_path, PADDED, 0.5).outcome is Outcome.NOT_APPLICABLE


def test_without_predictions_the_question_does_not_arise(tmp_path: Path) -> None:
    script = FakeScript(more=reporting({0: {"val_acc": 0.875}}))
    finding = run_check(MetricOverPadding(), build_observed(tmp_path, script), blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing
    assert "scaleproof.report_predictions" in finding.sentence
