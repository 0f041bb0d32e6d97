"""One rank of one run: ``python -m scaleproof.launch.worker RUN_FOLDER``.

Whatever happens, it leaves an outcome: success, or the error with its traceback.
"""

import sys
import time
from pathlib import Path
from typing import Literal

from scaleproof.errors import RunError
from scaleproof.evidence.heartbeat import Heartbeat
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.tracebacks import traceback_of
from scaleproof.evidence.writer import write_json
from scaleproof.launch.environment import rank_facts
from scaleproof.launch.parent import end_with_parent


def main(folder: str) -> int:
    end_with_parent()  # before the slow imports: the parent may die while they last
    paths, facts = RunPaths(Path(folder)), rank_facts()
    heartbeat = Heartbeat(paths.heartbeat(facts.rank))
    status: Literal["ok", "diverged", "error"] = "error"
    error: BaseException | None = None
    try:
        from scaleproof.launch.rank import run_rank

        status = run_rank(paths, facts, heartbeat)
    except BaseException as raised:  # noqa: BLE001 - it is written down, whatever it is
        error = raised
    outcome = RankOutcome(
        status=status,
        epoch=heartbeat.epoch,
        step=heartbeat.step,
        phase=heartbeat.phase.word,
        error_type="" if error is None else type(error).__name__,
        message="" if error is None else str(error),
        traceback="" if error is None else traceback_of(error),
        ended_at_unix_s=time.time(),
    )
    if error is not None:
        heartbeat.say(f"{outcome.error_type}: {outcome.message}")
        print(outcome.traceback, file=sys.stderr)
    try:
        write_json(paths.outcome(facts.rank), outcome)
    except RunError as full:  # the heartbeat has the last words already
        print(full, file=sys.stderr)
        return 1
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
