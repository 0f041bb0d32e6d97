"""Tracebacks for the user: their frames and the library's, not ours."""

import traceback
from pathlib import Path

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


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(_OURS)
