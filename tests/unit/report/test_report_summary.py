"""The numbers behind every format, and every piece that may be missing."""

import re

import numpy as np
import pytest
from report_cases import finding, named_study, summary_of, verdict

from scaleproof.checks.check import Outcome
from scaleproof.evidence.paths import StudyPaths
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.study import load_study
from scaleproof.report import tables, words
from scaleproof.report.formats import FORMATS, render_text
from scaleproof.report.quality import MAX_CLASSES_LISTED
from scaleproof.report.summary import summarise
from scaleproof.verdict.answers import Decision
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import judge_study
from studies import FakeArm, build_study


def failed(seed, rank):
    return RankOutcome(
        status="error", epoch=1, step=2, phase="training", error_type="ValueError", message="bad"
    )


def assert_every_format_renders(summary):
    for name in FORMATS:
        text = render_text(summary, name)
        assert not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)
        assert text


def test_speed_comes_from_epochs_after_warm_up(tmp_path):
    slow_first = FakeArm(epoch_time_noise=0.0)
    summary = summary_of(
        tmp_path,
        baseline=slow_first,
        candidate=FakeArm(num_ranks=2, epoch_time_s=0.5, epoch_time_noise=0.0),
    )
    assert summary.timing.speed_up is not None
    assert summary.timing.speed_up.speed_up == pytest.approx(2.0)
    assert summary.timing.speed_up.num_epoch_pairs == 12  # 3 seeds, 5 epochs, the first left out
    assert sum(time.is_warm_up for time in summary.timing.epoch_times) == 6
    assert len(summary.timing.epoch_times) == 30


def test_confusion_is_summed_over_seeds_and_compared_by_row(tmp_path):
    targets = np.array([0, 0, 0, 0, 1, 1], dtype=np.int32)
    baseline = FakeArm(targets=lambda: targets, predictions=lambda seed, y: y)
    wrong = np.array([0, 0, 0, 1, 1, 1], dtype=np.int32)
    candidate = FakeArm(targets=lambda: targets, num_ranks=2, predictions=lambda seed, y: wrong)
    quality = summary_of(tmp_path, baseline=baseline, candidate=candidate).quality
    assert quality is not None and quality.baseline is not None and quality.candidate is not None
    assert quality.baseline.confusion == ((12, 0, 0), (0, 6, 0), (0, 0, 0))
    assert quality.candidate.confusion == ((9, 3, 0), (0, 6, 0), (0, 0, 0))
    assert quality.confusion_change is not None
    assert quality.confusion_change[0] == (-0.25, 0.25, 0.0)
    assert quality.confusion_change[2] == (None, None, None)  # no sample of that class
    assert quality.classes[0].recall_change == -0.25
    assert quality.classes[2].recall_change is None
    assert [(c.truth, c.prediction) for c in quality.confusions] == [("cat", "dog")]
    assert quality.candidate.accuracy_by_seed == (5 / 6, 5 / 6, 5 / 6)


def test_the_interval_has_the_confidence_of_the_profile(tmp_path):
    study = build_study(tmp_path)
    wide, narrow = (
        summarise(study, verdict(), confidence=confidence).timing.speed_up
        for confidence in (0.99, 0.8)
    )
    assert wide is not None and narrow is not None
    assert wide.speed_up_low < narrow.speed_up_low
    table = tables.speed(summarise(study, verdict(), confidence=0.99))
    assert table is not None and table.columns[2] == "99 % interval"


def test_the_decision_is_not_said_twice():
    assert words.reason(verdict()) == "2 devices (ddp): 45 % less time per epoch, no fault found."
    rejected = verdict(decision=Decision.REJECT, headline="Reject: 2 devices are slower.")
    assert words.reason(rejected) == "2 devices are slower."
    assert words.reason(verdict(headline="All is well.")) == "All is well."


def test_curves_run_over_samples_not_steps(tmp_path):
    summary = summary_of(tmp_path)
    by_arm = {curve.arm: curve for curve in summary.curves if curve.seed == 0}
    ends = {arm: curve.training[-1].samples_seen for arm, curve in by_arm.items()}
    assert ends == {"single-1": 240, "ddp-2": 240}  # 48 samples, 5 epochs
    assert [p.samples_seen for p in by_arm["ddp-2"].evaluation] == [0, 48, 96, 144, 192, 240]


def test_training_curve_is_thinned_by_averaging(tmp_path):
    long = FakeArm(num_epochs=2, num_train_samples=4_000, batch_per_device=4)
    summary = summary_of(
        tmp_path, has_baseline=False, seeds=(0,), candidate=long.with_(num_ranks=2)
    )
    (curve,) = summary.curves
    assert len(curve.training) == 120
    assert curve.training[-1].samples_seen == 8_000


def test_learning_rate_words(tmp_path):
    summary = summary_of(tmp_path)
    assert words.learning_rate(summary.candidate) == (
        "learning rate 0.001 -> 0.00141 (sqrt rule for 2 devices, 1 epoch of warm-up)"
    )
    assert summary.baseline is not None
    assert words.learning_rate(summary.baseline) == (
        "learning rate 0.001 (as the recipe gives it, 1 epoch of warm-up)"
    )


def test_single_arm(tmp_path):
    summary = summary_of(tmp_path, has_baseline=False)
    assert summary.baseline is None
    assert summary.timing.speed_up is None
    assert "no baseline" in words.speed_source(summary)
    table = tables.side_by_side(summary)
    assert table is not None and table.columns == ("", "ddp, 2 devices")
    assert all(len(row) == 2 for row in table.rows)
    assert_every_format_renders(summary)


def test_one_epoch_has_no_speed_up(tmp_path):
    summary = summary_of(
        tmp_path,
        baseline=FakeArm(num_epochs=1),
        candidate=FakeArm(num_epochs=1, num_ranks=2),
    )
    assert summary.timing.speed_up is None
    assert "two epochs" in summary.timing.no_speed_up_because
    assert [arm.median_epoch_time_s for arm in summary.timing.arms] == [None, None]
    assert_every_format_renders(summary)


def test_a_single_pair_of_epochs_has_no_finite_interval(tmp_path):
    summary = summary_of(
        tmp_path,
        seeds=(0,),
        baseline=FakeArm(num_epochs=2),
        candidate=FakeArm(num_epochs=2, num_ranks=2),
    )
    assert "unbounded" in render_text(summary, "terminal")
    assert_every_format_renders(summary)


def test_shared_device_gives_times_but_no_speed_up(tmp_path):
    summary = summary_of(tmp_path, share_device=True)
    assert summary.timing.speed_up is None
    table = tables.side_by_side(summary)
    assert table is not None and table.rows[0][1:] == ("1.00 s", "551 ms", "–")
    assert any("shared a device" in notice for notice in words.notices(summary))
    assert_every_format_renders(summary)


def test_failed_run_is_left_out_of_the_numbers_and_named(tmp_path):
    ok = RankOutcome(status="ok", epoch=4, step=0, phase="ended")
    candidate = FakeArm(
        num_ranks=2, outcome=lambda seed, rank: failed(seed, rank) if seed == 1 else ok
    )
    judged = verdict(failed_runs=("ddp-2-seed1: rank 0 failed at step 2: ValueError: bad.",))
    summary = summary_of(tmp_path, judged, candidate=candidate)
    assert summary.quality is not None and summary.quality.candidate is not None
    assert summary.quality.candidate.seeds == (0, 2)
    assert summary.quality.baseline is not None
    assert summary.quality.baseline.seeds == (0, 2)  # like is compared with like
    assert {run.name: run.status for run in summary.runs}["ddp-2-seed1"] == "failed"
    for name in FORMATS:
        assert "rank 0 failed at step 2" in " ".join(render_text(summary, name).split())


def test_all_runs_failed(tmp_path):
    summary = summary_of(
        tmp_path, baseline=FakeArm(outcome=failed), candidate=FakeArm(num_ranks=2, outcome=failed)
    )
    assert summary.quality is None
    assert "nothing is known about quality" in words.quality_source(summary)
    assert_every_format_renders(summary)


def test_nothing_ran(tmp_path):
    study = build_study(tmp_path)
    for run in study.runs.values():
        for path in sorted(run.paths.root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    summary = summarise(load_study(tmp_path), verdict(unfinished_runs=("ddp-2-seed0",)))
    assert summary.quality is None and summary.curves == () and summary.environment == ()
    assert any("never began" in notice for notice in words.notices(summary))
    assert "not known" in words.learning_rate(summary.candidate)
    assert_every_format_renders(summary)


def test_unfinished_run_is_named(tmp_path):
    candidate = FakeArm(num_ranks=2, outcome=lambda seed, rank: None)
    summary = summary_of(tmp_path, candidate=candidate)
    assert words.notices(summary) == ("ddp-2-seed0, ddp-2-seed1 and ddp-2-seed2 did not finish.",)
    assert_every_format_renders(summary)


def test_no_evaluations(tmp_path):
    empty = FakeArm(targets=lambda: np.zeros(0, dtype=np.int32), predictions=lambda seed, y: y)
    summary = summary_of(tmp_path, baseline=empty, candidate=empty.with_(num_ranks=2))
    assert summary.quality is None
    assert all(curve.evaluation == () for curve in summary.curves)
    assert_every_format_renders(summary)


def test_an_evaluation_before_training_is_no_result(tmp_path):
    untrained = FakeArm(num_epochs=0)
    summary = summary_of(tmp_path, baseline=untrained, candidate=untrained.with_(num_ranks=2))
    assert all(curve.evaluation[0].epochs_done == 0 for curve in summary.curves)
    assert summary.quality is None
    assert_every_format_renders(summary)


def test_diverged_run(tmp_path):
    def losses(seed, num_steps):
        values = np.linspace(2.0, 3.0, num_steps)
        values[num_steps // 2 :] = np.nan
        return values

    candidate = FakeArm(
        num_ranks=2,
        step_losses=losses,
        evaluation_loss=lambda seed, epochs_done: float("nan") if epochs_done > 2 else 1.0,
        outcome=lambda seed, rank: RankOutcome(
            status="diverged", epoch=2, step=0, phase="training"
        ),
    )
    summary = summary_of(tmp_path, candidate=candidate)
    curve = next(curve for curve in summary.curves if curve.arm == "ddp-2")
    assert curve.training[0].loss is not None and curve.training[-1].loss is None
    assert summary.quality is not None and summary.quality.candidate is not None
    assert summary.quality.candidate.loss is None
    table = tables.side_by_side(summary)
    assert table is not None
    assert ("Loss", "0.313", "not finite", "–") in table.rows
    assert any("not finite" in notice for notice in words.notices(summary))
    assert_every_format_renders(summary)


def test_a_thousand_classes_stay_readable(tmp_path):
    names = tuple(f"class {index}" for index in range(1_000))
    summary = summarise(named_study(tmp_path, names, seeds=(0,)), verdict())
    quality = summary.quality
    assert quality is not None and quality.candidate is not None
    assert quality.candidate.confusion is None and quality.confusion_change is None
    assert len(quality.listed) == MAX_CLASSES_LISTED == len(set(quality.listed))
    assert len(quality.classes) == 1_000
    drops = [quality.classes[index].recall_change or 0 for index in quality.listed[:10]]
    worst = max(abs(row.recall_change or 0) for row in quality.classes)
    assert abs(drops[0]) == worst
    assert [abs(drop) for drop in drops] == sorted(map(abs, drops), reverse=True)
    assert "20 of 1,000 classes" in render_text(summary, "terminal")
    assert len(render_text(summary, "terminal").splitlines()) < 120
    assert len(render_text(summary, "html")) < 150_000


def test_findings_are_grouped_by_what_they_ask_of_the_reader():
    warning = finding("low-efficiency", outcome=Outcome("fail"), blocks=False)
    broken = finding("unstable-loss", outcome=Outcome("error"))
    fail = finding("recall-drop", outcome=Outcome("fail"))
    missing = finding("replica-drift", outcome=Outcome("not-applicable"), is_evidence_missing=True)
    moot = finding("accuracy-paradox", outcome=Outcome("not-applicable"))
    groups = words.group_findings((moot, missing, warning, broken, fail, finding()))
    assert groups.problems == (fail, warning, broken)
    assert groups.open == (missing,)
    assert groups.passes == (finding(),)
    assert groups.not_applicable == (moot,)
    assert [words.outcome_word(f) for f in (fail, warning, missing, moot, broken)] == [
        "Fail",
        "Warning",
        "No evidence",
        "Not applicable",
        "Check broke",
    ]


def test_paths_of_the_machine_stay_out(tmp_path):
    text = render_text(summary_of(tmp_path), "json")
    assert str(StudyPaths(tmp_path).root) not in text


def test_a_real_judgement_renders(tmp_path):
    study = build_study(tmp_path)
    profile = Profile()
    summary = summarise(study, judge_study(study, profile), confidence=profile.confidence)
    assert render_text(summary, "terminal").startswith("ADOPT  2 devices (ddp)")
    assert_every_format_renders(summary)
