"""Puts in place, in each process of a checked command, what ``scaleproof check`` adds to observing:
close-ups, and in a rank the material for replays, in a replay what drives it."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, final

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from scaleproof.evidence.close_ups import ForcedRecord
from scaleproof.observe import current
from scaleproof.observe.arrivals import Arrivals, patch_losses
from scaleproof.observe.checkpoints import is_preparing_to_load
from scaleproof.observe.close_ups import CloseUps
from scaleproof.observe.dropout import switch_dropout_off
from scaleproof.observe.force_cpu import what_was_mapped
from scaleproof.observe.guard import describe
from scaleproof.observe.observer import Observer
from scaleproof.observe.patch_check import patch_check
from scaleproof.observe.patch_loaders import loader_lines
from scaleproof.observe.replay.asked import CheckFacts
from scaleproof.observe.replay.batch_norm import normalise_by_parts
from scaleproof.observe.replay.draws import Draws, digests_by_rows, patch_draws
from scaleproof.observe.replay.feeding import Feeder
from scaleproof.observe.replay.material import Material
from scaleproof.observe.replay.one_process import fetch_alone, stay_alone
from scaleproof.observe.replay.plan import ReplayPlan, read_plan
from scaleproof.observe.replay.recorder import Recorder
from scaleproof.observe.replay.replayer import Replayer

LAST_RANK_TIMEOUT_S = 20.0
"""How long a rank that made its last step waits for the others: they may still need its sockets."""

_POLL_S = 0.02


@final
class Checking:
    """What ``check`` does in one process. ``note`` leaves a word for the parent; ``end`` writes
    down what was observed."""

    def __init__(self, facts: CheckFacts, note: Callable[[str, str], None]) -> None:
        self._facts = facts
        self._note = note
        self._end: Callable[[], None] = lambda: None
        self._has_ended = False
        self._arrivals = Arrivals()
        self.draws = Draws(self._before_draw, self._after_draw)
        self._material: Material | None = None
        self._plan: ReplayPlan | None = None
        self.close_ups: CloseUps | None = None
        self.recorder: Recorder | None = None
        self.replayer: Replayer | None = None

    def install(self) -> None:
        """Patch torch, which listens to the observer already."""
        switch_dropout_off()
        patch_losses(self._arrivals)
        if self._facts.replay is not None:
            folder = Path(self._facts.material)
            self._material, self._plan = Material(folder), read_plan(folder)
            stay_alone(self._plan.num_ranks, self.leave)
            fetch_alone()
            normalise_by_parts(self._sizes)
            _patch_lengths(self._plan.lengths)
            current.replace(_SingleProcessDataLoaderIter, "_next_data", self._around_next_data)
        patch_draws(self.draws)
        patch_check(self)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)

    def begin(self, observer: Observer, end: Callable[[], None]) -> Callable[[], None]:
        """This process made its first optimizer. Returns what is to be called at its end."""

        def forced_and_end() -> None:
            if self._facts.forced_devices and not self._has_ended:
                self._has_ended = True
                observer.folder.record(ForcedRecord(what=what_was_mapped()))
            end()

        self._end = forced_and_end
        self.close_ups = CloseUps(observer, self._arrivals)
        if self._material is None or self._plan is None or self._facts.replay is None:
            self.recorder = Recorder(observer, Path(self._facts.material), self._facts.num_kept)
            observer.before_forward = self.recorder.forward_begins
            return self._end
        feeder = Feeder(self._material, self._plan, self._facts.replay)
        self.replayer = Replayer(observer, self._material, self._plan, feeder, self.leave)
        observer.before_forward = self.replayer.forward_begins
        self.draws.substitute = self.replayer.substitute
        return self._end

    def leave(self, why: str) -> NoReturn:
        """End the replay here. ``why``: empty when it did all it had to."""
        if why:
            self._note("replay", why)
        self._end()
        _exit()

    def broke(self, error: Exception) -> None:
        """Ours, not the script's: a rank goes on without, a replay is worth nothing then."""
        if self.replayer is not None:
            self.leave(f"replaying broke: {describe(error)}. This is a bug of ours: report it")
        observer = current.observer
        if observer is not None:
            observer.troubles.note("close-up", describe(error))
        self.close_ups = self.recorder = None

    def _before_draw(self) -> None:
        if self.close_ups is not None:
            self.close_ups.batch_asked()

    def _after_draw(self) -> None:
        if self.close_ups is not None:
            self.close_ups.batch_given()

    def _sizes(self) -> tuple[int, ...]:
        return () if self.replayer is None else self.replayer.feeder.sizes

    def _around_next_data(self, original: Any) -> Any:
        def _next_data(iterator: Any) -> Any:
            if self.replayer is None:
                return original(iterator)
            return self.replayer.next_batch(iterator, lambda: original(iterator))

        return _next_data

    def _before_step(self, *_: Any) -> None:
        if self.recorder is not None and not is_preparing_to_load():
            with self.guarded():
                self.recorder.step_begins()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self.close_ups is None or current.observer is None or is_preparing_to_load():
            return
        with self.guarded():
            if not self.close_ups.step_ended(
                optimizer,
                has_missed=self.draws.has_missed,
                drawn_rows=digests_by_rows(self.draws.kept),
            ):
                return
            if self.recorder is not None:
                self.recorder.step_ended(self.draws.kept)
            self.draws.begin_step()
            if self.replayer is not None:
                self.replayer.step_ended(optimizer)
        if 0 < self._facts.num_steps <= current.observer.steps_done:
            self._finish(current.observer)

    def _finish(self, observer: Observer) -> NoReturn:
        """The last step that was asked for is done: end with the other ranks."""
        observer.was_ended = True
        self._end()
        who = observer.who
        if who is not None:
            folder = Path(self._facts.material)
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"rank-{who.rank:05d}.done").touch()
            deadline_s = time.monotonic() + LAST_RANK_TIMEOUT_S
            while len(list(folder.glob("*.done"))) < who.num_ranks:
                if time.monotonic() > deadline_s:
                    break
                time.sleep(_POLL_S)
        _exit()

    @contextlib.contextmanager
    def guarded(self) -> Any:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - somebody's training must not end with it
            self.broke(error)


def _exit() -> NoReturn:
    """End at once, without what a process may trip over at its exit."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _patch_lengths(lengths: Mapping[str, int]) -> None:
    """``len(loader)`` is that of a rank's: schedules and last batches are reckoned by it."""

    def around(original: Any) -> Any:
        def __len__(self: Any) -> int:
            length = lengths.get(loader_lines.get(self, ""))
            return original(self) if length is None else length

        return __len__

    current.replace(DataLoader, "__len__", around)
