"""Runs the arms of a study: seed by seed, and within a seed epoch by epoch in turns (A B A B).

Which arm goes first alternates from seed to seed, so that neither always follows the other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from scaleproof.errors import RunError
from scaleproof.evidence.failures import describe_failure
from scaleproof.evidence.heartbeat import Beat
from scaleproof.evidence.paths import StudyPaths
from scaleproof.evidence.records import Arm, StudyRequest
from scaleproof.evidence.study import Run, load_run
from scaleproof.evidence.writer import write_json
from scaleproof.launch.request import RunRequest
from scaleproof.launch.run_process import RunProcess, log_tail

POLL_INTERVAL_S = 0.05
LOG_LINES = 20


class Watcher:
    """What the conductor tells while it works. The base class tells nothing."""

    def round_begins(self, seed: int, requests: Sequence[RunRequest]) -> None:
        """All runs of one seed are being started."""

    def beat(self, request: RunRequest, beats: Sequence[Beat | None]) -> None:
        """Where the ranks of a run are now."""

    def epoch_done(self, request: RunRequest, run: Run) -> None:
        """A run has finished an epoch and is paused."""


def conduct(
    study: StudyPaths,
    request: StudyRequest,
    rounds: Sequence[Sequence[RunRequest]],
    watcher: Watcher,
) -> None:
    """Run every round (one per seed) and leave the evidence in the study folder.

    Raises ``RunError`` at the first run that fails, after ending the others. Whatever ends this
    function, no process of it is left.
    """
    write_json(study.study, request)
    arms = {arm.name: arm for arm in request.arms}
    for index, requests in enumerate(rounds):
        order = list(requests) if index % 2 == 0 else list(reversed(requests))
        watcher.round_begins(requests[0].seed, requests)
        with _started(study, order) as runs:
            _Round(runs, arms, watcher).play(request.num_epochs)


@contextmanager
def _started(study: StudyPaths, requests: Sequence[RunRequest]) -> Iterator[list[RunProcess]]:
    runs: list[RunProcess] = []
    try:
        for request in requests:  # one by one: what was started is stopped if the next can't be
            runs += [RunProcess(study.run(request.arm, request.seed), request)]
        yield runs
    finally:
        for run in runs:
            run.stop()


@final
class _Round:
    """The runs of one seed, taking turns."""

    def __init__(self, runs: Sequence[RunProcess], arms: dict[str, Arm], watcher: Watcher) -> None:
        self._runs = runs
        self._arms = arms
        self._watcher = watcher

    def play(self, num_epochs: int) -> None:
        for run in self._runs:
            self._wait_until(run, lambda run=run: run.awaits_epoch(0))
        for epoch in range(num_epochs):
            for run in self._runs:
                if run.awaits_epoch(num_epochs):
                    continue  # it stopped early, at a loss that is not finite
                run.grant(epoch + 1)
                self._wait_until(run, lambda run=run: run.awaits_epoch(epoch + 1))  # noqa: B023
                self._watcher.epoch_done(run.request, self._evidence_of(run))
        for run in self._runs:
            run.grant(num_epochs + 1)  # to end
            self._wait_until(run, lambda run=run: run.exit_code == 0)

    def _wait_until(self, run: RunProcess, is_reached: Callable[[], bool]) -> None:
        while True:
            exit_code = run.exit_code  # before looking: a run may end right after
            self._watcher.beat(run.request, run.beats())
            if is_reached() or exit_code == 0:
                return
            for other in self._runs:
                if other.exit_code not in (None, 0):
                    raise RunError(self._why_it_failed(other))
            time.sleep(POLL_INTERVAL_S)

    def _why_it_failed(self, run: RunProcess) -> str:
        evidence = self._evidence_of(run)
        failure = describe_failure(evidence)
        if failure is None:
            tail = log_tail(run.paths, LOG_LINES)
            return (
                f"{run.name} ended with exit code {run.exit_code} before a rank could say why; "
                f"its agent wrote:\n{tail}\nLook into {run.paths.logs}."
            )
        trace = f"\n{failure.traceback.rstrip()}" if failure.traceback else ""
        return f"{failure.sentence}{trace}\nThe evidence so far is in {run.paths.root}."

    def _evidence_of(self, run: RunProcess) -> Run:
        return load_run(run.paths, self._arms[run.request.arm], run.request.seed)
