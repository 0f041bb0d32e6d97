"""Digests of the training state, at moments that are the same on every rank."""

from collections.abc import Iterable
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from scaleproof.evidence.observations import Moment, SnapshotRecord
from scaleproof.evidence.records import TensorKind
from scaleproof.observe.beside import ModulesBeside
from scaleproof.observe.model import ModelInventory, is_sharded, parameters_of
from scaleproof.observe.state import StateFingerprint
from scaleproof.observe.writing import RankFolder

NUMBERS_PER_SNAPSHOT = 200_000
"""Larger models are looked at that much less often: digests take time by their size."""


FIRST_SNAPSHOTS = 3
"""After each of the first steps the state is recorded."""


NUM_EVEN_SNAPSHOTS = 4
"""Then the intervals double: what differs once differs later too, and long runs pay little."""


@final
class Snapshots:
    """Takes and writes them."""

    def __init__(
        self, folder: RankFolder, inventory: ModelInventory, beside: ModulesBeside
    ) -> None:
        self._folder = folder
        self._inventory = inventory
        self._beside = beside
        self._fingerprint = StateFingerprint()
        self._last: SnapshotRecord | None = None
        self._interval = 1
        self._ended_at = -1

    def plan(self, every: int) -> None:
        """Choose the steps between two snapshots, from the number of parameters alone."""
        numel = sum(parameter.numel() for _, parameter in self._inventory.parameters())
        self._interval = every * max(1, -(-numel // NUMBERS_PER_SNAPSHOT))

    def is_due(self, steps_done: int) -> bool:
        """After the first steps, every interval, and then, after each twice as many as before."""
        if steps_done <= FIRST_SNAPSHOTS:
            return True
        number, rest = divmod(steps_done, self._interval)
        return rest == 0 and (number <= NUM_EVEN_SNAPSHOTS or number & (number - 1) == 0)

    def of_training(
        self, steps_done: int, moment: Moment, live: list[tuple[str, Optimizer]]
    ) -> bool:
        """Record the whole state; the one at the end once. False when the model is gone."""
        if moment is Moment.END:
            if self._ended_at == steps_done:
                return True
            self._ended_at = steps_done
        if live:
            self.take(steps_done, moment, live)
            return True
        return moment is Moment.END and self._repeat_as_end(steps_done)

    def take(
        self,
        steps_done: int,
        moment: Moment,
        optimizers: Iterable[tuple[str, Optimizer]],
        *,
        buffers_only: bool = False,
        through_wrapper: bool | None = None,
    ) -> None:
        """``optimizers``: with what to put before the names of their state."""
        tensors: list[tuple[TensorKind, str, Tensor]] = [
            (TensorKind.BUFFER, name, buffer) for name, buffer in self._inventory.buffers()
        ]
        if buffers_only and not tensors:
            return
        if not buffers_only:
            tensors = [*self._parameters(optimizers), *tensors, *self._parameters_beside()]
        whole = [entry for entry in tensors if not is_sharded(entry[2])]
        states, sketches = self._fingerprint.of_tensors(_local(whole))
        name = f"snapshot-{steps_done:07d}-{moment}"
        record = SnapshotRecord(
            steps_done=steps_done,
            moment=moment,
            tensors=states,
            num_sharded=len(tensors) - len(whole),
            sketches=self._folder.array(name, sketches),
            through_wrapper=through_wrapper,
            beside=() if buffers_only else self._beside.labels(),
        )
        self._folder.record(record)
        if not buffers_only:
            self._last = record

    def _repeat_as_end(self, steps_done: int) -> bool:
        """The model is gone: the last snapshot stands for the end, if no step came after it."""
        last = self._last
        if last is None or last.steps_done != steps_done:
            return False
        self._folder.record(
            SnapshotRecord(
                steps_done=steps_done,
                moment=Moment.END,
                tensors=last.tensors,
                num_sharded=last.num_sharded,
                sketches=last.sketches,
                beside=last.beside,
            )
        )
        return True

    def _parameters(
        self, optimizers: Iterable[tuple[str, Optimizer]]
    ) -> list[tuple[TensorKind, str, Tensor]]:
        names = self._inventory.names()
        found: dict[int, tuple[TensorKind, str, Tensor]] = {
            id(parameter): (TensorKind.PARAMETER, name, parameter.detach())
            for name, parameter in self._inventory.parameters()
        }
        state: list[tuple[TensorKind, str, Tensor]] = []
        for label, optimizer in optimizers:
            for index, parameter in enumerate(parameters_of(optimizer)):
                name = names.get(id(parameter), f"{label}[{index}]")
                found.setdefault(id(parameter), (TensorKind.PARAMETER, name, parameter.detach()))
                state += [
                    (TensorKind.OPTIMIZER, f"{name}/{key}", value)
                    for key, value in optimizer.state.get(parameter, {}).items()
                    if isinstance(value, Tensor)
                ]
        return [*found.values(), *state]

    def _parameters_beside(self) -> list[tuple[TensorKind, str, Tensor]]:
        return [(TensorKind.PARAMETER, name, some) for name, some in self._beside.parameters()]


def _local(tensors: list[tuple[TensorKind, str, Tensor]]) -> list[tuple[TensorKind, str, Tensor]]:
    """Replicated DTensors as the plain tensors they hold; names made unique."""
    seen: dict[tuple[TensorKind, str], int] = {}
    result: list[tuple[TensorKind, str, Any]] = []
    for kind, name, tensor in tensors:
        number = seen[kind, name] = seen.get((kind, name), 0) + 1
        unique = name if number == 1 else f"{name}#{number}"
        to_local = getattr(tensor, "to_local", None)
        result.append((kind, unique, tensor if to_local is None else to_local()))
    return result
