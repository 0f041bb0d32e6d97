"""If observing breaks, training goes on: what failed is noted once, and that part stops looking."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, final

from scaleproof.evidence.observations import Missing

P = ParamSpec("P")


@final
class Troubles:
    """What could not be observed, and why; each kind of record once."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}
        self.any = False

    def note(self, what: str, why: str) -> None:
        """``what``: the tag of the records that will be missing."""
        self._why.setdefault(what, why)
        self.any = True

    def __contains__(self, what: str) -> bool:
        """Without steps nothing else can be told right, but the end."""
        return what in self._why or ("steps" in self._why and what != "end")

    def as_records(self) -> tuple[Missing, ...]:
        return tuple(Missing(what=what, why=why) for what, why in self._why.items())


class Guarded(Protocol):
    """Something whose methods may break without harm."""

    @property
    def troubles(self) -> Troubles: ...


G = TypeVar("G", bound=Guarded)


def guarded(
    what: str,
) -> Callable[[Callable[Concatenate[G, P], None]], Callable[Concatenate[G, P], None]]:
    """A method that notes its first exception as trouble with ``what``, then does nothing more."""

    def decorate(method: Callable[Concatenate[G, P], None]) -> Callable[Concatenate[G, P], None]:
        @wraps(method)
        def safe(self: G, *args: P.args, **kwargs: P.kwargs) -> None:
            if self.troubles.any and what in self.troubles:
                return
            try:
                method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - somebody's training must not end with it
                self.troubles.note(what, describe(error))

        return safe

    return decorate


def describe(error: Exception) -> str:
    """Type, message and the innermost place of ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        name = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
        where = f" ({name}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {error}{where}"


@final
class Stopwatch:
    """Adds up the time that observing itself takes."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent_s += time.perf_counter() - self._began_s
