"""Arms take turns, epoch by epoch, so that a drifting machine hits them alike.

The conductor grants epochs through a file in the run folder; a run that waits sleeps and costs
nothing that the other could notice.
"""

import time
from pathlib import Path
from typing import final

from scaleproof.evidence.writer import write_atomically

POLL_INTERVAL_S = 0.03


def grant_epochs(path: Path, num_epochs: int) -> None:
    """Let the run begin its first ``num_epochs`` epochs; one more than it has lets it end."""
    write_atomically(path, str(num_epochs).encode())


@final
class Turns:
    """A rank's view of the turns of its run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wait_for(self, epoch: int) -> None:
        """Return when epoch ``epoch`` (from 0) may begin."""
        while self._granted() <= epoch:
            time.sleep(POLL_INTERVAL_S)

    def _granted(self) -> int:
        try:
            return int(self._path.read_bytes())
        except FileNotFoundError:
            return 0
