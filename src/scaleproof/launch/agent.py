"""Starts and watches the ranks of one run: ``python -m scaleproof.launch.agent RUN_FOLDER``.

torch's own elastic agent does the work. This process exists so that two arms can be alive at
once, and so that one signal ends a run.
"""

import signal
import sys
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from scaleproof.evidence.heartbeat import read_heartbeat
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.writer import write_json
from scaleproof.launch.parent import end_with_parent
from scaleproof.launch.request import RunRequest

SHUTDOWN_TIMEOUT_S = 2
"""How long ranks may take to end by themselves before they are killed."""

MONITOR_INTERVAL_S = 0.3
"""How often the agent looks at its ranks: looking takes processor time that they would use."""

LAST_LINES = 40


def main(folder: str) -> int:
    end_with_parent()
    paths = RunPaths(Path(folder))
    request = read_json(paths.request, RunRequest, what="the request of a run")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request.num_ranks,
        run_id=paths.root.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        logs_specs=DefaultLogsSpecs(log_dir=str(paths.logs), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "scaleproof.launch.worker", folder)
    except ChildFailedError as failed:
        _write_missing_outcomes(paths, failed.failures)
        return 1
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


def _write_missing_outcomes(paths: RunPaths, failures: dict[int, ProcessFailure]) -> None:
    """Speak for the ranks that could not: those that were killed.

    A rank that ended with SIGTERM while others failed was ended by this agent, because of them.
    """
    is_ended_here = {
        rank: failure.exitcode == -signal.SIGTERM for rank, failure in failures.items()
    }
    for rank, failure in failures.items():
        if not paths.outcome(rank).exists() and (
            not is_ended_here[rank] or all(is_ended_here.values())
        ):
            _write_outcome(paths, rank, failure)


def _write_outcome(paths: RunPaths, rank: int, failure: ProcessFailure) -> None:
    """Say how a rank ended, and its last lines."""
    beat = read_heartbeat(paths.heartbeat(rank))
    code = failure.exitcode
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    message = f"the process ended with {how}"
    if beat is not None and beat.last_words:
        message = f"{beat.last_words} ({message})"
    elif code == -signal.SIGKILL:
        message += ": something outside killed it; the kernel does when memory runs out"
    outcome = RankOutcome(
        status="error",
        epoch=beat.epoch if beat else 0,
        step=beat.step if beat else 0,
        phase=beat.phase.word if beat else "starting",
        error_type="ProcessEnded",
        message=message,
        traceback=_last_lines(paths, rank),
        ended_at_unix_s=time.time(),
    )
    write_json(paths.outcome(rank), outcome)


def _last_lines(paths: RunPaths, rank: int) -> str:
    """The end of what the rank wrote to stderr."""
    for path in sorted(paths.logs.glob(f"**/{rank}/stderr.log")):
        lines = path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
