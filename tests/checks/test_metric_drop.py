from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from observed import FakeScript, build_observed
from reported import metric, predicting, reporting
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.metric_drop import MetricDrop
from scaleproof.evidence.study import Study, load_study
from scaleproof.verdict.run_check import run_check

SEEDS = (0, 1, 2, 3)
Values = dict[str, tuple[float, ...]]


def build(path: Path, baseline: Values, candidate: Values, **fields: object) -> Study:
    """One value per seed of each figure; both arms were reported by rank 0."""
    alone = FakeScript(num_ranks=1, parallelism="none")
    build_observed(path, FakeScript(), baseline=alone, seeds=SEEDS)
    for arm, values in (("baseline", baseline), ("candidate", candidate)):
        for index, seed in enumerate(SEEDS):
            records = path / f"{arm}-seed{seed}" / "rank-00000.jsonl"
            lines = [
                msgspec.json.encode(metric(name, by_seed[index], **fields)) + b"\n"
                for name, by_seed in values.items()
            ]
            *before, end = records.read_bytes().splitlines(keepends=True)
            records.write_bytes(b"".join([*before, *lines, end]))
    return load_study(path)


def judge(study: Study, **thresholds: float) -> Judgement:
    check = MetricDrop(**thresholds)
    return check.judge(check.measure(study))


GOOD = (0.91, 0.92, 0.915, 0.918)


def lower(by: float) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
    return lambda values: tuple(value - by for value in values)


# No evaluation loader: the number of samples, and with it their error, is not known.
UNSEEN = {"evaluation_loader": -1}


def test_an_accuracy_as_good_passes(tmp_path: Path) -> None:
    better = tuple(value + 0.002 for value in GOOD)
    study = build(tmp_path, {"val_acc": GOOD}, {"val_acc": better}, **UNSEEN)
    finding = run_check(MetricDrop(), study, blocks=True)

    assert finding.outcome is Outcome.PASS
    assert "val_acc with 2 devices is 91.78 %, with one 91.58 %: +0.20 points" in finding.sentence


def test_a_worse_accuracy_fails(tmp_path: Path) -> None:
    study = build(tmp_path, {"val_acc": GOOD}, {"val_acc": lower(0.03)(GOOD)}, **UNSEEN)
    judgement = judge(study)

    assert judgement.outcome is Outcome.FAIL
    assert "−3.00 points" in judgement.sentence
    assert "over 4 seeds; allowed −1.00" in judgement.sentence
    assert judgement.p_value is not None and judgement.p_value < 0.05


def test_per_cent_are_shares_too(tmp_path: Path) -> None:
    good = tuple(100 * value for value in GOOD)
    study = build(tmp_path, {"acc": good}, {"acc": lower(1.5)(good)}, **UNSEEN)

    assert "−1.50 points" in judge(study).sentence


def test_a_loss_is_better_when_it_is_lower(tmp_path: Path) -> None:
    losses = (0.40, 0.42, 0.41, 0.43)
    higher = lower(-0.1)(losses)
    worse = judge(build(tmp_path / "worse", {"val_loss": losses}, {"val_loss": higher}))
    better = judge(build(tmp_path / "better", {"val_loss": higher}, {"val_loss": losses}))

    assert worse.outcome is Outcome.FAIL
    assert "val_loss with 2 devices is 0.515, with one 0.415, lower is better" in worse.sentence
    assert better.outcome is Outcome.PASS


def test_exactly_at_the_margin_passes(tmp_path: Path) -> None:
    study = build(tmp_path, {"f1": (0.75,) * 4}, {"f1": (0.5,) * 4}, **UNSEEN)

    assert judge(study, max_drop=0.25).outcome is Outcome.PASS
    assert judge(study, max_drop=0.249999).outcome is Outcome.FAIL


def test_equal_shares_of_few_samples_prove_little(tmp_path: Path) -> None:
    """Without an error from seed to seed, 16 samples still can't show one percentage point."""
    judgement = judge(build(tmp_path, {"val_acc": (0.875,) * 4}, {"val_acc": (0.875,) * 4}))

    assert judgement.outcome is Outcome.UNDECIDED


def test_a_spread_too_wide_is_undecided_with_the_seeds_it_takes(tmp_path: Path) -> None:
    worse = (0.90, 0.93, 0.90, 0.925)
    judgement = judge(build(tmp_path, {"val_acc": GOOD}, {"val_acc": worse}, **UNSEEN))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "seeds per arm would decide" in judgement.remedy


def test_one_seed_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(more=reporting({0: {"val_acc": 0.9}}))
    baseline = replace(script, num_ranks=1, parallelism="none")
    judgement = judge(build_observed(tmp_path, script, baseline=baseline))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "one seed per arm can't show" in judgement.sentence


def test_a_figure_that_is_not_finite_fails(tmp_path: Path) -> None:
    script = FakeScript(more=reporting({0: {"val_loss": None}}))
    baseline = FakeScript(num_ranks=1, parallelism="none", more=reporting({0: {"val_loss": 0.3}}))
    judgement = judge(build_observed(tmp_path, script, baseline=baseline))

    assert judgement.outcome is Outcome.FAIL
    assert "val_loss with 2 devices is not finite in seed 0" in judgement.sentence


@pytest.mark.parametrize("name", ["train_acc", "learning_rate", "loss", "something"])
def test_what_says_nothing_about_quality_is_left_out(tmp_path: Path, name: str) -> None:
    values = {"val_acc": GOOD, name: (1.0,) * 4}
    doubled = {"val_acc": GOOD, name: (2.0,) * 4}
    judgement = judge(build(tmp_path, values, doubled, **UNSEEN))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence.endswith(f"Not judged: {name}.")


def test_nothing_but_such_figures_is_not_applicable(tmp_path: Path) -> None:
    judgement = judge(build(tmp_path, {"something": GOOD}, {"something": GOOD}))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "something" in judgement.sentence


def test_a_script_that_reports_predictions_is_judged_by_these(tmp_path: Path) -> None:
    rows = {0: [(0, True)], 1: [(1, True)]}
    script = FakeScript(more=predicting(rows))
    baseline = FakeScript(num_ranks=1, parallelism="none", more=predicting(rows))
    study = build_observed(tmp_path, script, baseline=baseline)
    finding = run_check(MetricDrop(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert "accuracy-drop" in finding.sentence


def test_only_rank_0_speaks_for_a_run(tmp_path: Path) -> None:
    script = FakeScript(more=reporting({1: {"val_acc": 0.1}}))
    baseline = FakeScript(num_ranks=1, parallelism="none", more=reporting({0: {"val_acc": 0.9}}))

    assert judge(build_observed(tmp_path, script, baseline=baseline)).outcome is (
        Outcome.NOT_APPLICABLE
    )
