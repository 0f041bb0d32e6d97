"""One run as the conductor sees it: a process tree, and where its ranks are."""

import subprocess
import sys
from pathlib import Path
from typing import final

import psutil

from scaleproof.evidence.heartbeat import Beat, Phase, read_heartbeat
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.writer import write_error, write_json
from scaleproof.launch.environment import agent_environment
from scaleproof.launch.request import RunRequest
from scaleproof.launch.turns import grant_epochs

TERMINATE_TIMEOUT_S = 3.0
"""How long a run may take to end by itself before it is killed: with what follows, under 5 s."""


@final
class RunProcess:
    """Starts the agent of one run; ``stop`` ends it and everything below it."""

    def __init__(self, paths: RunPaths, request: RunRequest) -> None:
        self.paths = paths
        self.request = request
        write_json(paths.request, request)
        try:
            paths.logs.mkdir(parents=True, exist_ok=True)
            with (paths.logs / "agent.log").open("wb") as log:
                self._agent = subprocess.Popen(
                    [sys.executable, "-m", "scaleproof.launch.agent", str(paths.root)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C in the terminal is the conductor's business
                    env=agent_environment(),
                )
        except OSError as error:
            raise write_error(paths.logs, error) from error

    @property
    def name(self) -> str:
        return self.paths.root.name

    @property
    def exit_code(self) -> int | None:
        """The agent's exit code; None while it lives."""
        return self._agent.poll()

    def beats(self) -> tuple[Beat | None, ...]:
        """The last beat of every rank; None for one that has not begun."""
        return tuple(
            read_heartbeat(self.paths.heartbeat(rank)) for rank in range(self.request.num_ranks)
        )

    def awaits_epoch(self, epoch: int) -> bool:
        """Whether every rank stands before ``epoch``, or has ended."""
        return all(
            beat is not None
            and (beat.phase is Phase.ENDED or (beat.phase is Phase.WAITING and beat.epoch >= epoch))
            for beat in self.beats()
        )

    def grant(self, num_epochs: int) -> None:
        grant_epochs(self.paths.turn, num_epochs)

    def stop(self) -> None:
        """End the agent and all its descendants, at the latest after ``TERMINATE_TIMEOUT_S``."""
        try:
            agent = psutil.Process(self._agent.pid)
            family = [agent, *agent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        if self.exit_code is None:
            self._agent.terminate()
        _, alive = psutil.wait_procs(family, timeout=TERMINATE_TIMEOUT_S)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it ended by itself in between
        self._agent.wait()


def log_tail(paths: RunPaths, num_lines: int) -> str:
    """The end of the agent's own log."""
    log: Path = paths.logs / "agent.log"
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])
