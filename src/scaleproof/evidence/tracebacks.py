"""Tracebacks for the user: their frames and the library's, not ours."""

import traceback
from pathlib import Path
from types import TracebackType

from scaleproof.errors import ScaleproofError

_OURS = Path(__file__).resolve().parents[1]


def traceback_of(error: BaseException) -> str:
    """The traceback without this package's frames, ending in a newline.

    Empty for our own errors, which are complete sentences. An error that never left this package
    is a bug of ours and keeps its frames.
    """
    if isinstance(error, ScaleproofError):
        return ""
    formatted = traceback.TracebackException.from_exception(error)
    chain: list[traceback.TracebackException] = [formatted]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    kept = [[frame for frame in link.stack if not _is_ours(frame)] for link in chain]
    if any(kept):
        for link, frames in zip(chain, kept, strict=True):
            link.stack = traceback.StackSummary.from_list(frames)
    return "".join(formatted.format())


def drop_own_frames(error: BaseException) -> None:
    """Take this package's frames out of the tracebacks of ``error`` and of what led to it, so that
    an observed script's own errors look as they do without us. Those without any other are kept.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        frames: list[TracebackType] = []
        trace = following.__traceback__
        while trace is not None:
            if not is_own_file(trace.tb_frame.f_code.co_filename):
                frames.append(trace)
            trace = trace.tb_next
        kept: TracebackType | None = None
        for frame in reversed(frames):
            kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
        following.__traceback__ = kept or following.__traceback__
        following = following.__cause__ or following.__context__


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return is_own_file(frame.filename)


def is_own_file(file: str) -> bool:
    """Whether a source file belongs to this package."""
    return Path(file).is_relative_to(_OURS)
