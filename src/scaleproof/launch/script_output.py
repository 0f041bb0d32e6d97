"""What a script writes while it runs, and what to make of it when its run can't be used."""

import re
from collections.abc import Sequence
from pathlib import Path

from scaleproof.errors import RunError
from scaleproof.evidence.failures import describe_failure
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import Manifest
from scaleproof.evidence.study import Run
from scaleproof.evidence.troubles import read_troubles
from scaleproof.evidence.writer import write_error

LOG_LINES = 20
NUM_LOG_BYTES = 40_000


def log_of(paths: RunPaths) -> Path:
    """What a command and all its processes write to stdout and stderr."""
    return paths.logs / "output.log"


def into_log(argv: Sequence[str], log: Path, *, one_thread: bool) -> tuple[str, ...]:
    """``argv`` with its output going into ``log`` and nothing to read from; ``one_thread``: unless
    the user says otherwise, as OpenMP reads it.

    The shell replaces itself by the command: no process more.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(log.parent, error) from error
    threads = 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; ' if one_thread else ""
    return ("/bin/sh", "-c", f'{threads}exec "$@" >>"$0" 2>&1 </dev/null', str(log), *argv)


def manifest_of(run: Run, exit_code: int) -> Manifest:
    """The manifest of a run that can be used; ``RunError`` for any other.

    The exit code decides nothing: a process may abort at its exit, after all its work.
    """
    if run.is_usable and run.manifest is not None:
        return run.manifest
    log = log_of(run.paths)
    ending = f"The evidence so far is in {run.paths.root}, the command's output in {log}."
    failure = describe_failure(run)
    if failure is not None:
        is_hang = run.paths.hang.exists()  # then the last lines are of how it was ended
        details = failure.traceback.rstrip() or ("" if is_hang else last_lines(log))
        raise RunError("\n".join(filter(None, (failure.sentence, details, ending))))
    raise RunError(
        f"{run.name} ended with exit code {exit_code}, and {_what_is_missing(run)} Its last lines:"
        f"\n{last_lines(log)}\n{ending}"
    )


def _what_is_missing(run: Run) -> str:
    """Why a run that names no error can't be used."""
    if run.status == "missing":
        why = "; ".join(trouble.why for trouble in read_troubles(run.paths))
        return (
            f"its training could not be observed: {why}."
            if why
            else "no training was seen in it: no process called step of an optimizer of torch."
        )
    silent = [str(rank.rank) for rank in run.ranks if rank.outcome is None]
    which = f"rank {', '.join(silent)}" if silent else "a rank"
    return f"{which} left no word of how it ended: something outside may have killed it."


def last_lines(log: Path) -> str:
    """The end of what the command wrote; the file may have gigabytes."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - NUM_LOG_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(_without_agent(text.splitlines())[-LOG_LINES:])


_OF_THE_AGENT = re.compile(r"[EW]\d{4} .*(?:closing signal|failed \(exitcode)")


def _without_agent(lines: list[str]) -> list[str]:
    """What the script said, without what torchrun says of its failure afterwards."""
    found = (index for index, line in enumerate(lines) if _OF_THE_AGENT.match(line))
    return lines[: next(found, 0)] or lines
