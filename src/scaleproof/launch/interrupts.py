"""Whether Ctrl-C was pressed while a command ran, which gets it too and may answer as it likes."""

import os
import signal
from types import TracebackType
from typing import final


@final
class Interrupts:
    """Notes each SIGINT that arrives inside the ``with`` block, whoever handles it.

    It only listens: Python writes the number of every signal it handles into a wake-up pipe.
    For the main thread alone, which is the one that handles signals.
    """

    def __init__(self) -> None:
        self.is_seen = False

    def __enter__(self) -> "Interrupts":
        self._end, begin = os.pipe()
        self._begin = begin
        os.set_blocking(self._end, False)
        os.set_blocking(begin, False)  # a full pipe loses signals that nobody counts
        self._before = signal.set_wakeup_fd(begin, warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._begin)
        with os.fdopen(self._end, "rb") as pipe:
            self.is_seen = signal.SIGINT in (pipe.read() or b"")
