"""Somebody's own command: started as the user would start it, and ended with all its processes.

It keeps the terminal, the pipes, the process group and the working folder that this process has:
output is not copied, Ctrl-C reaches it as ever, job control works.
"""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import psutil

from scaleproof.errors import UsageError
from scaleproof.evidence.paths import RunPaths
from scaleproof.launch.environment import observed_environment
from scaleproof.launch.processes import end_all, family_of
from scaleproof.observe.replay.asked import CheckFacts

INTERRUPT_TIMEOUT_S = 3.0

TERMINATE_TIMEOUT_S = 3.0
"""How long processes may take to end by themselves before they are killed."""


@final
class ScriptRun:
    """A command that runs, observed into ``paths``; ``stop`` ends it and everything below it.

    Raises ``UsageError`` when there is no such command.
    """

    def __init__(
        self,
        paths: RunPaths,
        argv: Sequence[str],
        *,
        every: int,
        pin: bool,
        cwd: Path | None = None,
        check: CheckFacts | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.paths = paths
        paths.processes.mkdir(parents=True, exist_ok=True)
        try:
            environment = observed_environment(paths, every, pin, check) | dict(variables or {})
            self._child = subprocess.Popen(list(argv), env=environment, cwd=cwd)
        except OSError as error:
            raise UsageError(_why_not_started(argv, cwd, error)) from error

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def return_code(self) -> int | None:
        """As ``subprocess`` has it: -n when signal n ended it; None while it lives."""
        return self._child.poll()

    @property
    def exit_code(self) -> int | None:
        """As a shell says it: 128 + n when signal n ended it; None while it lives."""
        code = self.return_code
        return code if code is None or code >= 0 else 128 - code

    def family(self) -> list[psutil.Process]:
        """The command and what it started, its ranks also where they have lost their parents."""
        return family_of(self.pid, self.paths)

    def _interrupt(self) -> None:
        if self.return_code is None:
            self._child.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """End all of it, at the latest after ``TERMINATE_TIMEOUT_S``."""
        end_all(self.family(), TERMINATE_TIMEOUT_S)
        self._child.wait()

    @contextlib.contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        """Leave Ctrl-C to the command, which gets it too, and hand SIGTERM on to it.

        A SIGINT that cannot come from a terminal may have been sent to this process alone: when the
        command has not ended ``INTERRUPT_TIMEOUT_S`` later, it is handed on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's business
            return

        def leave_to_child(*_: Any) -> None:
            if self._child.returncode is not None:  # known before: others are waited for
                raise KeyboardInterrupt
            if not _is_in_foreground():
                later = threading.Timer(INTERRUPT_TIMEOUT_S, self._interrupt)
                later.daemon = True
                later.start()

        def hand_on(*_: Any) -> None:
            self._child.terminate()

        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        if before[signal.SIGINT] is not signal.SIG_IGN:  # in the background of a script it is
            signal.signal(signal.SIGINT, leave_to_child)
        signal.signal(signal.SIGTERM, hand_on)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _is_in_foreground() -> bool:
    """A terminal's Ctrl-C would reach this process, and then the command too."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal there
        return False


def refuse_missing_program(argv: Sequence[str]) -> None:
    """Raise ``UsageError`` when there is nothing to start, before anything else is done."""
    if shutil.which(argv[0]) is not None:
        return
    number = errno.EACCES if Path(argv[0]).exists() else errno.ENOENT
    raise UsageError(_why_not_started(argv, None, OSError(number, os.strerror(number))))


def _why_not_started(argv: Sequence[str], cwd: Path | None, error: OSError) -> str:
    command = argv[0]
    if cwd is not None and not cwd.is_dir():
        return f"can't start {command} in {cwd}: that is no folder. Name the folder it belongs in."
    if isinstance(error, FileNotFoundError):
        return (
            f"can't start {command}: there is no such command. Write it as you would in a shell, "
            "for example: scaleproof observe -- python train.py"
        )
    if isinstance(error, PermissionError):
        return (
            f"can't start {command}: it is not executable. Start a Python script with "
            f"python: scaleproof observe -- python {command}"
        )
    return (
        f"can't start {command}: {error.strerror or error}. Expected a program, or a script whose "
        "first line names its interpreter."
    )
