"""Listens to ``torch.load``: which training state a file holds, and which of it the script puts
back before its first step. Contents are looked at where they are; nothing of them is kept alive."""

import os
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, final

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from scaleproof.evidence.checkpoints import CheckpointRecord, OptimizerState, StateCounts
from scaleproof.observe import current, schedules
from scaleproof.observe.guard import describe
from scaleproof.observe.model import parameters_of

_MAX_DEPTH = 4
_MAX_LISTED = 64
_MAX_LOOKED_AT = 100_000
"""Entries of a file: what holds more and is no state yet, is data."""
_STATE_DICTS = "torch.distributed.checkpoint.state_dict"
_MAX_WRAPPERS = 6
"""Frames between a hook of an optimizer's step and what called the step."""
_MAX_COUNTERS = 8
"""Tensors of an optimizer's state whose steps are read: they count alike."""


def patch_checkpoints() -> None:
    """Watch loading until the first step of the process."""

    def reading(original: Any) -> Any:
        def load(*args: Any, **kwargs: Any) -> Any:
            content = original(*args, **kwargs)
            if _loading.is_before_training():
                file = args[0] if args else kwargs.get("f")
                _safely(_loading.read, content, file, current.where_called())
            return content

        return load

    def restoring(original: Any) -> Any:
        def load_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if _loading.is_before_training():
                state = args[0] if args else kwargs.get("state_dict")
                _safely(_loading.restored, self, state)
            return result

        return load_state_dict

    def making(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if self.is_enabled():
                _loading.scalers.add(self)

        return __init__

    current.replace(torch.serialization, "load", reading)
    torch.load = torch.serialization.load
    for owner in (torch.nn.Module, Optimizer, GradScaler, LRScheduler, *_own_loaders(LRScheduler)):
        current.replace(owner, "load_state_dict", restoring)
    current.replace(GradScaler, "__init__", making)
    register_optimizer_step_pre_hook(_before_step)
    os.register_at_fork(after_in_child=_loading.forget_training)


def _own_loaders(base: type) -> list[type]:
    kinds = base.__subclasses__()
    return [kind for kind in kinds if "load_state_dict" in vars(kind)]


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    if current.observer is None or not _loading.is_before_training():
        return
    if not is_preparing_to_load():
        _safely(_loading.write, optimizer)
        _loading.end()
        if _loading.trouble:
            current.observer.troubles.note("checkpoint", _loading.trouble)


def is_preparing_to_load() -> bool:
    """The step that a hook is called of is none: torch's distributed checkpoints make one of
    nothing, at a rate of zero, so that there is state to load."""
    if _STATE_DICTS not in sys.modules:
        return False
    frame = sys._getframe(2)
    for _ in range(_MAX_WRAPPERS):
        if frame is None or frame.f_code.co_name == "_init_optim_state":
            break
        frame = frame.f_back
    else:
        return False
    return frame is not None


def _safely(function: Any, *args: Any) -> None:
    """Somebody's training must not end with it: what broke is noted at the first step."""
    try:
        function(*args)
    except Exception as error:  # noqa: BLE001 - see above
        _loading.trouble = _loading.trouble or describe(error)


@final
class _File:
    """What one call of ``torch.load`` read, as long as training has not begun."""

    def __init__(self, file: Any, where: str) -> None:
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "")
        self.file = os.fspath(name) if isinstance(name, str | os.PathLike) else ""
        self.where = where
        self.optimizers: list[OptimizerState] = []
        self.num_schedulers = 0
        self.num_scalers = 0
        self.tensors: dict[int, weakref.ref[Any]] = {}
        self.loaded: list[tuple[weakref.ref[Any], dict[str, int]]] = []

    @property
    def holds_state(self) -> bool:
        return bool(self.optimizers or self.num_schedulers or self.num_scalers)

    def has(self, value: Any) -> bool:
        reference = self.tensors.get(id(value))
        return reference is not None and reference() is value


@final
class _Loading:
    """What was loaded before the first step of this process."""

    def __init__(self) -> None:
        self.files: list[_File] = []
        self.scalers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.trouble = ""
        self._restored: weakref.WeakSet[Any] = weakref.WeakSet()
        self._has_trained = False

    def is_before_training(self) -> bool:
        return not self._has_trained

    def end(self) -> None:
        """Training begins: what is loaded from now on is none of ours."""
        self._has_trained = True
        self.files = []

    def forget_training(self) -> None:
        """A forked child has not trained, whatever its parent did."""
        self._has_trained = False

    def read(self, content: Any, file: Any, where: str) -> None:
        found = _File(file, where)
        tensors: list[Any] = []
        for value in _walk(content):
            if isinstance(value, torch.Tensor):
                tensors.append(value)
            elif _is_optimizer(value):
                found.optimizers.append(_optimizer_state(value["param_groups"], value["state"]))
            elif "last_epoch" in value and "_step_count" in value:
                found.num_schedulers += _number(value["last_epoch"]) > 0
            elif "growth_tracker" in value and "scale" in value:
                found.num_scalers += 1
        if found.holds_state:
            found.tensors = {id(tensor): weakref.ref(tensor) for tensor in tensors}
            self.files.append(found)

    def restored(self, target: Any, state: Any) -> None:
        """A ``load_state_dict`` of a module, optimizer, scheduler or scaler is done."""
        if not isinstance(target, torch.nn.Module):
            if not isinstance(target, Optimizer) or target.state:  # frameworks load empty ones too
                self._restored.add(target)
            return
        for file in self.files:
            named = dict(state) if isinstance(state, Mapping) else {}
            given = {name: value.numel() for name, value in named.items() if file.has(value)}
            if given:
                file.loaded.append((weakref.ref(target), given))

    def write(self, optimizer: Optimizer) -> None:
        """The first step of this process is about to be made."""
        observer = current.observer
        assert observer is not None  # the only caller asks
        restored, in_use = self._num_restored(), self._num_in_use()
        trained = _optimizer_state(optimizer.param_groups, {})
        for file in self.files:
            observer.folder.record(
                CheckpointRecord(
                    file=file.file,
                    where=file.where,
                    held=StateCounts(
                        optimizers=len(file.optimizers),
                        schedulers=file.num_schedulers,
                        scalers=file.num_scalers,
                    ),
                    restored=restored,
                    in_use=in_use,
                    saved=tuple(file.optimizers),
                    trained=trained,
                    model_share=_model_share(file, optimizer),
                )
            )

    def _num_restored(self) -> StateCounts:
        return StateCounts(
            optimizers=sum(isinstance(one, Optimizer) for one in self._restored),
            schedulers=max(
                sum(isinstance(one, LRScheduler) for one in self._restored),
                schedules.num_advanced(),
            ),
            scalers=sum(isinstance(one, GradScaler) for one in self._restored),
        )

    def _num_in_use(self) -> StateCounts:
        assert current.observer is not None  # as above
        return StateCounts(
            optimizers=len(current.observer.optimizers.live()),
            schedulers=schedules.num_in_use(),
            scalers=len(self.scalers),
        )


_loading = _Loading()


def _walk(content: Any) -> Iterator[Any]:
    """Mappings and tensors in nested mappings and short lists, from outside in. What is inside an
    optimizer's state is not looked at: its moments are no weights."""
    left, num_seen = deque([(content, 0)] if _is_worth_it(content) else []), 0
    while left and num_seen < _MAX_LOOKED_AT:
        value, depth = left.popleft()
        num_seen += 1
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield value
            if depth < _MAX_DEPTH and not _is_optimizer(value):
                left += [(inner, depth + 1) for inner in value.values() if _is_worth_it(inner)]
        elif len(value) <= _MAX_LISTED and depth < _MAX_DEPTH:
            left += [(inner, depth + 1) for inner in value if _is_worth_it(inner)]


def _is_worth_it(value: Any) -> bool:
    return isinstance(value, torch.Tensor | Mapping | list | tuple)


def _is_optimizer(value: Any) -> bool:
    """An optimizer's state that is not empty."""
    return isinstance(value, Mapping) and bool(value.get("state")) and "param_groups" in value


def _optimizer_state(groups: Any, state: Any) -> OptimizerState:
    groups = list(groups)
    first = groups[0] if groups else {}
    rate = first.get("initial_lr", first.get("lr"))
    entries = [entry for entry in islice(state.values(), _MAX_COUNTERS) if entry]
    steps = [int(_number(entry["step"])) for entry in entries if "step" in entry]
    return OptimizerState(
        num_tensors=sum(len(group["params"]) for group in groups),
        num_steps=max(steps, default=None),
        learning_rate=None if rate is None else _number(rate),
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | torch.Tensor) else 0.0


def _model_share(file: _File, optimizer: Optimizer) -> float:
    """Of the optimizer's parameters, those whose values came from the file."""
    mine = {id(parameter) for parameter in parameters_of(optimizer)}
    from_file: set[int] = set()
    for reference, given in file.loaded:
        module = reference()
        for name, parameter in module.named_parameters() if module is not None else ():
            if id(parameter) in mine and given.get(name) == parameter.numel():
                from_file.add(id(parameter))
    return len(from_file) / len(mine) if mine else 0.0
