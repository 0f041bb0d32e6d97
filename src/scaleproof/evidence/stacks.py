"""Python stacks of a process that was asked for them from outside, as ``faulthandler`` writes."""

import re
import signal
from typing import final

import msgspec

from scaleproof.evidence.tracebacks import is_own_file

STACK_SIGNAL: int = int(signal.SIGRTMIN) + 10
"""Asks an observed process for its stacks: a signal that hardly anybody uses. It ends a process
that is not prepared for it; those that are have made their file for it."""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_FATAL = re.compile(r"^Fatal Python error: (?P<what>.+)$", re.MULTILINE)
_LIBRARY = re.compile(
    r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?[/\\]python3\.\d+[/\\]|^<(?!string>)"
)


@final
class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One call. ``is_users``: in code of the user's own, not of a library, of Python or ours."""

    function: str
    file: str
    line: int
    is_users: bool

    @property
    def place(self) -> str:
        """``train_one_epoch (train.py:37)``; the module itself has no name."""
        where = f"{self.file.replace(chr(92), '/').rpartition('/')[2]}:{self.line}"
        return where if self.function == "<module>" else f"{self.function} ({where})"


def main_stack(text: str) -> tuple[Frame, ...]:
    """The main thread's calls, innermost first; empty when there are none in ``text``.

    Of several dumps, the last. The main thread stands last in a dump, being the oldest.
    """
    frames: list[Frame] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            frames = []
        elif match := _FRAME.match(line):
            number = match["line"]
            frames.append(
                Frame(
                    function=match["function"],
                    file=match["file"],
                    line=int(number) if number.isdigit() else 0,
                    is_users=not (_LIBRARY.search(match["file"]) or is_own_file(match["file"])),
                )
            )
    return tuple(frames)


def fatal_error(text: str) -> str | None:
    """What ended the process, ``Segmentation fault``; None when nothing of the kind did."""
    match = _FATAL.search(text)
    return match["what"] if match else None
