"""One training process, observed: what the patches see goes through here into records.

Nothing here opens a collective, draws a random number or keeps a model alive for long; whatever
breaks is noted, and the training goes on.
"""

import time
import weakref
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scaleproof.evidence.observations import EndRecord, Moment, ResumeRecord, StepFlag
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import Activity
from scaleproof.observe.beside import ModulesBeside
from scaleproof.observe.guard import Troubles, guarded
from scaleproof.observe.loaders import LoaderWatch, Pass
from scaleproof.observe.manifest import write_manifest
from scaleproof.observe.model import ModelInventory, is_dtensor, unwrapped
from scaleproof.observe.optimizers import OptimizerWatch
from scaleproof.observe.presence import Presence
from scaleproof.observe.process import (
    MemoryMeter,
    ProcessGroupWatch,
    Whoami,
    process_record,
    who_am_i,
)
from scaleproof.observe.snapshots import Snapshots
from scaleproof.observe.steps import Timeline
from scaleproof.observe.writing import RankFolder

_TRAIN_MODE, _EVALUATION_MODE = int(StepFlag.TRAIN_MODE), int(StepFlag.EVALUATION_MODE)
_CLIPPED, _SCALED, _CLOSURE = int(StepFlag.CLIPPED), int(StepFlag.SCALED), int(StepFlag.CLOSURE)
_FORWARD, _BACKWARD = int(Activity.FORWARD), int(Activity.BACKWARD)
_OPTIMIZER, _OTHER = int(Activity.OPTIMIZER), int(Activity.OTHER)
_REDUCED_AFTER_CLIPPING = int(StepFlag.REDUCED_AFTER_CLIPPING)  # plain: read in every step


@final
class Observer:
    """Everything observed in one process."""

    def __init__(
        self,
        run: RunPaths,
        presence: Presence,
        *,
        every: int,
        environment: tuple[int, int] | None,
        where_loaders: Any,
    ) -> None:
        self.troubles = Troubles()
        self.folder = RankFolder(run)
        self.inventory = ModelInventory()
        self.loaders = LoaderWatch(self.folder, where_loaders)
        self.timeline = Timeline()
        self.memory = MemoryMeter()
        self.optimizers = OptimizerWatch(self.folder, self.inventory, self.memory, every=every)
        self.group = ProcessGroupWatch()
        self.spent_s = 0.0
        self.roots: dict[int, Any] = {}
        self.is_in_root = False
        self._presence = presence
        self.pulse = presence.pulse
        self._every = every
        self._environment = environment
        self.beside = ModulesBeside(self.inventory, self.troubles)
        self._snapshots = Snapshots(self.folder, self.inventory, self.beside)
        self.who: Whoami | None = None
        self._began_s = time.perf_counter()
        self._step_depth = 0
        self._step_began_s = 0.0
        self._booked_before_s = 0.0
        self._is_evaluation_due = False
        self._scale: Any = None
        self._num_skipped = 0
        self._has_ended = False
        self.was_ended = False  # after the steps that were asked for, not by the script
        self.before_forward: Callable[[], None] | None = None  # in training

    # --- loaders

    @guarded("pass")
    def loader_begins(self, iterator: Any, loader: Any) -> None:
        self.timeline.restart()
        iterator._scaleproof_pass = self.loaders.begin(iterator, loader)
        self._close_epoch()
        if not torch.is_grad_enabled():
            self.group.begin_evaluation()

    @guarded("pass")
    def loader_handed_out(self, iterator: Any, batch: Any, began_s: float) -> None:
        now_s = time.perf_counter()
        self.timeline.input_s += now_s - began_s
        this: Pass | None = getattr(iterator, "_scaleproof_pass", None)
        if this is not None:
            self.loaders.fetched(this, iterator, batch)
        self.pulse.beat(_OTHER)
        self._spend(now_s)

    @guarded("pass")
    def loader_ended(self, iterator: Any) -> None:
        began_s = time.perf_counter()
        this: Pass | None = getattr(iterator, "_scaleproof_pass", None)
        if this is None:
            return
        self.loaders.end(this, is_whole=True)
        self._close_epoch()
        self.timeline.restart()
        self._spend(began_s)

    # --- forward and backward

    @guarded("forward")
    def forward_begins(self, module: Any, inputs: Any, *, has_gradients: bool) -> None:
        if not has_gradients:
            self._evaluation_begins(module)
            return
        inner = self.roots[id(module)]()
        if inner is None:  # it is gone, and another module has its id
            return
        self.timeline.flags |= _TRAIN_MODE if inner.training else _EVALUATION_MODE
        self.pulse.beat(_FORWARD)
        if self.before_forward is not None:
            self.before_forward()
        if self.optimizers.probes.is_armed:
            began_s = time.perf_counter()
            if self.optimizers.look.forward_begins(inputs):
                self._spend(began_s)

    @guarded("forward")
    def forward_ended(self, began_s: float, *, has_gradients: bool) -> None:
        if not has_gradients:
            return
        self.timeline.forward_s += time.perf_counter() - began_s
        if self.optimizers.probes.is_armed:
            began_s = time.perf_counter()
            self.optimizers.look.forward_ended()
            self._spend(began_s)

    @guarded("steps")
    def backward_begins(self, root: Any) -> None:
        self.pulse.beat(_BACKWARD)
        timeline = self.timeline
        timeline.num_backwards += 1
        self.loaders.backward_ran()
        if type(root) is torch.Tensor and root.numel() == 1:  # not a DTensor
            # A number at once where that is free: kept tensors tear holes into the heap.
            loss = root.item() if root.is_cpu else root.detach()
            timeline.losses.append(loss if self._scale is None else loss / self._scale)
            if self.optimizers.probes.is_armed:
                self.optimizers.look.backward_begins(root)

    @guarded("steps")
    def backward_ended(self, began_s: float) -> None:
        now_s = time.perf_counter()
        own_end_s = self.optimizers.probes.last_own_s
        sync_s = max(now_s - own_end_s, 0.0) if own_end_s > began_s and self.group.is_there else 0.0
        self.timeline.sync_s += sync_s
        self.timeline.backward_s += now_s - began_s - sync_s
        self.pulse.beat(_OTHER)

    @guarded("steps")
    def buffers_synced(self, seconds: float, num_collectives: int) -> None:
        """DDP prepared a forward: with buffers, it waits there for other ranks."""
        if torch.is_grad_enabled():
            self.timeline.sync_s += seconds
            self.timeline.forward_s -= seconds
        else:
            self.group.leave_out(num_collectives)

    def _evaluation_begins(self, module: Any) -> None:
        if not self._is_evaluation_due or not self.folder.is_open:
            return
        began_s = time.perf_counter()
        self._is_evaluation_due = False
        self._snapshots.take(
            self.timeline.num_steps,
            Moment.EVALUATION,
            (),
            buffers_only=True,
            through_wrapper=isinstance(
                getattr(module, "_orig_mod", module), DistributedDataParallel
            ),
        )
        self._spend(began_s)

    # --- optimizers

    @guarded("optimizer")
    def optimizer_made(self, optimizer: Optimizer, where: str) -> None:
        began_s = time.perf_counter()
        self.optimizers.add(optimizer, where)
        self._know_roots()
        self._spend(began_s)

    @guarded("optimizer")
    def wrapper_made(self, module: Any) -> None:
        """DDP, DataParallel or a compiled module: the new root."""
        self.inventory.add(module)
        self._know_roots()

    @guarded("steps")
    def step_begins(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        self._step_depth += 1
        if self._step_depth > 1:
            return
        if self.who is None:
            self._begin(optimizer)
        if has_closure:
            self.timeline.flags |= _CLOSURE
        self.pulse.beat(_OPTIMIZER)
        self._booked_before_s = self.timeline.booked_s
        self._step_began_s = time.perf_counter()

    @guarded("steps")
    def step_ended(self, optimizer: Optimizer) -> None:
        now_s = time.perf_counter()
        self._step_depth = max(self._step_depth - 1, 0)
        if self._step_depth > 0:
            return
        timeline, group = self.timeline, self.group
        inside_s = self.timeline.booked_s - self._booked_before_s
        timeline.optimizer_s += max(now_s - self._step_began_s - inside_s, 0.0)
        observed = self.optimizers.get(optimizer)
        if observed is None:
            return  # made before observing began
        sequence = group.sequence()
        if timeline.clipped_at_sequence >= 0 and sequence > timeline.clipped_at_sequence:
            timeline.flags |= _REDUCED_AFTER_CLIPPING
        num_backwards = timeline.num_backwards
        timeline.end_step(
            observed.number,
            max(self.loaders.epoch, 0),
            self.loaders.reset_counts(),
            sequence,
            optimizer.param_groups[0].get("lr", 0.0),
        )
        scale, self._scale = self._scale, None
        self._is_evaluation_due = True
        observed.num_steps += 1
        steps_done = timeline.num_steps
        self.loaders.steps_done = steps_done
        self.pulse.step_done(self.loaders.epoch, steps_done)
        self.pulse.beat(_OTHER)
        self.optimizers.stepped(
            observed,
            optimizer,
            steps_done=steps_done,
            num_backwards=num_backwards,
            scale=scale,
        )
        self.optimizers.arm_if_due(has_group=group.is_there)
        if self._snapshots.is_due(steps_done):
            self._snapshot(Moment.STEP)
        if timeline.is_due():
            timeline.flush(self.folder)
        self._spend(now_s)

    @guarded("steps")
    def clipped(self, norm: Any, limit: Any) -> None:
        self.timeline.flags |= _CLIPPED
        # A DTensor's value would take a collective to learn.
        if isinstance(norm, torch.Tensor) and not is_dtensor(norm):
            self.timeline.clip_norm = norm.detach()
        if isinstance(limit, int | float | torch.Tensor) and not is_dtensor(limit):
            self.timeline.clip_max = limit
        if self.timeline.clipped_at_sequence < 0:  # some clip at every backward
            self.timeline.clipped_at_sequence = self.group.sequence()

    @guarded("steps")
    def loss_scaled(self, scaler: Any) -> None:
        """A ``GradScaler`` is about to multiply a loss."""
        self._scale = scaler._scale.detach() if scaler._scale is not None else None
        self.timeline.flags |= _SCALED

    @guarded("steps")
    def scaler_stepped(self, num_steps_before: int) -> None:
        if self.timeline.num_steps == num_steps_before:
            self._num_skipped += 1

    @guarded("resume")
    def state_loaded(
        self, what: Literal["optimizer", "scheduler"], steps_before: int | None
    ) -> None:
        self.folder.record(
            ResumeRecord(what=what, steps_done=self.timeline.num_steps, steps_before=steps_before)
        )

    @property
    def steps_done(self) -> int:
        return self.timeline.num_steps

    # --- the end

    @guarded("end")
    def group_is_going(self) -> None:
        """The process group is about to be destroyed: training is over in all likelihood."""
        if self.who is not None:  # it trained
            self._snapshot(Moment.END)
        self.group.forget()

    @guarded("end")
    def end(self) -> None:
        """The process exits."""
        if self._has_ended or self.who is None:
            return
        self._has_ended = True
        self.loaders.end_all()
        self._close_epoch()
        self.timeline.flush(self.folder)
        if self.loaders.primary is None:
            self.timeline.write_unnamed_epochs(self.folder)
        self._snapshot(Moment.END)
        self.optimizers.record_all(self.timeline.num_steps)
        if self.who is not None and self.who.rank == 0:
            self._write_manifest()
        self.folder.record(
            EndRecord(
                steps_done=self.timeline.num_steps,
                epochs_begun=self.loaders.epoch + 1,
                num_skipped_steps=self._num_skipped,
                observed_s=time.perf_counter() - self._began_s,
                observer_s=self.spent_s,
                observer_memory_bytes=self.memory.observer_bytes,
                missing=self.troubles.as_records(),
                was_ended=self.was_ended,
            )
        )
        self.pulse.beat(Activity.ENDED)
        self.folder.close()

    # --- inside

    def _begin(self, optimizer: Optimizer) -> None:
        """The first step of this process: it trains, and its rank is known."""
        began_s, before_bytes = time.perf_counter(), self.memory.resident_bytes()
        self.who = who = who_am_i(self._environment)
        self._presence.name_rank(who.rank, who.num_ranks)
        self.group.find()
        self.timeline.sequence = self.group.sequence()
        if not self.folder.open(who.rank, process=self.who.pid):
            self.troubles.note(
                "process",
                f"another process already is rank {who.rank}: this one is recorded beside it",
            )
        self.loaders.write_earlier()
        self.optimizers.find_modules(optimizer)
        self.beside.find()
        self._know_roots()
        self._snapshots.plan(self._every)
        self.folder.record(process_record(who, self.inventory.roots))
        if who.rank == 0:
            self._write_manifest()
        self._snapshot(Moment.START)
        self.memory.add(before_bytes)
        self._spend(began_s)

    def _snapshot(self, moment: Moment) -> None:
        live = [(observed.label, optimizer) for observed, optimizer in self.optimizers.live()]
        if not self._snapshots.of_training(self.timeline.num_steps, moment, live):
            self.troubles.note(
                "snapshot", "the script dropped its model after the last recorded state"
            )

    def _know_roots(self) -> None:
        """Roots, and what is inside wrappers: a script may call that past the wrapper."""
        self.roots.clear()
        for root in self.inventory.roots:
            inner = unwrapped(root)
            self.roots[id(root)] = self.roots[id(inner)] = weakref.ref(inner)
        self.beside.wait(self.roots)

    def _close_epoch(self) -> None:
        """The first training loader's pass is over: an epoch."""
        finished = self.loaders.finished_primary
        if finished is None or not self.folder.is_open:
            return
        self.loaders.finished_primary = None
        if self.timeline.write_epoch(self.folder, finished.epoch):
            self._snapshot(Moment.STEP)

    @guarded("manifest")
    def _write_manifest(self) -> None:
        assert self.who is not None  # the rank is known
        optimizers = [optimizer for _, optimizer in self.optimizers.live()]
        write_manifest(self.folder.run, self.who, self.inventory, optimizers, self.loaders)

    def _spend(self, began_s: float) -> None:
        """Time since ``began_s`` was ours, not the script's."""
        spent_s = time.perf_counter() - began_s
        self.spent_s += spent_s
        self.timeline.began_s += spent_s
