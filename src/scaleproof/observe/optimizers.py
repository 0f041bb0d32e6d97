"""The script's optimizers: what they own, and the gradients they use at probed steps."""

import weakref
from typing import Any, Literal, final

from torch.optim import Optimizer

from scaleproof.evidence.observations import OptimizerRecord, ProbeRecord
from scaleproof.observe.contents import digest_of_inputs
from scaleproof.observe.gradients import GradientProbes, loss_reduction
from scaleproof.observe.model import (
    ModelInventory,
    learning_rates,
    owned_tensor,
    parameters_of,
)
from scaleproof.observe.process import MemoryMeter
from scaleproof.observe.randomness import torch_state
from scaleproof.observe.writing import RankFolder

FIRST_PROBES = 3
"""The first steps are all probed: some faults show in the first only, some from the second on."""

KEPT_BYTES = 64 << 20
"""Models up to this size are kept until the end, so that their last state can be recorded."""


@final
class ObservedOptimizer:
    """One optimizer of the script, which may drop it."""

    def __init__(self, number: int, optimizer: Optimizer, where: str) -> None:
        self.number = number
        self.where = where
        self.kind = type(optimizer).__name__
        self.num_steps = 0
        self.reference = weakref.ref(optimizer)

    @property
    def label(self) -> str:
        return f"{self.kind}#{self.number}"

    def is_probed(self, step: int, every: int) -> bool:
        """``step`` counts this optimizer's own steps from 1: the same on all ranks."""
        return step <= FIRST_PROBES or step % every == 0


@final
class StepLook:
    """What a probed step began with: its inputs, its loss, the random numbers its forward drew."""

    def __init__(self) -> None:
        self.inputs_digest = ""
        self.reduction: Literal["mean", "sum", "unknown"] = "unknown"
        self.states: tuple[str, ...] = ()
        self.drew_dropout = False
        """It would have drawn masks, had dropout not been switched off."""

    def forward_begins(self, inputs: Any) -> bool:
        """False when it was not the step's first forward."""
        if self.states:
            return False
        self.inputs_digest = digest_of_inputs(inputs)
        self.states = (torch_state(),)
        return True

    def forward_ended(self) -> None:
        if len(self.states) == 1:
            state = torch_state()
            self.states = (self.states[0], f"{state} dropout" if self.drew_dropout else state)

    def backward_begins(self, root: Any) -> None:
        self.reduction = loss_reduction(root)


@final
class OptimizerWatch:
    """All optimizers of this process."""

    def __init__(
        self,
        folder: RankFolder,
        inventory: ModelInventory,
        memory: MemoryMeter,
        *,
        every: int,
    ) -> None:
        self.probes = GradientProbes()
        self.look = StepLook()
        self._folder = folder
        self._inventory = inventory
        self._every = every
        self._memory = memory
        self._all: list[ObservedOptimizer] = []
        self._by_id: dict[int, ObservedOptimizer] = {}
        self._kept: list[Any] = []

    def add(self, optimizer: Optimizer, where: str) -> None:
        """A new one. What was kept for the end of an earlier training may go."""
        observed = ObservedOptimizer(len(self._all), optimizer, where)
        self._all.append(observed)
        self._by_id[id(optimizer)] = observed
        self._kept = []
        self.find_modules(optimizer)
        self.probes.disarm()
        self.arm_if_due(has_group=False)

    def find_modules(self, optimizer: Optimizer) -> None:
        """The modules that hold its parameters; small ones are kept."""
        owned = parameters_of(optimizer)
        self._inventory.find(owned)
        if sum(p.numel() * p.element_size() for p in owned) <= KEPT_BYTES:
            self._kept += [optimizer, *self._inventory.roots]

    def get(self, optimizer: Optimizer) -> ObservedOptimizer | None:
        """None for one that was made before observing began."""
        return self._by_id.get(id(optimizer))

    def live(self) -> list[tuple[ObservedOptimizer, Optimizer]]:
        return [(o, optimizer) for o in self._all if (optimizer := o.reference()) is not None]

    def arm_if_due(self, *, has_group: bool) -> None:
        """Put hooks on all gradients when some optimizer's next step is probed."""
        every = self._every
        for observed in self._all:
            if observed.is_probed(observed.num_steps + 1, every):
                is_due = True
                break
        else:
            is_due = False
        if is_due and not self.probes.is_armed:
            owned = {id(p): p for _, optimizer in self.live() for p in parameters_of(optimizer)}
            self.probes.arm(owned.values(), self._inventory.roots)
        elif not is_due and self.probes.is_armed:
            self.probes.disarm(keep_timed=has_group)

    def stepped(
        self,
        observed: ObservedOptimizer,
        optimizer: Optimizer,
        *,
        steps_done: int,
        num_backwards: int,
        scale: Any,
    ) -> None:
        """It made a step, already counted: record what is due."""
        if observed.num_steps == 1:
            self.record(observed, optimizer, "first-step", steps_done)
        if not self.probes.is_armed:
            return
        if observed.is_probed(observed.num_steps, self._every):
            self._probe(observed, optimizer, steps_done, num_backwards, scale)
        self.look = StepLook()

    def record_all(self, steps_done: int) -> None:
        """The end."""
        for observed, optimizer in self.live():
            if observed.num_steps:
                self.record(observed, optimizer, "end", steps_done)

    def record(
        self,
        observed: ObservedOptimizer,
        optimizer: Optimizer,
        moment: Literal["first-step", "end"],
        steps_done: int,
    ) -> None:
        names = self._inventory.names()
        owned = parameters_of(optimizer)
        mine = {id(parameter) for parameter in owned}
        anyones = {id(p) for _, other in self.live() for p in parameters_of(other)}
        near = [
            root for root in self._inventory.roots if any(id(p) in mine for p in root.parameters())
        ]
        unowned = {
            id(p): p
            for root in near
            for p in root.parameters()
            if p.requires_grad and id(p) not in anyones
        }
        self._folder.record(
            OptimizerRecord(
                optimizer=observed.number,
                steps_done=steps_done,
                moment=moment,
                kind=observed.kind,
                where=observed.where,
                owned=tuple(
                    owned_tensor(names.get(id(p), f"{observed.label}[{index}]"), p, rate)
                    for index, (p, rate) in enumerate(
                        zip(owned, learning_rates(optimizer), strict=True)
                    )
                ),
                unowned=tuple(owned_tensor(names[id(p)], p) for p in unowned.values()),
                num_strangers=sum(id(p) not in names for p in owned),
            )
        )

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
        look = self.look
        self._folder.record(
            ProbeRecord(
                step=steps_done,
                optimizer=observed.number,
                values=self._folder.array(f"probe-{name}", values),
                norms=self._folder.array(f"norms-{name}", norms),
                num_backwards=num_backwards,
                grad_scale=1.0 if scale is None else float(scale),
                inputs_digest=look.inputs_digest,
                loss_reduction=look.reduction,
                forward_random_states=look.states if len(look.states) == 2 else (),
                memory_bytes=self._memory.now_bytes(),
            )
        )
