"""The charts of the HTML report.

Both arms have the same colours everywhere, and a second mark besides colour: dashes or shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import altair as alt
from markupsafe import Markup

from scaleproof.report import numbers, words
from scaleproof.report.curves import Curve, EvaluationPoint
from scaleproof.report.quality import ArmQuality, QualityComparison
from scaleproof.report.summary import Summary
from scaleproof.report.svg import BASELINE, CANDIDATE, INK, AnyChart, to_svg, unique_labels

Row = dict[str, str | int | float | bool | None]

_CURVE_HEIGHT = 200
_CLASS_HEIGHT = 20
_MATRIX_HEIGHT = 330
_MOST_LABELLED_CELLS = 12  # classes; beyond this, numbers would not fit into the cells
_LABEL_CHARACTERS = 16
_LEAST_CHANGE_SHOWN = 0.05  # so that noise of one per cent is not drawn in full colour

_ROLES = ["baseline", "candidate"]
_COLOUR = alt.Color(
    "role:N", scale=alt.Scale(domain=_ROLES, range=[BASELINE, CANDIDATE]), legend=None
)
_DASH = alt.StrokeDash(
    "role:N", scale=alt.Scale(domain=_ROLES, range=[[5, 2], [1, 0]]), legend=None
)
_SHAPE = alt.Shape(
    "role:N", scale=alt.Scale(domain=_ROLES, range=["circle", "triangle-up"]), legend=None
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing and its words; ``needs_legend``: it tells the arms apart by colour and mark."""

    group: Literal["learning", "times", "classes", "matrices"]
    title: str
    caption: str
    svg: Markup
    needs_legend: bool = True


def draw_charts(summary: Summary) -> tuple[Chart, ...]:
    """Every chart there is evidence for, in report order."""
    charts = (
        _curves(
            summary,
            key="training-loss",
            title="Training loss",
            points_of=lambda curve: [(p.samples_seen, p.loss) for p in curve.training],
        ),
        _curves(
            summary,
            key="evaluation-loss",
            title="Evaluation loss",
            points_of=lambda curve: [(p.samples_seen, p.loss) for p in _trained(curve)],
        ),
        _curves(
            summary,
            key="evaluation-accuracy",
            title="Evaluation accuracy",
            points_of=lambda curve: [(p.samples_seen, p.accuracy) for p in _trained(curve)],
            number_format="~%",
        ),
        _epoch_times(summary),
        _recalls(summary),
        *_matrices(summary),
    )
    return tuple(chart for chart in charts if chart is not None)


def _curves(
    summary: Summary,
    *,
    key: str,
    title: str,
    points_of: Callable[[Curve], list[tuple[int, float | None]]],
    number_format: str = "~g",
) -> Chart | None:
    role_of = {arm.name: arm.role for arm in summary.arms}
    rows: list[Row] = [
        {"role": role_of[curve.arm], "run": f"{curve.arm} {curve.seed}", "samples": x, "value": y}
        for curve in summary.curves
        for x, y in points_of(curve)
    ]
    if all(row["value"] is None for row in rows):
        return None
    lines = _chart(rows, height=_CURVE_HEIGHT).encode(
        x=alt.X(
            "samples:Q",
            title="samples seen",
            scale=alt.Scale(nice=False),
            axis=alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5),
        ),
        y=alt.Y(
            "value:Q",
            title=None,
            scale=alt.Scale(zero=False),
            axis=alt.Axis(format=number_format, tickCount=6),
        ),
        detail="run:N",
        color=_COLOUR,
    )
    layers = [lines.mark_line(strokeWidth=1.4, opacity=0.85).encode(strokeDash=_DASH)]
    # A line needs two points; few enough points are worth seeing one by one.
    if max(len(points_of(curve)) for curve in summary.curves) <= 40:
        layers.append(lines.mark_point(filled=True, size=16, opacity=0.9).encode(shape=_SHAPE))
    num_lost = sum(row["value"] is None for row in rows)
    return Chart(
        group="learning",
        title=title,
        caption="One line per seed." + (" Gaps: not finite." if num_lost else ""),
        svg=to_svg(
            alt.layer(*layers),
            key=key,
            title=f"{title} over samples seen",
            description=_curve_words(summary, points_of, number_format),
        ),
    )


def _trained(curve: Curve) -> list[EvaluationPoint]:
    """Evaluations after training: the initial weights' would flatten all that came later."""
    return [point for point in curve.evaluation if point.epochs_done > 0]


def _curve_words(
    summary: Summary,
    points_of: Callable[[Curve], list[tuple[int, float | None]]],
    number_format: str,
) -> str:
    parts: list[str] = []
    for curve in summary.curves:
        points = points_of(curve)
        if points:
            value = points[-1][1]
            last = numbers.percent(value) if "%" in number_format else numbers.plain(value)
            ends = "a number that is not finite" if value is None else last
            parts.append(f"{curve.arm} seed {curve.seed} ends at {ends}")
    return words.visible("; ".join(parts)) + "."


def _epoch_times(summary: Summary) -> Chart | None:
    role_of = {arm.name: arm.role for arm in summary.arms}
    rows: list[Row] = [
        {
            "role": role_of[time.arm],
            "epoch": time.epoch + 1,
            "time": time.time_s,
            "is_warm_up": time.is_warm_up,
        }
        for time in summary.timing.epoch_times
    ]
    if not rows:
        return None
    medians: list[Row] = [
        {"role": role_of[arm.arm], "time": arm.median_epoch_time_s}
        for arm in summary.timing.arms
        if arm.median_epoch_time_s is not None
    ]
    last = max(time.epoch + 1 for time in summary.timing.epoch_times)
    points = alt.layer(
        *(
            _chart([row for row in rows if row["is_warm_up"] is is_warm_up], height=_CURVE_HEIGHT)
            .mark_point(filled=not is_warm_up, size=34, opacity=0.85, strokeWidth=1)
            .encode(
                x=alt.X(
                    "epoch:Q",
                    title="epoch",
                    scale=alt.Scale(domain=[0.5, last + 0.5], nice=False),
                    axis=alt.Axis(format="d", tickMinStep=1, tickCount=min(last, 8), grid=False),
                ),
                y=alt.Y(
                    "time:Q",
                    title="seconds",
                    scale=alt.Scale(zero=True),
                    axis=alt.Axis(tickCount=6),
                ),
                color=_COLOUR,
                shape=_SHAPE,
            )
            for is_warm_up in (True, False)
        ),
        _chart(medians, height=_CURVE_HEIGHT)
        .mark_rule(strokeWidth=1, opacity=0.7)
        .encode(y="time:Q", color=_COLOUR, strokeDash=_DASH),
    )
    description = "; ".join(
        f"{arm.arm}: median {numbers.seconds(arm.median_epoch_time_s)} over "
        f"{numbers.counted(arm.num_epochs, 'epoch')}"
        for arm in summary.timing.arms
    )
    return Chart(
        group="times",
        title="Epoch times",
        caption="Every raw value; hollow: warm-up, left out. Lines: medians.",
        svg=to_svg(
            points,
            key="epoch-times",
            title="Training time of every epoch, in seconds",
            description=words.visible(description) + ".",
        ),
    )


def _recalls(summary: Summary) -> Chart | None:
    quality = summary.quality
    if quality is None:
        return None
    labels = unique_labels(quality.class_names, _LABEL_CHARACTERS)
    rows: list[Row] = []
    for index in quality.listed:
        row = quality.classes[index]
        rows.extend(
            {"role": role, "class": labels[index], "recall": scores.recall}
            for role, scores in zip(_ROLES, (row.baseline, row.candidate), strict=True)
            if scores is not None and scores.recall is not None
        )
    if not rows:
        return None
    shown = [labels[index] for index in quality.listed]
    base = _chart(rows, height=_CLASS_HEIGHT * len(shown) + 45)
    y = alt.Y("class:N", title=None, sort=shown, scale=alt.Scale(domain=shown), axis=_class_axis())
    gaps = base.mark_rule(color="var(--grid)", strokeWidth=3).encode(
        x=alt.X("min(recall):Q", title=None), x2="max(recall):Q", y=y
    )
    dots = base.mark_point(filled=True, size=52, opacity=0.9).encode(
        x=alt.X(
            "recall:Q",
            title="recall",
            scale=alt.Scale(zero=False, padding=8),
            axis=alt.Axis(format="~%", tickCount=5, labelOverlap="greedy"),
        ),
        y=y,
        color=_COLOUR,
        shape=_SHAPE,
    )
    return Chart(
        group="classes",
        title="Recall of each class" if len(shown) == len(labels) else "Recall of some classes",
        caption="Share of the class's samples that were recognised. The axis need not start at 0.",
        svg=to_svg(
            alt.layer(gaps, dots),
            key="recall",
            title="Recall of each class in both arms",
            description="The table of scores class by class has the same numbers.",
        ),
    )


def _matrices(summary: Summary) -> tuple[Chart, ...]:
    quality = summary.quality
    if quality is None:
        return ()
    arms = [arm for arm in (quality.baseline, quality.candidate) if arm is not None]
    charts = [_matrix(quality, arm) for arm in arms if arm.confusion is not None]
    if quality.confusion_change is not None:
        charts.append(_matrix_change(quality, quality.confusion_change))
    return tuple(charts)


def _matrix(quality: QualityComparison, arm: ArmQuality) -> Chart:
    assert arm.confusion is not None  # the caller has looked
    shares = [[count / max(sum(row), 1) for count in row] for row in arm.confusion]
    cells = _cells(quality, shares, lambda share: f"{100 * share:.0f}")
    chart = _heat_map(
        cells,
        quality,
        opacity=alt.Scale(type="sqrt", domain=[0, 1], range=[0, 0.9]),
        fill=alt.value("var(--matrix)"),
    )
    role = "baseline" if arm is quality.baseline else "candidate"
    return Chart(
        group="matrices",
        title=f"Confusion matrix, {role}",
        caption=f"{arm.arm}: per cent of each true class (row).",
        svg=to_svg(
            chart,
            key=f"confusion-{role}",
            title=f"Confusion matrix of the {role}, in per cent of each true class",
            description="The tables below have the counts.",
        ),
        needs_legend=False,
    )


def _matrix_change(
    quality: QualityComparison, change: tuple[tuple[float | None, ...], ...]
) -> Chart:
    cells = _cells(quality, change, lambda share: f"{100 * share:+.0f}".replace("-", "−"))
    largest = max((abs(share) for row in change for share in row if share is not None), default=0)
    chart = _heat_map(
        cells,
        quality,
        opacity=alt.Scale(domain=[0, max(largest, _LEAST_CHANGE_SHOWN)], range=[0, 0.75]),
        fill=alt.Fill(
            "sign:N",
            scale=alt.Scale(domain=["less", "more"], range=["var(--less)", "var(--more)"]),
            legend=None,
        ),
    )
    return Chart(
        group="matrices",
        title="Difference of the two",
        caption="Candidate minus baseline, in percentage points of each true class. "
        "Blue: more often in the candidate; orange: less often.",
        svg=to_svg(
            chart,
            key="confusion-change",
            title="Confusion matrix of the candidate minus that of the baseline",
            description="In percentage points of each class; the tables below have the counts.",
        ),
        needs_legend=False,
    )


def _cells(
    quality: QualityComparison,
    values: Any,
    label_of: Callable[[float], str],
) -> list[Row]:
    """One row per cell; a cell that rounds to 0 keeps its label empty, so that the rest shows."""
    labels = unique_labels(quality.class_names, _LABEL_CHARACTERS)
    return [
        {
            "truth": truth,
            "prediction": prediction,
            "size": abs(value) if value is not None else 0,
            "sign": "less" if value is not None and value < 0 else "more",
            "label": label_of(value) if value is not None and round(100 * value) != 0 else "",
        }
        for truth, row in zip(labels, values, strict=True)
        for prediction, value in zip(labels, row, strict=True)
    ]


def _heat_map(
    cells: list[Row], quality: QualityComparison, *, opacity: alt.Scale, fill: Any
) -> AnyChart:
    base = _chart(cells, height=_MATRIX_HEIGHT).encode(
        x=alt.X(
            "prediction:N",
            title="prediction",
            sort=None,
            axis=_class_axis(labelAngle=-90),
        ),
        y=alt.Y("truth:N", title="truth", sort=None, axis=_class_axis()),
    )
    rectangles = base.mark_rect(stroke="var(--grid)", strokeWidth=0.5).encode(
        fill=fill,
        fillOpacity=alt.FillOpacity("size:Q", scale=opacity, legend=None),
    )
    if len(quality.class_names) > _MOST_LABELLED_CELLS:
        return alt.layer(rectangles)
    return alt.layer(rectangles, base.mark_text(color=INK).encode(text="label:N"))


def _class_axis(**changes: Any) -> alt.Axis:
    return alt.Axis(labelLimit=90, ticks=False, domain=False, grid=False, labelPadding=4, **changes)


def _chart(rows: list[Row], *, height: int) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows), height=height)
