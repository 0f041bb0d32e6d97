"""What an observed script adds to a report, and what a report of one leaves out."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from report_cases import HOSTILE_NAMES, finding, unsynced_verdict
from rich.cells import cell_len

from observed import FakeScript, build_observed
from reported import predicting
from scaleproof.checks.check import Outcome
from scaleproof.evidence.observations import (
    EndRecord,
    LoaderRecord,
    Missing,
    OptimizerRecord,
    PassRecord,
    ProcessRecord,
    StepsRecord,
)
from scaleproof.evidence.records import EVALUATION_TABLE, EvaluationRecord, RankOutcome
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter
from scaleproof.report import observed_tables, tables, words
from scaleproof.report.formats import FORMATS, render_text
from scaleproof.report.summary import Summary, summarise
from scaleproof.report.tables import Table
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import judge_study
from studies import build_study

ALONE = FakeScript(num_ranks=1, parallelism="none")


def summary_by_checks(study: Study) -> Summary:
    return summarise(study, judge_study(study, Profile()))


def changed(**by_kind: dict[str, Any]) -> Any:
    """Changes fields of the records of a type, by its name."""

    def change(rank: int, record: Any) -> Any:
        return msgspec.structs.replace(record, **by_kind.get(type(record).__name__, {}))

    return change


def rows_of(table: Table | None) -> dict[str, tuple[str, ...]]:
    assert table is not None
    return {row[0]: row[1:] for row in table.rows}


def terminal_lines(summary: Summary) -> list[str]:
    return [line.rstrip() for line in render_text(summary, "terminal").splitlines()]


# --- what ran


def test_what_ran_names_lines_and_sizes(tmp_path: Path) -> None:
    rows = rows_of(observed_tables.what_ran(summary_by_checks(build_observed(tmp_path))))

    assert rows["Ranks"] == ("2, as their process group says",)
    assert rows["Parallelism"] == ("DistributedDataParallel over gloo",)
    assert rows["Steps"] == ("18 in 3 epochs",)
    assert rows["Samples per update"] == ("8",)
    assert rows["Optimizer"] == ("train.py:41: SGD, 24 parameters in 3 tensors",)
    assert rows["Loader 1 of 2"][0].startswith("train.py:30: training, 48 items of TensorDataset")
    assert rows["Loader 2 of 2"][0].startswith("train.py:31: evaluation, 16 items")


def test_two_commands_stand_side_by_side(tmp_path: Path) -> None:
    summary = summary_by_checks(build_observed(tmp_path, baseline=ALONE))
    table = observed_tables.what_ran(summary)

    assert table is not None
    assert table.columns == ("", "baseline, 1 device", "candidate, 2 devices")
    assert rows_of(table)["Samples per update"] == ("4", "8")
    assert words.title(summary) == "train.py: 2 devices (ddp) against 1 device"
    before, after, _ = observed_tables.cost(summary)
    assert before.endswith(" in baseline.") and after.endswith(" in candidate.")


def test_what_is_unknown_is_said_or_a_dash(tmp_path: Path) -> None:
    script = FakeScript(
        change=changed(
            ProcessRecord={"script": "", "rank_source": "none", "backend": ""},
            LoaderRecord={"where": "", "num_items": -1, "batch_size": None, "sampler": ""},
            EndRecord={"observed_s": 0.0},
        ),
        steps=lambda rank, table: table["num_samples"].fill(-1),
    )
    summary = summary_by_checks(build_observed(tmp_path, script))
    rows = rows_of(observed_tables.what_ran(summary))

    assert rows["Script"] == rows["Samples per update"] == ("–",)
    assert rows["Ranks"] == ("2, nothing said that there are more",)
    assert rows["Parallelism"] == ("DistributedDataParallel",)
    assert rows["Loader 1 of 2"] == (
        "somewhere: training, TensorDataset without a length, 0 workers",
    )
    assert observed_tables.cost(summary) == ()


@pytest.mark.parametrize(
    "kind", [ProcessRecord, LoaderRecord, PassRecord, OptimizerRecord, StepsRecord, EndRecord]
)
def test_every_format_renders_without_some_record(tmp_path: Path, kind: Any) -> None:
    script = FakeScript(change=lambda rank, record: None if type(record) is kind else record)
    summary = summarise(build_observed(tmp_path, script), unsynced_verdict())

    for name in FORMATS:
        assert render_text(summary, name)


def test_two_optimizers_that_share_a_batch_count_it_once(tmp_path: Path) -> None:
    def every_other(rank: int, table: Any) -> None:
        table["num_samples"][1::2] = 0

    summary = summary_by_checks(build_observed(tmp_path, FakeScript(steps=every_other)))
    assert rows_of(observed_tables.what_ran(summary))["Samples per update"] == ("8",)


def test_skipped_steps_are_told(tmp_path: Path) -> None:
    script = FakeScript(change=changed(EndRecord={"num_skipped_steps": 2}))
    rows = rows_of(observed_tables.what_ran(summary_by_checks(build_observed(tmp_path, script))))

    assert rows["Steps"] == ("18 in 3 epochs, 2 skipped by the GradScaler",)


# --- phases and cost


def slow_input_on_rank_1(rank: int, table: Any) -> None:
    table["input_wait_s"][0] = 100.0  # the first step is warm-up
    table["input_wait_s"][1:] = 0.005 + 0.04 * rank


def test_phases_of_few_ranks_stand_side_by_side_without_warm_up(tmp_path: Path) -> None:
    script = FakeScript(steps=slow_input_on_rank_1)
    summary = summary_by_checks(build_observed(tmp_path, script))
    (table,) = observed_tables.phases(summary)

    assert table.columns == ("", "rank 0", "rank 1")
    assert rows_of(table)["Waiting for input"] == ("5.00 ms (10.0 %)", "45.0 ms (50.0 %)")
    assert rows_of(table)["Step"] == ("50.0 ms", "90.0 ms")


def test_shares_of_a_rank_add_up(tmp_path: Path) -> None:
    summary = summary_by_checks(build_observed(tmp_path, FakeScript(steps=slow_input_on_rank_1)))
    assert summary.observed is not None

    for rank in summary.observed.arms[0].phases:
        assert sum(rank.share.values()) == pytest.approx(1.0)
        assert rank.num_steps == 17


def test_many_ranks_are_summed_up(tmp_path: Path) -> None:
    script = FakeScript(num_ranks=6, num_samples=96, steps=slow_input_on_rank_1)
    (table,) = observed_tables.phases(summary_by_checks(build_observed(tmp_path, script)))

    assert table.columns == ("", "lowest rank", "median of 6", "highest rank", "share, median")
    cells = rows_of(table)["Waiting for input"]
    assert cells[:3] == ("5.00 ms", "105 ms", "205 ms")


def test_many_columns_are_a_table_per_arm(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=4, num_samples=96), baseline=ALONE)
    before, after = observed_tables.phases(summary_by_checks(study))

    assert before.title.endswith("; baseline") and before.columns == ("", "rank 0")
    assert after.title.endswith("; candidate") and len(after.columns) == 5


@pytest.mark.parametrize("steps", [0, 1])
def test_no_step_after_warm_up_has_no_phases(tmp_path: Path, steps: int) -> None:
    script = FakeScript(num_epochs=1, fed=lambda script, rank, epoch: np.arange(4 * steps))
    summary = summary_by_checks(build_observed(tmp_path, script))

    assert observed_tables.phases(summary) == ()


def test_a_clock_that_stood_still_has_no_phases(tmp_path: Path) -> None:
    summary = summary_by_checks(build_observed(tmp_path, FakeScript(step_time_s=0.0)))

    assert observed_tables.phases(summary) == () == observed_tables.cost(summary)


@pytest.mark.parametrize(("observed_s", "is_short"), [(59.9, True), (60.0, False)])
def test_a_short_run_is_told_that_long_ones_pay_less(
    tmp_path: Path, observed_s: float, is_short: bool
) -> None:
    script = FakeScript(change=changed(EndRecord={"observed_s": observed_s}))
    figure, *note = observed_tables.cost(summary_by_checks(build_observed(tmp_path, script)))

    assert figure.startswith("Observing cost ")
    assert note == [
        "That is mostly spent once, in the first steps: long runs pay a smaller share."
    ] * int(is_short)


def test_the_cost_is_that_of_the_rank_that_paid_most(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        if not isinstance(record, EndRecord):
            return record
        spent_s, memory = ((0.1, 5), (0.9, 3))[rank]
        return msgspec.structs.replace(
            record, observed_s=90.0, observer_s=spent_s, observer_memory_bytes=memory * 10**6
        )

    summary = summary_by_checks(build_observed(tmp_path, FakeScript(change=change)))
    assert observed_tables.cost(summary) == (
        "Observing cost 1.0 % of the run's time (900 ms of 90.0 s) and 5.0 MB.",
    )


# --- what could not be observed


def test_what_could_not_be_observed_is_a_notice_in_every_readable_format(tmp_path: Path) -> None:
    broke = {"missing": (Missing(what="probe", why="RuntimeError: gone"),)}
    study = build_observed(tmp_path, FakeScript(change=changed(EndRecord=broke)))
    (run,) = study.runs.values()
    run.paths.processes.mkdir()
    run.paths.trouble(9).write_text('{"what": "process", "why": "not Python"}\n')
    summary = summary_by_checks(study)

    notice = (
        "Could not be observed: probe on ranks 0 and 1 (RuntimeError: gone) and process: "
        "not Python."
    )
    assert words.notices(summary) == (notice,)
    for name in ("terminal", "markdown", "html"):
        assert notice in " ".join(render_text(summary, name).split())
    report = json.loads(render_text(summary, "json"))["observed"]
    assert report["unobserved"][0]["ranks"] == [0, 1]
    assert report["troubles"] == ["process: not Python"]


# --- a script alone


def test_a_sound_script_begins_with_it_and_is_green(tmp_path: Path) -> None:
    summary = summary_by_checks(build_observed(tmp_path))
    lines = terminal_lines(summary)

    assert lines[0].startswith("SOUND  No fault found by ")
    assert "train.py: 2 devices (ddp)" in lines[1:4]
    assert "Faster? As good?  Not asked: scaleproof compare does." in lines[:9]
    text = "\n".join(lines)
    assert "learning rate 0.1" not in text and "no baseline arm" not in text
    suite = ElementTree.fromstring(render_text(summary, "junit"))
    assert suite.get("failures") == suite.get("errors") == "0"
    assert suite.find(".//testcase[@classname='verdict']").get("name") == "sound"  # type: ignore[union-attr]
    assert 'class="verdict adopt"' in render_text(summary, "html")


def test_a_faulty_script_tells_the_fault_before_the_evidence(tmp_path: Path) -> None:
    summary = summarise(build_observed(tmp_path), unsynced_verdict())
    lines = terminal_lines(summary)

    assert lines[0].startswith("NOT SOUND  Rank 1 used its own gradient")
    assert lines.index("What the checks found") < lines.index("Evidence")
    assert "Sound?  No  1 of 2 checks found a fault: unsynced-gradients." in lines
    assert lines.count("    Consequences: replica-drift.") == 1
    for name in FORMATS:
        assert "not sound" in render_text(summary, name).lower()


def never_trained(root: Path) -> Summary:
    study = build_observed(root)
    (run,) = study.runs.values()
    shutil.rmtree(run.paths.root)
    return summary_by_checks(load_study(root))


def failed(root: Path) -> Summary:
    outcome = RankOutcome(
        status="error", epoch=0, step=1, phase="training", error_type="ValueError", message="bad"
    )
    return summary_by_checks(build_observed(root, FakeScript(outcome=lambda rank: outcome)))


@pytest.mark.parametrize(
    ("make", "words_"),
    [(never_trained, "No process was seen to import torch"), (failed, "ValueError: bad")],
)
def test_without_a_whole_run_the_reason_is_told_once(
    tmp_path: Path, make: Any, words_: str
) -> None:
    summary = make(tmp_path)
    text = " ".join(render_text(summary, "terminal").split())

    assert text.count(words_) == 1
    assert "No evidence" not in text and "Sound?" not in text
    for name in FORMATS:
        assert words_ in " ".join(render_text(summary, name).split())


def test_names_from_a_script_are_text(tmp_path: Path) -> None:
    name = " ".join(HOSTILE_NAMES)
    script = FakeScript(
        change=changed(
            ProcessRecord={"script": name, "arguments": (name,)},
            LoaderRecord={"where": name, "data_set_type": name, "sampler": name},
            OptimizerRecord={"where": name, "kind": name},
            EndRecord={"missing": (Missing(what=name, why=name),)},
        )
    )
    summary = summary_by_checks(build_observed(tmp_path, script))

    text = render_text(summary, "terminal")
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    for format_name in FORMATS:
        shown = render_text(summary, format_name)
        assert "\x1b" not in shown and "\x00" not in shown
        if format_name in ("markdown", "html", "junit"):
            assert "<script>" not in shown


# --- quality, and faults that only warn


def test_classes_of_a_script_are_its_numbers(tmp_path: Path) -> None:
    rows = {0: [(0, True), (1, True), (2, False), (3, True)], 1: []}
    summary = summary_by_checks(build_observed(tmp_path, FakeScript(more=predicting(rows))))
    text = render_text(summary, "terminal")

    table = rows_of(tables.by_class(summary, ("recall",)))
    assert table == {"0": ("2", "50.0 %"), "1": ("2", "100.0 %")}
    assert rows_of(tables.side_by_side(summary))["Accuracy"] == ("75.0 %",)
    assert "Loss" not in rows_of(tables.side_by_side(summary))  # it was not reported
    assert "No predictions of classes" not in text
    assert "all seeds together: 4 predictions of 1 seed after 3 epochs." in " ".join(text.split())
    for name in FORMATS:
        assert render_text(summary, name)


@pytest.mark.parametrize("largest", [1000, 2**31 - 1])
def test_numbers_that_are_no_classes_are_not_listed(tmp_path: Path, largest: int) -> None:
    def more(rank: int, writer: RankWriter) -> None:
        table = np.zeros(1, EVALUATION_TABLE)
        table["sample_id"], table["target"] = rank, largest
        writer.record(EvaluationRecord(epochs_done=3, table=writer.array("predictions", table)))

    summary = summary_by_checks(build_observed(tmp_path, FakeScript(more=more)))

    assert summary.quality is None
    assert "have numbers beyond 1,000" in words.quality_source(summary)


def test_shared_dropout_masks_warn_and_do_not_condemn(tmp_path: Path) -> None:
    drawn = {"ProbeRecord": {"forward_random_states": ("same", "after")}}
    script = FakeScript(change=changed(**drawn))
    summary = summary_by_checks(build_observed(tmp_path, script))
    lines = terminal_lines(summary)

    assert lines[0].startswith("SOUND  ")
    assert "Warning  identical-dropout" in lines


# --- many checks


def test_checks_with_the_same_words_are_told_once(tmp_path: Path) -> None:
    moot = [
        finding(name, outcome=Outcome.NOT_APPLICABLE, sentence="For scripts.") for name in "abc"
    ]
    other = finding("d", outcome=Outcome.NOT_APPLICABLE, sentence="No floor.")
    told = words.told_once((moot[0], other, *moot[1:]))

    assert [(shared.names, shared.sentence) for shared in told] == [
        ("a, b and c", "For scripts."),
        ("d", "No floor."),
    ]


def test_a_recipe_tells_the_checks_of_scripts_once(tmp_path: Path) -> None:
    summary = summary_by_checks(build_study(tmp_path))
    text = render_text(summary, "terminal")

    assert text.count("This needs an observed script") == 1
    assert len(words.told_once(words.shown_groups(summary).not_applicable)) <= 4
    assert summary.observed is None
