"""Drives a replay from inside the script's only process: the ranks' batches, their weights before
every step, and the end after the last one."""

from collections.abc import Callable
from typing import Any, NoReturn, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from scaleproof.observe.model import is_dtensor
from scaleproof.observe.observer import Observer
from scaleproof.observe.replay.draws import joined_draws
from scaleproof.observe.replay.feeding import Feeder
from scaleproof.observe.replay.joining import UnjoinableError
from scaleproof.observe.replay.material import Material
from scaleproof.observe.replay.plan import ReplayPlan


@final
class Replayer:
    """``leave`` ends the process: it is given why, and an empty string when all was replayed."""

    def __init__(
        self,
        observer: Observer,
        material: Material,
        plan: ReplayPlan,
        feeder: Feeder,
        leave: Callable[[str], NoReturn],
    ) -> None:
        self._observer = observer
        self._material = material
        self._plan = plan
        self._leave = leave
        self.feeder = feeder
        self._num_backwards = 0
        self._is_started = False
        self._drawn_of = 0
        self._drawn: list[dict[str, Tensor]] = []

    def next_batch(self, iterator: Any, original: Any) -> Any:
        this = getattr(iterator, "_scaleproof_pass", None)
        if this is None:
            if self._observer.troubles.any:
                self._leave("its loaders could not be observed on one process")
            return original()
        try:
            batch = self.feeder.next(iterator, this, original)
        except UnjoinableError as error:
            self._leave(f"the batches of {this.info.where} can't be joined: {error}")
        if not self._is_started:
            self._load(0)  # a script may call a part of its model, which no root tells of
        return batch

    def forward_begins(self) -> None:
        """A forward in training."""
        if not self._is_started:
            self._is_started = True
            self._load(0)

    def substitute(self, name: str, own: Tensor) -> Tensor | None:
        """What the ranks drew at this call of the step, together; None when that makes no sense.
        ``name``: ``backward/call``, ``own``: what was drawn here."""
        step = self._observer.steps_done + 1
        if step != self._drawn_of:
            entries = [
                (rank, entry)
                for rank, entry in self._material.draws.get(step, ())
                if self.feeder.only_rank in (None, rank)
            ]
            self._drawn = [self._material.tensors_of(rank, entry) for rank, entry in entries]
            self._drawn_of = step
        backward, call = name.split("/")
        backwards = [backward]
        if self.feeder.gives_whole_steps and 0 < step <= len(self._plan.steps):
            backwards = [str(i) for i in range(self._plan.steps[step - 1].num_backwards)]
        names = [f"{one}/{call}" for one in backwards]
        parts = [drawn[one] for one in names for drawn in self._drawn if one in drawn]
        num_ranks = self._plan.num_ranks if self.feeder.only_rank is None else 1
        if len(parts) < len(names) * num_ranks:
            return None
        if self._plan.is_shared and all(torch.equal(part, parts[0]) for part in parts):
            parts = parts[:1]
        if self.feeder.is_reordered:
            parts = [part.flip(0) if part.dim() else part for part in reversed(parts)]
        return joined_draws(own, parts)

    def backward_ended(self) -> None:
        self._num_backwards += 1

    def step_ended(self, optimizer: Optimizer) -> None:
        """The observer has counted and recorded it."""
        step = self._observer.steps_done
        planned = self._plan.steps[step - 1]
        observed = self._observer.optimizers.get(optimizer)
        if observed is None or observed.number != planned.optimizer:
            self._leave(f"step {step} is made by another optimizer on one process")
        if self._num_backwards != planned.num_backwards:
            self._leave(
                f"step {step} takes {self._num_backwards} backwards on one process, and took "
                f"{planned.num_backwards} on each rank: the script takes another path"
            )
        self._num_backwards = 0
        if step >= len(self._plan.steps):
            self._leave("")
        self._load(step)

    def _load(self, steps_done: int) -> None:
        weights = self._material.whole_weights(steps_done)
        if not weights:
            self._leave(f"the weights after step {steps_done} were not kept")
        inventory = self._observer.inventory
        unknown: list[str] = []
        with torch.no_grad():
            for name, tensor in (*inventory.parameters(), *inventory.buffers()):
                if name in weights and weights[name].shape == tensor.shape:
                    _copy(tensor, weights[name])
                elif tensor.requires_grad:
                    unknown.append(name)
        if unknown:
            self._leave(
                f"on one process the script has {len(unknown)} parameters that it has not on the "
                f"ranks, {unknown[0]} for one"
            )


def _copy(target: Any, values: Tensor) -> None:
    if is_dtensor(target):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, starts = compute_local_shape_and_global_offset(
            target.shape, target.device_mesh, target.placements
        )
        region = tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))
        target.to_local().copy_(values[region])
        return
    if not torch.equal(target, values.to(target.device)):
        target.data.copy_(values)  # a graph made before may still need it: not a change to autograd
