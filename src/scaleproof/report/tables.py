"""The tables all text formats show, as rows of finished words; a renderer only escapes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from scaleproof.report import numbers
from scaleproof.report.quality import ArmQuality, ClassScores, QualityComparison
from scaleproof.report.summary import ArmSummary, Summary
from scaleproof.report.words import column_of, learning_rate

MOST_NAME_CHARACTERS = 28


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Every row has one cell per column; the first is the row's heading. ``numeric`` columns are
    aligned to the right (all but the first)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True


def side_by_side(summary: Summary) -> Table | None:
    """Epoch time and quality of the arms; None when there is neither."""
    rows = _time_rows(summary) + _quality_rows(summary)
    if not rows:
        return None
    both = summary.baseline is not None
    return Table(
        title="Arms side by side" if both else "What the arm came to",
        columns=("", *(column_of(arm) for arm in summary.arms), *(("Change",) if both else ())),
        rows=tuple(rows),
    )


def speed(summary: Summary) -> Table | None:
    """Speed-up and what follows from it; None when it could not be measured."""
    measured = summary.timing.speed_up
    if measured is None:
        return None
    pairs = (
        (
            "Speed-up",
            numbers.times(measured.speed_up),
            numbers.times_interval(measured.speed_up_low, measured.speed_up_high),
        ),
        (
            "Scaling efficiency",
            numbers.percent(measured.efficiency),
            numbers.percent_interval(measured.efficiency_low, measured.efficiency_high),
        ),
        (
            "Time reduction",
            numbers.percent(measured.time_reduction),
            numbers.percent_interval(measured.time_reduction_low, measured.time_reduction_high),
        ),
    )
    interval = f"{numbers.percent(measured.confidence, 0)} interval"
    return Table(title="Speed", columns=("", "Measured", interval), rows=pairs)


_MEASURES: dict[str, tuple[str, Callable[[ClassScores], float | None]]] = {
    "recall": ("Recall", lambda scores: scores.recall),
    "precision": ("Precision", lambda scores: scores.precision),
    "f1": ("F1", lambda scores: scores.f1),
}


def by_class(summary: Summary, measures: tuple[str, ...]) -> Table | None:
    """Scores of the listed classes, ``measures`` out of recall, precision and f1, in both arms."""
    quality = summary.quality
    if quality is None or not quality.listed:
        return None
    both = quality.baseline is not None and quality.candidate is not None
    rows: list[tuple[str, ...]] = []
    for index in quality.listed:
        row = quality.classes[index]
        present = [scores for scores in (row.baseline, row.candidate) if scores is not None]
        cells = [numbers.shortened(row.name, MOST_NAME_CHARACTERS)]
        cells.append(numbers.count(present[-1].support))
        for measure in measures:
            _, score_of = _MEASURES[measure]
            cells.extend(numbers.percent(score_of(scores)) for scores in present)
            if measure == "recall" and both:
                cells.append(numbers.percent_change(row.recall_change))
        rows.append(tuple(cells))
    return Table(
        title="Class by class", columns=_class_columns(quality, measures), rows=tuple(rows)
    )


def _class_columns(quality: QualityComparison, measures: tuple[str, ...]) -> tuple[str, ...]:
    arms = [arm for arm in (quality.baseline, quality.candidate) if arm is not None]
    columns = ["Class", "Samples"]
    for measure in measures:
        word = _MEASURES[measure][0]
        columns.extend(f"{word}, {arm.arm}" for arm in arms)
        if measure == "recall" and len(arms) == 2:
            columns.append("Change")
    return tuple(columns)


def confusions(summary: Summary, *, most: int) -> Table | None:
    """The most frequent confusions; None when nothing was confused or evaluated."""
    quality = summary.quality
    if quality is None or not quality.confusions:
        return None
    arms = [arm for arm in (quality.baseline, quality.candidate) if arm is not None]
    rows: list[tuple[str, ...]] = []
    for confusion in quality.confusions[:most]:
        truth, prediction = (
            numbers.shortened(name, MOST_NAME_CHARACTERS)
            for name in (confusion.truth, confusion.prediction)
        )
        shares = [
            share
            for arm, share in (
                (quality.baseline, confusion.baseline_share),
                (quality.candidate, confusion.candidate_share),
            )
            if arm is not None
        ]
        rows.append((f"{truth} → {prediction}", *map(numbers.percent, shares)))
    return Table(
        title="Most frequent confusions",
        columns=("Truth → prediction, share of the class", *(arm.arm for arm in arms)),
        rows=tuple(rows),
    )


def matrix(quality: QualityComparison, arm: ArmQuality) -> Table | None:
    """The confusion matrix as counts; None when there are too many classes for one."""
    if arm.confusion is None:
        return None
    names = [numbers.shortened(name, MOST_NAME_CHARACTERS) for name in quality.class_names]
    return Table(
        title=f"Confusion matrix of {arm.arm}, number of predictions",
        columns=("Truth \\ prediction", *names),
        rows=tuple(
            (name, *map(numbers.count, row)) for name, row in zip(names, arm.confusion, strict=True)
        ),
    )


def arms(summary: Summary) -> Table:
    """How each arm trained."""
    rows: list[tuple[str, ...]] = [
        (label, *(words(arm) for arm in summary.arms))
        for label, words in _ARM_ROWS
        if summary.kind == "recipe" or label not in _ROWS_OF_RECIPES
    ]
    usable = {
        arm.name: [run for run in summary.runs if run.arm == arm.name] for arm in summary.arms
    }
    rows.append(
        (
            "Runs finished",
            *(
                f"{sum(run.status in ('complete', 'diverged') for run in runs)} of {len(runs)}"
                for runs in usable.values()
            ),
        )
    )
    return Table(
        title="Arms",
        columns=("", *(column_of(arm) for arm in summary.arms)),
        rows=tuple(rows),
        numeric=False,
    )


def environment(summary: Summary) -> Table:
    """What was run, on what."""
    asked = (
        ("Command", " ".join(summary.command)),
        ("Started", summary.created_at),
        ("Seeds asked for", numbers.listed([str(seed) for seed in summary.seeds], most=20)),
    )
    facts = tuple(
        (fact.label, numbers.listed(fact.values, most=20)) for fact in summary.environment
    )
    return Table(title="Environment", columns=("", "Value"), rows=asked + facts, numeric=False)


def _time_rows(summary: Summary) -> list[tuple[str, ...]]:
    by_arm = {arm.arm: arm.median_epoch_time_s for arm in summary.timing.arms}
    medians = [by_arm[arm.name] for arm in summary.arms]
    if all(median is None for median in medians):
        return []
    cells = [numbers.seconds(median) for median in medians]
    if len(medians) == 2:
        before, after = medians
        comparable = before is not None and after is not None and not summary.share_device
        cells.append(_relative(before, after) if comparable else numbers.MISSING)
    return [("Epoch time, median", *cells)]


def _relative(before: float | None, after: float | None) -> str:
    assert before is not None and after is not None  # the caller has looked
    return numbers.percent_relative(after / before - 1)


def _quality_rows(summary: Summary) -> list[tuple[str, ...]]:
    quality = summary.quality
    if quality is None:
        return []
    columns = [quality.candidate]
    if summary.baseline is not None:
        columns.insert(0, quality.baseline)
    is_loss_known = summary.kind == "recipe" or any(arm and arm.loss is not None for arm in columns)
    loss = _row("Loss", columns, lambda arm: arm.loss, _loss, numbers.plain_change)
    return [
        _row(
            "Accuracy", columns, lambda arm: arm.accuracy, numbers.percent, numbers.percent_change
        ),
        *_seed_row(columns),
        _row(
            "Balanced accuracy",
            columns,
            lambda arm: arm.balanced_accuracy,
            numbers.percent,
            numbers.percent_change,
        ),
        _row(
            "Macro F1", columns, lambda arm: arm.macro_f1, numbers.percent, numbers.percent_change
        ),
        *((loss,) if is_loss_known else ()),
        _row(
            "Accuracy of naming the largest class",
            columns,
            lambda arm: arm.no_information_rate,
            numbers.percent,
            numbers.percent_change,
        ),
    ]


def _row(
    label: str,
    columns: list[ArmQuality | None],
    value_of: Callable[[ArmQuality], float | None],
    words: Callable[[float | None], str],
    change_words: Callable[[float | None], str],
) -> tuple[str, ...]:
    values = [value_of(arm) if arm is not None else None for arm in columns]
    cells = [
        words(value) if arm is not None else numbers.MISSING
        for arm, value in zip(columns, values, strict=True)
    ]
    if len(values) == 2:
        before, after = values
        change = after - before if before is not None and after is not None else None
        cells.append(change_words(change))
    return (label, *cells)


def _seed_row(columns: list[ArmQuality | None]) -> list[tuple[str, ...]]:
    """Lowest and highest seed; nothing when no arm has two seeds."""
    if all(arm is None or len(arm.seeds) < 2 for arm in columns):
        return []
    cells = [
        numbers.MISSING
        if arm is None
        else f"{numbers.percent(min(arm.accuracy_by_seed))} to "
        f"{numbers.percent(max(arm.accuracy_by_seed))}"
        for arm in columns
    ]
    return [("Accuracy, lowest to highest seed", *cells, *([""] if len(columns) == 2 else []))]


def _loss(value: float | None) -> str:
    return "not finite" if value is None else numbers.plain(value)


def _settings(arm: ArmSummary) -> str:
    pairs = [f"{name} = {value}" for name, value in arm.strategy_settings.items()]
    return ", ".join(pairs) or numbers.MISSING


def _optional(value: int | str | None) -> str:
    if isinstance(value, int):
        return numbers.count(value)
    return value if value is not None else numbers.MISSING


_ROWS_OF_RECIPES = ("Learning rate", "Settings")
"""What a script decides itself."""

_ARM_ROWS: tuple[tuple[str, Callable[[ArmSummary], str]], ...] = (
    ("Name", lambda arm: arm.name),
    ("Role", lambda arm: arm.role),
    ("Strategy", lambda arm: arm.strategy),
    ("Devices", lambda arm: numbers.count(arm.num_devices)),
    ("Device names", lambda arm: ", ".join(arm.device_names) or numbers.MISSING),
    ("Ranks", lambda arm: _optional(arm.num_ranks)),
    ("Backend", lambda arm: _optional(arm.backend)),
    ("Batch per device", lambda arm: _optional(arm.batch_per_device)),
    ("Global batch", lambda arm: _optional(arm.global_batch_size)),
    ("Learning rate", lambda arm: learning_rate(arm).removeprefix("learning rate ")),
    ("Settings", _settings),
)
