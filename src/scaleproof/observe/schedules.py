"""Listens to learning-rate schedulers: what each was made for, and how often it was stepped."""

import functools
import weakref
from typing import Any, final

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from scaleproof.evidence.schedules import ScheduleRecord
from scaleproof.observe import current
from scaleproof.observe.guard import Troubles, guarded
from scaleproof.observe.observer import Observer

_PLANS = (
    *("T_max", "total_steps", "total_iters", "num_training_steps", "t_total", "max_steps"),
    *("max_iters", "max_iterations", "num_total_steps", "num_train_steps", "train_steps"),
)
"""What schedulers, and the functions and settings of those made from functions, call the number of
calls until they are over."""

_MAX_SCHEDULES = 64


def patch_schedulers() -> None:
    """Count the steps of every scheduler that is made from now on."""

    def making(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            watch = _watch_now()
            if watch is not None:
                watch.made(self, current.where_called())

        return __init__

    def stepping(original: Any) -> Any:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            watch = _watch_now()
            if watch is None or watch.is_stepping:  # a class's own, calling its base's
                return original(self, *args, **kwargs)
            before = num_done(self)
            watch.is_stepping = True
            try:
                result = original(self, *args, **kwargs)
            finally:
                watch.is_stepping = False
            watch.stepped(self, before)
            return result

        return step

    kinds = [
        kind
        for kind in vars(lr_scheduler).values()
        if isinstance(kind, type) and issubclass(kind, LRScheduler)
    ]
    for kind in dict.fromkeys((LRScheduler, *kinds)):
        if kind is LRScheduler or _is_begun_elsewhere(kind):
            current.replace(kind, "__init__", making)
        if "step" in vars(kind):
            current.replace(kind, "step", stepping)


def _is_begun_elsewhere(kind: type) -> bool:
    """Those that hold others, and the plateau's, don't call their base's ``__init__``."""
    names = ("SequentialLR", "ChainedScheduler", "ReduceLROnPlateau")
    return kind.__name__ in names and "__init__" in vars(kind)


def write_schedules(observer: Observer) -> None:
    """The process ends: record what its schedulers did. To be called before ``Observer.end``."""
    if _watch is not None and _watch.observer is observer:
        _watch.write()


def num_in_use() -> int:
    """Schedulers that the script holds now."""
    return 0 if (watch := _watch_now()) is None else len(watch.live())


def num_advanced() -> int:
    """Of these, those that stand beyond their beginning."""
    return 0 if (watch := _watch_now()) is None else sum(num_done(s) > 0 for s in watch.live())


def num_done(scheduler: Any) -> int:
    """Where it stands in its own count."""
    done = getattr(scheduler, "last_epoch", None)
    if isinstance(done, int):
        return done
    inner = getattr(scheduler, "_schedulers", ())
    return max((num_done(one) for one in inner), default=0)


def plan_of(scheduler: Any) -> tuple[int | None, str]:
    """Calls of ``step`` until it is over, and where that stands; (None, "") when nowhere."""
    inner = list(getattr(scheduler, "_schedulers", ()))
    if inner and hasattr(scheduler, "_milestones"):  # one after another
        last, source = plan_of(inner[-1])
        milestones = scheduler._milestones
        return (None, "") if last is None else (milestones[-1] + last, f"milestones + {source}")
    if inner:  # all at once
        plans = [plan_of(one) for one in inner]
        known = [(number, source) for number, source in plans if number is not None]
        return max(known) if len(known) == len(plans) else (None, "")
    for function in getattr(scheduler, "lr_lambdas", ()):
        found = _plan_of_function(function)
        if found[0] is not None:
            return found
    return _first_plan(vars(scheduler))


def _plan_of_function(function: Any) -> tuple[int | None, str]:
    """Of a ``functools.partial``, what it was given; of a function, what it closes over or looks up
    in its module."""
    if isinstance(function, functools.partial):
        found = _first_plan(function.keywords)
        return found if found[0] is not None else _plan_of_function(function.func)
    code = getattr(function, "__code__", None)
    if code is None:
        return None, ""
    names = code.co_names
    seen = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            seen[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return _first_plan(seen)


def _first_plan(named: dict[str, Any]) -> tuple[int | None, str]:
    for name in _PLANS:
        value = named.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
            return int(value), name
    return None, ""


def _is_decaying(scheduler: Any) -> bool:
    inner = list(getattr(scheduler, "_schedulers", ()))
    if inner:
        return _is_decaying(inner[-1])
    if type(scheduler).__name__ == "ConstantLR":
        return False
    start, end = (getattr(scheduler, name, None) for name in ("start_factor", "end_factor"))
    return start is None or end is None or end < start


@final
class _Seen:
    """One scheduler, which the script may drop: its last numbers."""

    def __init__(self, number: int, scheduler: Any, where: str) -> None:
        self.number = number
        self.kind = type(scheduler).__name__
        self.where = where
        self.optimizer: Any = None
        self.plan: tuple[int | None, str] = (None, "")
        self.is_part = False
        self.is_decaying = True
        self.num_done = num_done(scheduler)
        self.num_calls = 0
        self.num_moments = 0
        self.last_moment = -1
        self.over_at_step: int | None = None


@final
class ScheduleWatch:
    """All schedulers of this process."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.is_stepping = False
        self._seen: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()
        self._all: list[_Seen] = []

    @property
    def troubles(self) -> Troubles:
        return self.observer.troubles

    def live(self) -> list[Any]:
        """Those that the script holds, without parts of others."""
        return [scheduler for scheduler, seen in self._seen.items() if not seen.is_part]

    @guarded("schedule")
    def made(self, scheduler: Any, where: str) -> None:
        for part in getattr(scheduler, "_schedulers", ()):
            if part in self._seen:
                self._seen[part].is_part = True
        if scheduler not in self._seen and len(self._all) < _MAX_SCHEDULES:
            seen = _Seen(len(self._all), scheduler, where)
            self._seen[scheduler] = seen
            self._all.append(seen)

    @guarded("schedule")
    def stepped(self, scheduler: Any, num_before: int) -> None:
        seen = self._seen.get(scheduler)
        if seen is None:
            return
        if seen.num_calls == 0:
            seen.plan, seen.is_decaying = plan_of(scheduler), _is_decaying(scheduler)
            seen.optimizer = self._observed(scheduler.optimizer)
        moment = self._steps(seen)
        seen.num_calls += 1
        seen.num_moments += moment != seen.last_moment
        seen.last_moment = moment
        seen.num_done = num_done(scheduler)
        planned = seen.plan[0]
        if planned is not None and num_before < planned <= seen.num_done:
            seen.over_at_step = moment

    @guarded("schedule")
    def write(self) -> None:
        for seen in self._all:
            if seen.is_part or not seen.num_calls:
                continue
            self.observer.folder.record(
                ScheduleRecord(
                    schedule=seen.number,
                    kind=seen.kind,
                    where=seen.where,
                    optimizer=-1 if seen.optimizer is None else seen.optimizer.number,
                    num_planned=seen.plan[0],
                    plan_source=seen.plan[1],
                    num_done=seen.num_done,
                    num_calls=seen.num_calls,
                    num_moments=seen.num_moments,
                    num_optimizer_steps=self._steps(seen),
                    over_at_step=seen.over_at_step,
                    is_decaying=seen.is_decaying,
                )
            )

    def _observed(self, optimizer: Any) -> Any:
        """Ours of it; Accelerate hands schedulers a wrapper of it."""
        optimizers = self.observer.optimizers
        inner = getattr(optimizer, "optimizer", None)
        return optimizers.get(optimizer) or (None if inner is None else optimizers.get(inner))

    def _steps(self, seen: _Seen) -> int:
        return self.observer.steps_done if seen.optimizer is None else seen.optimizer.num_steps


_watch: ScheduleWatch | None = None


def _watch_now() -> ScheduleWatch | None:
    """That of this process's observer; None while there is none."""
    global _watch
    observer = current.observer
    if observer is not None and (_watch is None or _watch.observer is not observer):
        _watch = ScheduleWatch(observer)
    return _watch if observer is not None else None
