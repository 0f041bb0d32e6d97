"""No process of ours outlives the one that started it, however that one ended."""

import os
import signal
import threading
import time

POLL_INTERVAL_S = 0.5


def end_with_parent() -> None:
    """Watch the parent from a thread and terminate this process when it is gone."""
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)
