"""One training process, observed: what the patches see goes through here into records.

Nothing here opens a collective, draws a random number or keeps a model alive for long; whatever
breaks is noted, and the training goes on.
"""

import sys
import time
import weakref
from typing import Any, Literal, Protocol, final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scaleproof.evidence.observations import (
    EndRecord,
    Moment,
    OptimizerRecord,
    ProbeRecord,
    ProcessRecord,
    ResumeRecord,
    StepFlag,
)
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.pulse import Activity, Pulse
from scaleproof.observe.contents import digest_of_inputs
from scaleproof.observe.gradients import GradientProbes, loss_reduction
from scaleproof.observe.guard import Troubles, guarded
from scaleproof.observe.loaders import LoaderWatch, Pass
from scaleproof.observe.manifest import write_manifest
from scaleproof.observe.model import (
    ModelInventory,
    owned_tensor,
    parameters_of,
)
from scaleproof.observe.process import (
    MemoryMeter,
    ProcessGroupWatch,
    Whoami,
    parallelism_of,
    who_am_i,
)
from scaleproof.observe.randomness import torch_state
from scaleproof.observe.snapshots import Snapshots
from scaleproof.observe.steps import Timeline, write_epoch
from scaleproof.observe.writing import RankFolder

FIRST_PROBES = 3
"""The first steps are all probed: some faults show in the first only, some from the second on."""

KEPT_BYTES = 64 << 20
"""Models up to this size are kept until the end, so that their last state can be recorded."""

NUM_UNNAMED_EPOCHS = 5
"""A script without loaders has no epochs of its own: its steps are cut into this many."""


class Presence(Protocol):
    """What this process does to be seen from outside."""

    pulse: Pulse

    def name_rank(self, rank: int, num_ranks: int) -> None: ...


@final
class ObservedOptimizer:
    """One optimizer of the script."""

    def __init__(self, number: int, optimizer: Optimizer, where: str) -> None:
        self.number = number
        self.where = where
        self.kind = type(optimizer).__name__
        self.num_steps = 0
        self.reference = weakref.ref(optimizer)

    @property
    def label(self) -> str:
        return f"{self.kind}#{self.number}"

    def is_probed_next(self, every: int) -> bool:
        following = self.num_steps + 1
        return following <= FIRST_PROBES or following % every == 0


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
        self.probes = GradientProbes()
        self.group = ProcessGroupWatch()
        self.spent_s = 0.0
        self.root_ids: set[int] = set()
        self._presence = presence
        self.pulse = presence.pulse
        self._every = every
        self._environment = environment
        self._snapshots = Snapshots(self.folder, self.inventory)
        self._memory = MemoryMeter()
        self._optimizers: list[ObservedOptimizer] = []
        self._by_id: dict[int, ObservedOptimizer] = {}
        self._kept: list[Any] = []
        self._who: Whoami | None = None
        self._first_step_s = 0.0
        self._step_depth = 0
        self._step_began_s = 0.0
        self._booked_before_s = 0.0
        self._snapshot_interval = every
        self._is_evaluation_due = False
        self._epoch_first_step = 0
        self._scale: Any = None
        self._num_skipped = 0
        self._has_ended = False
        self._end_snapshot_at = -1
        self._inputs_digest = ""
        self._reduction: Literal["mean", "sum", "unknown"] = "unknown"
        self._forward_states: tuple[str, ...] = ()
        self._evaluation_sequence = 0

    # --- loaders

    @guarded("pass")
    def loader_begins(self, iterator: Any, loader: Any) -> None:
        self.timeline.restart()
        iterator._scaleproof_pass = self.loaders.begin(iterator, loader)
        if not torch.is_grad_enabled():
            self._evaluation_sequence = self.group.sequence()

    @guarded("pass")
    def loader_handed_out(self, iterator: Any, batch: Any, began_s: float) -> None:
        now_s = time.perf_counter()
        self.timeline.input_s += now_s - began_s
        this: Pass | None = getattr(iterator, "_scaleproof_pass", None)
        if this is not None:
            self.loaders.fetched(this, iterator, batch)
        self.pulse.beat(Activity.OTHER)
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
    def forward_begins(self, module: Any, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            self._evaluation_begins(module)
            return
        self.timeline.flags |= StepFlag.TRAIN_MODE if module.training else StepFlag.EVALUATION_MODE
        if self.probes.is_armed and not self._forward_states:
            began_s = time.perf_counter()
            self._inputs_digest = digest_of_inputs(inputs)
            self._forward_states = (torch_state(),)
            self._spend(began_s)
        self.pulse.beat(Activity.FORWARD)

    @guarded("forward")
    def forward_ended(self, began_s: float, *, has_gradients: bool) -> None:
        if not has_gradients:
            return
        self.timeline.forward_s += time.perf_counter() - began_s
        if len(self._forward_states) == 1:
            began_s = time.perf_counter()
            self._forward_states = (self._forward_states[0], torch_state())
            self._spend(began_s)

    @guarded("steps")
    def backward_begins(self, root: Any) -> None:
        self.pulse.beat(Activity.BACKWARD)
        timeline = self.timeline
        timeline.num_backwards += 1
        self.loaders.backward_ran()
        if isinstance(root, torch.Tensor) and root.numel() == 1:
            loss = root.detach()
            scale = self._scale
            timeline.losses.append(loss if scale is None else loss / scale)
            if self.probes.is_armed:
                self._reduction = loss_reduction(root)

    @guarded("steps")
    def backward_ended(self, began_s: float) -> None:
        now_s = time.perf_counter()
        own_end_s = self.probes.last_own_s
        sync_s = max(now_s - own_end_s, 0.0) if own_end_s > began_s and self.group.is_there else 0.0
        self.timeline.sync_s += sync_s
        self.timeline.backward_s += now_s - began_s - sync_s
        self.pulse.beat(Activity.OTHER)

    @guarded("steps")
    def buffers_synced(self, seconds: float) -> None:
        """DDP prepared a forward: with buffers, it waits there for other ranks."""
        self.timeline.sync_s += seconds
        self.timeline.forward_s -= seconds

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
            through_wrapper=isinstance(module, DistributedDataParallel),
        )
        self._spend(began_s)

    # --- optimizers

    @guarded("optimizer")
    def optimizer_made(self, optimizer: Optimizer, where: str) -> None:
        began_s = time.perf_counter()
        observed = ObservedOptimizer(len(self._optimizers), optimizer, where)
        self._optimizers.append(observed)
        self._by_id[id(optimizer)] = observed
        self._kept = []  # whatever was trained before may go
        self._look_for_modules(optimizer)
        self._arm_if_due()
        self._spend(began_s)

    @guarded("optimizer")
    def wrapper_made(self, module: Any) -> None:
        """DDP, DataParallel or a compiled module: the new root."""
        self.inventory.add(module)
        self.root_ids = {id(root) for root in self.inventory.roots}

    @guarded("steps")
    def step_begins(self, optimizer: Optimizer, *, has_closure: bool) -> None:
        self._step_depth += 1
        if self._step_depth > 1:
            return
        if self._who is None:
            self._begin(optimizer)
        if has_closure:
            self.timeline.flags |= StepFlag.CLOSURE
        self.pulse.beat(Activity.OPTIMIZER)
        self._booked_before_s = self._booked_s()
        self._step_began_s = time.perf_counter()

    @guarded("steps")
    def step_ended(self, optimizer: Optimizer) -> None:
        now_s = time.perf_counter()
        self._step_depth = max(self._step_depth - 1, 0)
        if self._step_depth > 0:
            return
        timeline, group = self.timeline, self.group
        inside_s = self._booked_s() - self._booked_before_s
        timeline.optimizer_s += max(now_s - self._step_began_s - inside_s, 0.0)
        observed = self._by_id.get(id(optimizer))
        if observed is None:
            return  # made before observing began
        sequence = group.sequence()
        if timeline.clipped_at_sequence >= 0 and sequence > timeline.clipped_at_sequence:
            timeline.flags |= StepFlag.REDUCED_AFTER_CLIPPING
        num_batches, num_samples = self.loaders.reset_counts()
        num_backwards = timeline.num_backwards
        timeline.end_step(
            optimizer=observed.number,
            epoch=max(self.loaders.epoch, 0),
            num_batches=num_batches,
            num_samples=num_samples,
            num_collectives=max(sequence - timeline.sequence, 0) if timeline.sequence >= 0 else 0,
            learning_rate=optimizer.param_groups[0].get("lr", 0.0),
        )
        timeline.sequence = sequence
        scale, self._scale = self._scale, None
        self._is_evaluation_due = True
        observed.num_steps += 1
        steps_done = timeline.num_steps
        self.loaders.steps_done = steps_done
        pulse = self.pulse
        pulse.step, pulse.epoch = steps_done, self.loaders.epoch
        pulse.beat(Activity.OTHER)
        self._after_step(observed, optimizer, steps_done, num_backwards, scale)
        self._spend(now_s)

    @guarded("steps")
    def clipped(self, norm: Any, limit: Any) -> None:
        self.timeline.flags |= StepFlag.CLIPPED
        self.timeline.clip_norm = norm.detach() if isinstance(norm, torch.Tensor) else norm
        self.timeline.clip_max = limit
        self.timeline.clipped_at_sequence = self.group.sequence()

    @guarded("steps")
    def loss_scaled(self, scaler: Any) -> None:
        """A ``GradScaler`` is about to multiply a loss."""
        self._scale = scaler._scale.detach() if scaler._scale is not None else None
        self.timeline.flags |= StepFlag.SCALED

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

    @property
    def is_training(self) -> bool:
        """A step was made: there is a rank and there are files."""
        return self._who is not None

    @property
    def num_collectives_since_evaluation(self) -> int:
        """-1 without a process group."""
        if not self.group.is_there:
            return -1
        return self.group.sequence() - self._evaluation_sequence

    # --- the end

    @guarded("end")
    def group_is_going(self) -> None:
        """The process group is about to be destroyed: training is over in all likelihood."""
        if self.is_training:
            self._snapshot(Moment.END)
        self.group.forget()

    @guarded("end")
    def end(self) -> None:
        """The process exits."""
        if self._has_ended or not self.is_training:
            return
        self._has_ended = True
        self.loaders.end_all()
        self._close_epoch()
        self.timeline.flush(self.folder)
        if self.loaders.primary is None:
            self._write_unnamed_epochs()
        self._snapshot(Moment.END)
        for observed in self._optimizers:
            optimizer = observed.reference()
            if optimizer is not None and observed.num_steps:
                self._record_optimizer(observed, optimizer, "end")
        if self._who is not None and self._who.rank == 0:
            self._write_manifest()
        self.folder.record(
            EndRecord(
                steps_done=self.timeline.num_steps,
                epochs_begun=self.loaders.epoch + 1,
                num_skipped_steps=self._num_skipped,
                observed_s=time.perf_counter() - self._first_step_s,
                observer_s=self.spent_s,
                observer_memory_bytes=self._memory.observer_bytes,
                missing=self.troubles.as_records(),
            )
        )
        self.pulse.beat(Activity.ENDED)
        self.folder.close()

    # --- inside

    def _begin(self, optimizer: Optimizer) -> None:
        """The first step of this process: it trains, and its rank is known."""
        began_s = time.perf_counter()
        self._first_step_s = self.timeline.began_s
        self._who = who = who_am_i(self._environment)
        self._presence.name_rank(who.rank, who.num_ranks)
        self.group.find()
        self.timeline.sequence = self.group.sequence()
        if not self.folder.open(who.rank, process=self._who.pid):
            self.troubles.note(
                "process",
                f"another process already is rank {who.rank}: this one is recorded beside it",
            )
        self.loaders.write_earlier()
        self._look_for_modules(optimizer)
        self._snapshot_interval = self._snapshots.interval(self._every)
        roots = self.inventory.roots
        self.folder.record(
            ProcessRecord(
                pid=who.pid,
                rank=who.rank,
                num_ranks=who.num_ranks,
                rank_source=who.source,
                parallelism=parallelism_of(roots),
                backend=dist.get_backend() if dist.is_initialized() else "",
                script=who.script,
                arguments=tuple(sys.argv[1:]),
                num_threads=torch.get_num_threads(),
                broadcasts_buffers=_broadcasts_buffers(roots),
            )
        )
        if who.rank == 0:
            self._write_manifest()
        self._snapshot(Moment.START)
        self._spend(began_s)

    def _after_step(
        self,
        observed: ObservedOptimizer,
        optimizer: Optimizer,
        steps_done: int,
        num_backwards: int,
        scale: Any,
    ) -> None:
        if observed.num_steps == 1:
            self._record_optimizer(observed, optimizer, "first-step")
        if self.probes.is_armed:
            if observed.num_steps <= FIRST_PROBES or observed.num_steps % self._every == 0:
                self._probe(observed, optimizer, steps_done, num_backwards, scale)
            self._inputs_digest, self._forward_states, self._reduction = "", (), "unknown"
        self._arm_if_due()
        if steps_done <= FIRST_PROBES or steps_done % self._snapshot_interval == 0:
            self._snapshot(Moment.STEP)
        if self.timeline.is_due():
            self.timeline.flush(self.folder)

    def _arm_if_due(self) -> None:
        is_due = any(o.is_probed_next(self._every) for o in self._optimizers if o.reference())
        if is_due and not self.probes.is_armed:
            owned = {id(p): p for _, opt in self._live() for p in parameters_of(opt)}
            self.probes.arm(owned.values(), self.inventory.roots)
        elif not is_due and self.probes.is_armed:
            self.probes.disarm(keep_timed=self.group.is_there)

    def _probe(
        self,
        observed: ObservedOptimizer,
        optimizer: Optimizer,
        steps_done: int,
        num_backwards: int,
        scale: Any,
    ) -> None:
        values, norms = self.probes.probe(parameters_of(optimizer))
        name = f"{observed.number}-{steps_done:07d}"
        self.folder.record(
            ProbeRecord(
                step=steps_done,
                optimizer=observed.number,
                values=self.folder.array(f"probe-{name}", values),
                norms=self.folder.array(f"norms-{name}", norms),
                num_backwards=num_backwards,
                grad_scale=1.0 if scale is None else float(scale),
                inputs_digest=self._inputs_digest,
                loss_reduction=self._reduction,
                forward_random_states=self._forward_states
                if len(self._forward_states) == 2
                else (),
                memory_bytes=self._memory.now_bytes(),
            )
        )

    def _record_optimizer(
        self,
        observed: ObservedOptimizer,
        optimizer: Optimizer,
        moment: Literal["first-step", "end"],
    ) -> None:
        names = self.inventory.names()
        owned = parameters_of(optimizer)
        mine = {id(parameter) for parameter in owned}
        anyones = {id(p) for _, other in self._live() for p in parameters_of(other)}
        near = [
            root for root in self.inventory.roots if any(id(p) in mine for p in root.parameters())
        ]
        unowned = {
            id(p): p
            for root in near
            for p in root.parameters()
            if p.requires_grad and id(p) not in anyones
        }
        self.folder.record(
            OptimizerRecord(
                optimizer=observed.number,
                steps_done=self.timeline.num_steps,
                moment=moment,
                kind=observed.kind,
                where=observed.where,
                owned=tuple(
                    owned_tensor(names.get(id(p), f"{observed.label}[{index}]"), p)
                    for index, p in enumerate(owned)
                ),
                unowned=tuple(owned_tensor(names[id(p)], p) for p in unowned.values()),
                num_strangers=sum(id(p) not in names for p in owned),
            )
        )

    def _snapshot(self, moment: Moment) -> None:
        steps_done = self.timeline.num_steps
        live = [(observed.label, optimizer) for observed, optimizer in self._live()]
        if moment is Moment.END:
            if self._end_snapshot_at == steps_done:
                return
            self._end_snapshot_at = steps_done
        if live:
            self._snapshots.take(steps_done, moment, live)
        elif moment is Moment.END and not self._snapshots.repeat_as_end(steps_done):
            self.troubles.note(
                "snapshot", "the script dropped its model after the last recorded state"
            )

    def _live(self) -> list[tuple[ObservedOptimizer, Optimizer]]:
        return [(o, opt) for o in self._optimizers if (opt := o.reference()) is not None]

    def _look_for_modules(self, optimizer: Optimizer) -> None:
        owned = parameters_of(optimizer)
        self.inventory.find(owned)
        self.root_ids = {id(root) for root in self.inventory.roots}
        total = sum(p.numel() * p.element_size() for p in owned)
        if total <= KEPT_BYTES:
            self._kept += [optimizer, *self.inventory.roots]

    def _close_epoch(self) -> None:
        """The first training loader's pass is over: an epoch."""
        finished = self.loaders.finished_primary
        if finished is None or not self.folder.is_open:
            return
        self.loaders.finished_primary = None
        num_steps = self.timeline.num_steps - self._epoch_first_step
        self._epoch_first_step = self.timeline.num_steps
        if num_steps:
            self.timeline.write_epoch(self.folder, finished.epoch, num_steps=num_steps)
            self._snapshot(Moment.STEP)

    def _write_unnamed_epochs(self) -> None:
        rows = self.timeline.kept_rows()
        if len(rows) < NUM_UNNAMED_EPOCHS:
            return
        for epoch in range(NUM_UNNAMED_EPOCHS):
            low, high = (len(rows) * (epoch + i) // NUM_UNNAMED_EPOCHS for i in (0, 1))
            write_epoch(self.folder, epoch, rows[low:high])

    @guarded("manifest")
    def _write_manifest(self) -> None:
        assert self._who is not None  # the rank is known
        optimizers = [optimizer for _, optimizer in self._live()]
        write_manifest(self.folder.run, self._who, self.inventory, optimizers, self.loaders)

    def _booked_s(self) -> float:
        timeline = self.timeline
        return timeline.forward_s + timeline.backward_s + timeline.sync_s + timeline.input_s

    def _spend(self, began_s: float) -> None:
        """Time since ``began_s`` was ours, not the script's."""
        spent_s = time.perf_counter() - began_s
        self.spent_s += spent_s
        self.timeline.began_s += spent_s


def _broadcasts_buffers(roots: list[Any]) -> bool | None:
    wrappers = [root for root in roots if isinstance(root, DistributedDataParallel)]
    if not wrappers:
        return None
    return all(wrapper.broadcast_buffers for wrapper in wrappers)
