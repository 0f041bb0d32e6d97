"""What an observed process does to be seen from outside: where it is, why it ended, and, when it
stands still, where it waits.

Processes that import torch can be asked for their stacks; those that train or join a process group
also have a pulse and leave an outcome. A forked child begins with neither: it is somebody else.
"""

import contextlib
import faulthandler
import functools
import inspect
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any, Literal, final

import msgspec
import torch
import torch.distributed as dist

from scaleproof.errors import RunError
from scaleproof.evidence.hangs import Collective, Collectives
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import Pulse, read_pulse
from scaleproof.evidence.records import RankOutcome
from scaleproof.evidence.stacks import STACK_SIGNAL
from scaleproof.evidence.tracebacks import drop_own_frames, traceback_of
from scaleproof.evidence.writer import write_error, write_json

ASK_INTERVAL_S = 1.0
"""How often a process looks whether somebody asks for its collectives."""

NUM_LATEST = 20
"""Collectives told when asked, besides those that are not done."""


@final
class Presence:
    """This process, seen from outside. ``pulse`` is for its observer to beat."""

    def __init__(self, paths: RunPaths) -> None:
        self.pulse = Pulse(paths.pulse(os.getpid()))
        self._paths = paths
        self._rank: int | None = None
        self._is_error_left = False
        self._previous_hook = sys.excepthook
        sys.excepthook = self._on_uncaught
        # As multiprocessing ends its children: they run no exit handlers.
        Finalize(None, self._end, exitpriority=0)
        answering = threading.Thread(target=self._answer, name="scaleproof", daemon=True)
        answering.start()

    def name_rank(self, rank: int, num_ranks: int) -> None:
        """Which rank this process is, as soon as it is known."""
        if self._rank != rank:
            with contextlib.suppress(OSError):  # of a process that was this rank before
                self._paths.outcome(rank).unlink(missing_ok=True)
        self._rank = rank
        self.pulse.name_rank(rank, num_ranks)
        self.pulse.beat(self._reading().activity)

    def _on_uncaught(self, kind: Any, error: BaseException, trace: Any) -> None:  # noqa: ARG002
        if _present is self:
            with contextlib.suppress(Exception):  # nothing of ours may hide the script's own error
                self._leave_outcome(error)
                drop_own_frames(error)
        self._previous_hook(kind, error, error.__traceback__)

    def _end(self) -> None:
        if _present is not self:
            return
        # Inside multiprocessing's children the exception is still being handled here.
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        if isinstance(error, SystemExit):
            # torch.multiprocessing.spawn turns what the function raised into an exit code.
            error = error.__context__ or error if error.code not in (None, 0) else None
        if error is None or not self._is_error_left:  # a script may call the hook and go on
            with contextlib.suppress(Exception):  # the script's own end is not ours to disturb
                self._leave_outcome(error)

    def _leave_outcome(self, error: BaseException | None) -> None:
        reading = self._reading()
        if error is None and reading.step == 0:
            return  # it never trained
        if self._rank is None:
            self.name_rank(*(_launched_as or (0, 1)))
        self._is_error_left = error is not None
        status: Literal["ok", "error"] = "ok" if error is None else "error"
        outcome = RankOutcome(
            status=status,
            epoch=max(reading.epoch, 0),
            step=reading.step,
            phase=reading.activity.word,
            error_type="" if error is None else type(error).__name__,
            message="" if error is None else _message_of(error),
            traceback="" if error is None else traceback_of(error),
            ended_at_unix_s=time.time(),
        )
        if error is not None:
            with contextlib.suppress(Exception):  # the outcome itself says more
                self._write_collectives()
        with contextlib.suppress(RunError):  # the disk is full: the watcher sees the end
            write_json(self._paths.outcome(self.pulse.rank), outcome)

    def _reading(self) -> Any:
        reading = read_pulse(self._paths.pulse(os.getpid()))
        assert reading is not None  # it was made with this
        return reading

    def _answer(self) -> None:
        ask = self._paths.ask(os.getpid())
        while True:
            if ask.exists():
                with contextlib.suppress(Exception):  # whoever asks does without
                    ask.unlink()
                    self._write_collectives()
            time.sleep(ASK_INTERVAL_S)

    def _write_collectives(self) -> None:
        write_json(self._paths.collectives(os.getpid()), latest_collectives())


_present: Presence | None = None
_launched_as: tuple[int, int] | None = None
_stack_file: io.FileIO | None = None


def present(paths: RunPaths) -> Presence:
    """The presence of this process, made when it is first asked for."""
    global _present
    if _present is None:
        _present = Presence(paths)
    return _present


def watch_process_group(paths: RunPaths, launched_as: tuple[int, int] | None = None) -> None:
    """Let this process be asked for its stacks, and notice when it joins a process group.

    ``launched_as``: rank and number of ranks that a launcher gave it, where one did.
    """
    global _launched_as
    _launched_as = launched_as
    _accept_stack_signal(paths)

    def in_forked_child() -> None:
        global _present
        _present = None
        with contextlib.suppress(RunError):  # it does without
            _accept_stack_signal(paths)

    os.register_at_fork(after_in_child=in_forked_child)
    if not dist.is_available():
        return
    original = dist.init_process_group
    watched = _watched(original, paths)
    for module in (dist, dist.distributed_c10d, dist.device_mesh):
        if getattr(module, "init_process_group", None) is original:
            setattr(module, "init_process_group", watched)  # noqa: B010 - no type knows it


def _accept_stack_signal(paths: RunPaths) -> None:
    """Write all threads' stacks when the signal comes, and also when a fatal error ends it."""
    global _stack_file
    path = paths.stack(os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise write_error(path, error) from error
    if not faulthandler.is_enabled():  # by the script, or by the parent of this process
        faulthandler.enable(file, all_threads=True)
    faulthandler.register(STACK_SIGNAL, file, all_threads=True)
    _stack_file = file


def _watched(original: Callable[..., None], paths: RunPaths) -> Callable[..., None]:
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> None:
        presence = _prepared(paths, parameters, args, kwargs)
        original(*args, **kwargs)
        if presence is not None:
            with contextlib.suppress(Exception):  # it goes on without being seen
                presence.name_rank(dist.get_rank(), dist.get_world_size())

    return init_process_group


def _prepared(
    paths: RunPaths, parameters: inspect.Signature, args: Any, kwargs: Any
) -> Presence | None:
    """The presence, with the rank that the script itself gives; None when it can't be made."""
    try:
        presence = present(paths)
        given = parameters.bind_partial(*args, **kwargs).arguments
    except (RunError, TypeError):
        return None  # the disk is full; or the call is wrong, which torch says better
    rank, num_ranks = given.get("rank", -1), given.get("world_size", -1)
    if isinstance(rank, int) and isinstance(num_ranks, int) and 0 <= rank < num_ranks:
        presence.name_rank(rank, num_ranks)
    return presence


def latest_collectives() -> Collectives:
    """The collectives that torch's flight recorder remembers of this process."""
    sequence = -1
    if dist.is_available() and dist.is_initialized():
        group: Any = dist.group.WORLD
        sequence = group._get_sequence_number_for_group()
    bindings: Any = getattr(torch._C, "_distributed_c10d", None)
    dump = getattr(bindings, "_dump_fr_trace_json", None)
    if dump is None:
        return Collectives(sequence=sequence, latest=())
    entries = msgspec.json.decode(dump()).get("entries", [])
    now_ns = time.time_ns()
    told = [
        _collective(entry, now_ns)
        for index, entry in enumerate(entries)
        if index >= len(entries) - NUM_LATEST or not _is_done(entry)
    ]
    return Collectives(sequence=sequence, latest=tuple(told))


def _is_done(entry: dict[str, Any]) -> bool:
    return bool(entry.get("retired")) or entry.get("state") == "completed"


def _collective(entry: dict[str, Any], now_ns: int) -> Collective:
    is_p2p = bool(entry.get("is_p2p"))
    return Collective(
        operation=str(entry["profiling_name"]).rpartition(":")[2],
        sizes=tuple(tuple(size) for size in entry.get("input_sizes", ())),
        dtypes=tuple(entry.get("input_dtypes", ())),
        sequence=int(entry["p2p_seq_id" if is_p2p else "collective_seq_id"]),
        group=str(entry.get("process_group", [""])[0]),
        is_done=_is_done(entry),
        age_s=max(now_ns - int(entry["time_created_ns"]), 0) / 1e9,
    )


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's own class may have any __str__
        return "(its message can't be made)"
