"""Progress in the terminal: a bar per arm, and a line per finished epoch."""

from collections.abc import Sequence
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from typing_extensions import override

from scaleproof.evidence.heartbeat import Beat, Phase
from scaleproof.evidence.study import Run
from scaleproof.launch.conduct import Watcher
from scaleproof.launch.request import RunRequest

REFRESHES_PER_SECOND = 1
"""Few: drawing takes processor time that the ranks would use."""


@final
class TerminalProgress(Watcher):
    """Use as a context manager around ``conduct``."""

    def __init__(self, console: Console, num_seeds: int) -> None:
        self._console = console
        self._num_seeds = num_seeds
        self._num_rounds = 0
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[where]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @override
    def round_begins(self, seed: int, requests: Sequence[RunRequest]) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._num_rounds += 1
        self._console.print(
            f"Seed {seed} ({self._num_rounds} of {self._num_seeds}): "
            f"{' and '.join(request.arm for request in requests)}"
            f"{' in turns' if len(requests) > 1 else ''}, {requests[0].num_epochs} epochs",
            highlight=False,
            markup=False,
        )
        width = max(len(request.arm) for request in requests)
        self._tasks = {
            request.arm: self._bars.add_task(
                request.arm.ljust(width), total=request.num_epochs, where="starting"
            )
            for request in requests
        }

    @override
    def beat(self, request: RunRequest, beats: Sequence[Beat | None]) -> None:
        beat = beats[0]
        if beat is None:
            return
        share = beat.step / beat.num_steps if beat.num_steps else 0.0
        done = beat.epoch + (share if beat.phase is Phase.TRAINING else 0.0)
        where = f"epoch {min(beat.epoch + 1, request.num_epochs)} of {request.num_epochs}"
        if beat.phase is Phase.TRAINING:
            where += f", step {beat.step + 1} of {beat.num_steps}"
        else:
            where += f", {beat.phase.word}"
        self._bars.update(self._tasks[request.arm], completed=done, where=where)

    @override
    def epoch_done(self, request: RunRequest, run: Run) -> None:
        times_s = run.epoch_times_s
        table = run.final_evaluation
        if not len(times_s) or not len(table):
            return
        accuracy = float((table["target"] == table["prediction"]).mean())
        self._console.print(
            f"  {request.arm:<10} epoch {len(times_s):>3} of {request.num_epochs}   "
            f"{times_s[-1]:7.2f} s   loss {table['loss'].mean():7.4f}   accuracy {accuracy:6.2%}",
            highlight=False,
            markup=False,
        )
