"""Looks closely at every probed step: each backward by itself, what clipping was given, what
arrived at the losses, what the script drew from the global random-number generators."""

from collections.abc import Iterable
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.optim import Optimizer

from scaleproof.evidence.close_ups import MAX_BACKWARDS, CloseUpRecord, CouplingRecord
from scaleproof.evidence.observations import NUM_COORDINATES, RandomSource
from scaleproof.observe import current
from scaleproof.observe.arrivals import Arrivals
from scaleproof.observe.coordinates import gather, gather_shard, padded
from scaleproof.observe.model import is_dtensor, parameters_of
from scaleproof.observe.observer import Observer
from scaleproof.observe.randomness import random_states


@final
class CloseUps:
    """The close-ups of one process."""

    def __init__(self, observer: Observer, arrivals: Arrivals) -> None:
        self._observer = observer
        self._arrivals = arrivals
        self._num_steps = 0
        self._depth = 0
        self._scale: Any = None
        self._is_unscaled = False
        self._clipped: dict[int, tuple[NDArray[np.float64], float]] | None = None
        self._clipped_ids: set[int] = set()
        self._is_clipped_scaled = False
        self._backward_where = self._clip_where = ""
        self._drawn: set[RandomSource] = set()
        self._states = random_states()
        self._has_batch = False
        observer.optimizers.probes.each = []

    # --- what the script does

    def backward_begins(self) -> bool:
        """False for a backward inside another (checkpointing)."""
        self._depth += 1
        if self._depth > 1:
            return False
        self._backward_where = current.where_called()
        each = self._observer.optimizers.probes.each
        if each is not None:
            self._arrivals.backward = len(each)
            each.append({})
        return True

    def backward_ended(self) -> None:
        self._depth -= 1

    def loss_scaled(self, scaler: Any) -> None:
        self._scale = scaler._scale
        self._is_unscaled = False

    def unscaled(self) -> None:
        self._is_unscaled = True

    def clipping_begins(self, parameters: Iterable[Tensor]) -> None:
        """``torch.nn.utils.clip_grad_*`` is about to change gradients."""
        given = {id(parameter) for parameter in parameters}
        self._clipped_ids |= given
        if self._clipped is not None:
            return
        self._clip_where = current.where_called()
        self._is_clipped_scaled = self._scale is not None and not self._is_unscaled
        optimizers = [optimizer for _, optimizer in self._observer.optimizers.live()]
        self._clipped = {
            id(parameter): _look(parameter.grad)
            for optimizer in optimizers
            for parameter in parameters_of(optimizer)
            if id(parameter) in given
            and parameter.grad is not None
            and not parameter.grad.is_sparse
        }

    def batch_asked(self) -> None:
        """Something known is about to draw: what was drawn before is the script's own doing."""
        self._compare()

    def batch_given(self) -> None:
        self._states = random_states()
        self._has_batch |= torch.is_grad_enabled()

    # --- the step

    def step_ended(
        self,
        optimizer: Optimizer,
        *,
        has_missed: bool,
        drawn_rows: tuple[tuple[int, str], ...],
    ) -> bool:
        """The observer has recorded its probe. False when it counted no step. ``has_missed``: some
        numbers drawn from torch can't be drawn again in a replay."""
        observer = self._observer
        observed = observer.optimizers.get(optimizer)
        if observed is None or observer.steps_done == self._num_steps:
            return False
        self._num_steps = observer.steps_done
        if self._num_steps == 1:
            self._record_coupling()
        self._compare()
        if has_missed:
            self._drawn.add(RandomSource.TORCH)
        rows = parameters_of(optimizer)
        name = f"{observed.number}-{self._num_steps:07d}"
        folder = observer.folder
        scale = 1.0 if self._scale is None else float(self._scale)
        before = self._before_clipping(rows)
        observer.folder.record(
            CloseUpRecord(
                step=self._num_steps,
                optimizer=observed.number,
                backwards=folder.array(f"backwards-{name}", self._backwards(rows)),
                before_clipping=before and folder.array(f"clipped-{name}", before[0]),
                before_clipping_norms=before and folder.array(f"clipped-norms-{name}", before[1]),
                is_clipped_scaled=self._is_clipped_scaled,
                clipped_tensors=tuple(
                    row for row, p in enumerate(rows) if id(p) in self._clipped_ids
                ),
                arrivals=self._arrivals.take(scale),
                backward_where=self._backward_where,
                clip_where=self._clip_where,
                drawn=tuple(source for source in RandomSource if source in self._drawn),
                drawn_rows=drawn_rows,
            )
        )
        self._begin_step()
        return True

    def _begin_step(self) -> None:
        self._observer.optimizers.probes.each = []
        self._scale, self._is_unscaled = None, False
        self._clipped, self._clipped_ids = None, set()
        self._is_clipped_scaled = False
        self._backward_where = self._clip_where = ""
        self._drawn = set()
        self._has_batch = False

    def _backwards(self, rows: list[Tensor]) -> NDArray[np.float64]:
        each = (self._observer.optimizers.probes.each or [])[:MAX_BACKWARDS]
        values = np.full((len(each), len(rows), NUM_COORDINATES), np.nan)
        for index, of_backward in enumerate(each):
            for row, parameter in enumerate(rows):
                found = of_backward.get(id(parameter))
                if found is not None:
                    values[index, row] = padded(found.double().cpu().numpy())
        return values

    def _before_clipping(
        self, rows: list[Tensor]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        if self._clipped is None:
            return None
        values = np.full((len(rows), NUM_COORDINATES), np.nan)
        norms = np.full(len(rows), np.nan)
        for row, parameter in enumerate(rows):
            found = self._clipped.get(id(parameter))
            if found is not None:
                values[row], norms[row] = found
        return values, norms

    def _record_coupling(self) -> None:
        modules = {
            name: module
            for root in self._observer.inventory.roots
            for name, module in root.named_modules()
            if isinstance(module, _BatchNorm)
            and not isinstance(module, SyncBatchNorm)
            and module.training
        }
        self._observer.folder.record(
            CouplingRecord(modules=tuple((n, type(m).__name__) for n, m in modules.items()))
        )

    def _compare(self) -> None:
        if not self._has_batch:  # setting up, shuffling, evaluating
            return
        now = random_states()
        self._drawn |= {source for source in now if now[source] != self._states[source]}
        self._states = now


def _look(gradient: Any) -> tuple[NDArray[np.float64], float]:
    """Coordinates, and the norm of what this rank holds."""
    if is_dtensor(gradient):
        local = gradient.to_local()
        return padded(gather_shard(gradient)), float(torch.linalg.vector_norm(local.float()))
    values = padded(gather(gradient).double().cpu().numpy())
    return values, float(torch.linalg.vector_norm(gradient.detach().float()))
