"""Streams, events and graphs of CUDA where everything is done in order, at once."""

import time
from typing import Any, Self, final

from scaleproof.observe.forced import REAL_DEVICE


@final
class Stream:
    cuda_stream = 0
    stream_id = 0

    def __init__(self, *_: Any, priority: int = 0, **__: Any) -> None:
        self.device, self.priority = REAL_DEVICE("cuda", 0), priority

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record()
        return event

    def query(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@final
class StreamContext:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@final
class Event:
    """A moment of the host's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._at_s: float | None = None

    def record(self, *_: Any) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to ``end_event``."""
        if self._at_s is None or end_event._at_s is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end_event._at_s - self._at_s) * 1000


@final
class Graph:
    """A captured graph would have to be replayed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(
            "CUDA graphs were asked for, and --force-cpu can't replay what a graph captured. "
            "Switch them off for the check (torch.cuda.make_graphed_callables is mapped), or "
            "check on a machine with a GPU."
        )
