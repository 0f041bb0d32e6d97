"""A line on the terminal that says where the ranks of a run are."""

from collections.abc import Iterable
from typing import Self, final

from rich.console import Console
from rich.progress import (
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from typing_extensions import override

from scaleproof.errors import EvidenceError
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import PulseReading, read_pulse

REFRESHES_PER_SECOND = 4


class RunLine:
    """A line that says where the ranks of a run are, and lines above it that stay."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _WhereColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, paths: RunPaths, line: str) -> None:
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self.say(line)
        self._bars.add_task(paths.root.name, total=None, paths=paths)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


@final
class _WhereColumn(ProgressColumn):
    """Looks at the run's processes whenever the line is drawn."""

    @override
    def render(self, task: Task) -> Text:
        return Text(where(_pulses(task.fields["paths"])))


def where(pulses: Iterable[PulseReading]) -> str:
    """Where the ranks are, in words; processes without a rank have not trained yet."""
    ranks = [pulse for pulse in pulses if pulse.rank >= 0]
    if not ranks:
        return "starting"
    steps = sorted({pulse.step for pulse in ranks})
    span = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    last = min(ranks, key=lambda pulse: pulse.step)
    epoch = f"epoch {last.epoch + 1}, " if last.epoch >= 0 else ""
    return f"{epoch}{span} steps, {last.activity.word}"


def _pulses(paths: RunPaths) -> list[PulseReading]:
    found: list[PulseReading] = []
    for path in sorted(paths.processes.glob("*.pulse")):
        try:
            pulse = read_pulse(path)
        except EvidenceError:
            continue  # what judges the run says so; here it only is not shown
        if pulse is not None:
            found.append(pulse)
    return found
