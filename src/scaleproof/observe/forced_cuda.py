"""The functions of ``torch.cuda`` and ``torch.accelerator`` on a machine that needs no GPU.

Where it matters what the answer is, the script is told of GPUs, so that it takes the branches that
it would take on one; torch and libraries are told that there is none.
"""

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from types import SimpleNamespace
from typing import Any, Self, final

import psutil
import torch
import torch.cuda.nvtx
import torch.cuda.profiler
import torch.nn.parallel.comm
from torch.optim import Optimizer

from scaleproof.observe.forced import REAL_DEVICE, asked, called_by_script, replace

_CAPABILITY = (8, 0)
"""The least that has bfloat16, which is what scripts ask it for."""


def force_cuda(num_devices: int) -> None:
    devices, randomness = _Devices(num_devices), _Randomness(num_devices)
    _force_questions(devices)
    _force_accelerator(devices)
    for name, fake in {**_fakes(devices), **_memory(), **randomness.fakes()}.items():
        _put(torch.cuda, name, fake)
    for name, fake in (("Stream", Stream), ("Event", Event), ("ExternalStream", Stream)):
        setattr(torch.cuda, name, fake)
    for name, fake in (("device", devices.chosen), ("device_of", devices.chosen), ("stream", _in_stream)):
        setattr(torch.cuda, name, fake)
    torch.cuda.StreamContext = _in_stream
    for name in ("CUDAGraph", "graph"):
        setattr(torch.cuda, name, _refuse_graphs)
    for owner, names in (
        (torch.cuda.nvtx, ("range_push", "range_pop", "range_start", "range_end", "mark")),
        (torch.cuda.profiler, ("start", "stop")),
    ):
        for name in names:
            setattr(owner, name, _nothing)
    _force_comm()

    def making(original: Any) -> Any:
        def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            randomness.training_begins()

        return __init__

    replace(Optimizer, "__init__", making)


@final
class _Devices:
    """How many the script believes in, and which one it chose."""

    def __init__(self, num_devices: int) -> None:
        self.num = num_devices
        self.current = 0

    def choose(self, device: Any) -> None:
        index = device if isinstance(device, int) else REAL_DEVICE(device).index
        if index is not None and index >= 0:
            self.current = index

    @contextlib.contextmanager
    def chosen(self, device: Any) -> Iterator[None]:
        before = self.current
        if device is not None and not isinstance(device, torch.Tensor):
            self.choose(device)
        try:
            yield
        finally:
            self.current = before


@final
class Stream:
    """Everything is done in order, at once."""

    cuda_stream = 0
    stream_id = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device, self.priority = REAL_DEVICE("cuda", 0), priority

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record()
        return event

    def query(self) -> bool:
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@final
class Event:
    """A moment of the host's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._at_s: float | None = None

    def record(self, stream: Any = None) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to ``end_event``."""
        if self._at_s is None or end_event._at_s is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end_event._at_s - self._at_s) * 1000


@final
class _Randomness:
    """The generators of the devices. On the CPU, what the device would have drawn comes from the
    CPU's generator, so a seed of its own for the device must reach that one: ranks that differ in
    it alone would draw the same dropout masks. It does so when training begins, for initial
    weights come from the CPU's generator on a GPU too.
    """

    def __init__(self, num_devices: int) -> None:
        self._generators = [torch.Generator() for _ in range(num_devices)]
        self._pending: int | None = None
        self._is_training = False

    def fakes(self) -> dict[str, Callable[..., Any]]:
        return {
            "manual_seed": self.seed_with,
            "manual_seed_all": self.seed_with,
            "seed": self.seed,
            "seed_all": self.seed,
            "initial_seed": lambda: self._generators[0].initial_seed(),
            "get_rng_state": lambda *_: self._generators[0].get_state(),
            "get_rng_state_all": lambda: [each.get_state() for each in self._generators],
            "set_rng_state": lambda state, *_: self._generators[0].set_state(state),
            "set_rng_state_all": lambda states: self._generators[0].set_state(states[0]),
        }

    def seed(self) -> None:
        self.seed_with(self._generators[0].seed())

    def seed_with(self, seed: int) -> None:
        for generator in self._generators:
            generator.manual_seed(int(seed))
        # torch.manual_seed comes by as well, after the CPU's generator has the same seed.
        self._pending = int(seed) if int(seed) != torch.initial_seed() else None
        if self._is_training:
            self.training_begins()

    def training_begins(self) -> None:
        self._is_training = True
        if self._pending is not None:
            asked("a seed of its own for the device")
            torch.default_generator.manual_seed(self._pending)
            self._pending = None


def _put(owner: Any, name: str, fake: Callable[..., Any]) -> None:
    """``fake`` in place of the function ``name``, noted where the script calls it."""
    original = getattr(owner, name, None)
    if original is None:
        return
    shown = f"{owner.__name__}.{name}"

    @wraps(original)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if called_by_script():
            asked(shown)
        return fake(*args, **kwargs)

    setattr(owner, name, noted)


def _for_script(owner: Any, name: str, fake: Callable[..., Any], else_: Any = None) -> None:
    """``fake`` for the script; others get ``else_``, if given, or the original's answer."""
    original = getattr(owner, name, None)
    if original is None:
        return
    shown = f"{owner.__name__}.{name}"

    @wraps(original)
    def answered(*args: Any, **kwargs: Any) -> Any:
        if called_by_script():
            asked(shown)
            return fake(*args, **kwargs)
        return original(*args, **kwargs) if else_ is None else else_()

    setattr(owner, name, answered)


def _force_questions(devices: _Devices) -> None:
    _for_script(torch.cuda, "is_available", lambda: True, lambda: False)
    _for_script(torch.cuda, "device_count", lambda: devices.num, lambda: 0)
    _for_script(torch.cuda, "is_initialized", lambda: True, lambda: False)
    _for_script(torch.cuda, "is_bf16_supported", lambda *_, **__: True, lambda: False)
    _for_script(torch.cuda, "is_tf32_supported", lambda: True, lambda: False)
    _for_script(torch.cuda, "get_arch_list", lambda: ["sm_80"], lambda: [])
    _for_script(torch.backends.cuda, "is_built", lambda: True, lambda: False)


def _force_accelerator(devices: _Devices) -> None:
    here = torch.accelerator
    _for_script(here, "is_available", lambda: True, lambda: False)
    _for_script(here, "device_count", lambda: devices.num, lambda: 0)
    _for_script(here, "current_accelerator", lambda *_, **__: REAL_DEVICE("cuda"))
    for name in ("set_device_index", "set_device_idx"):
        _for_script(here, name, devices.choose)
    for name in ("current_device_index", "current_device_idx"):
        _for_script(here, name, lambda: devices.current)
    _for_script(here, "current_stream", lambda *_: Stream())
    for name in ("synchronize", "set_stream"):
        _for_script(here, name, _nothing)
    memory = _memory()
    for name in memory.keys() & set(dir(here)):
        _for_script(here, name, memory[name])
    _for_script(here, "get_memory_info", memory["mem_get_info"])


def _fakes(devices: _Devices) -> dict[str, Callable[..., Any]]:
    def set_device(device: Any) -> None:
        devices.choose(device)

    idle = (
        "init synchronize set_stream ipc_collect set_sync_debug_mode "
        "set_per_process_memory_fraction caching_allocator_enable"
    ).split()
    zero = "utilization temperature power_draw clock_rate memory_usage get_sync_debug_mode".split()
    return {
        **dict.fromkeys(idle, _nothing),
        **dict.fromkeys(zero, lambda *_, **__: 0),
        "set_device": set_device,
        "current_device": lambda: devices.current,
        "current_stream": lambda *_: Stream(),
        "default_stream": lambda *_: Stream(),
        "get_device_name": lambda *_: "CPU in place of a GPU",
        "get_device_capability": lambda *_: _CAPABILITY,
        "get_device_properties": lambda *_: _properties(),
        "can_device_access_peer": lambda *_: True,
        "is_current_stream_capturing": lambda: False,
        "make_graphed_callables": lambda callables, *_, **__: callables,
        "cudart": _Runtime,
    }


@final
class _Runtime:
    """Of CUDA: each of its functions succeeds."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: 0


def _memory() -> dict[str, Callable[..., Any]]:
    """Figures of this process's memory on the host: a script that divides by them can."""
    current, peak = ("memory_allocated", "memory_reserved", "memory_cached"), (
        "max_memory_allocated",
        "max_memory_reserved",
        "max_memory_cached",
    )
    idle = (
        "empty_cache reset_peak_memory_stats reset_max_memory_allocated reset_max_memory_cached "
        "reset_accumulated_memory_stats reset_peak_host_memory_stats empty_host_cache"
    ).split()
    return {
        **dict.fromkeys(current, lambda *_, **__: psutil.Process().memory_info().rss),
        **dict.fromkeys(peak, lambda *_, **__: _peak_bytes()),
        **dict.fromkeys(idle, _nothing),
        "memory_stats": lambda *_, **__: defaultdict(int),
        "memory_summary": lambda *_, **__: "",
        "memory_snapshot": lambda *_, **__: [],
        "mem_get_info": lambda *_: (
            psutil.virtual_memory().available,
            psutil.virtual_memory().total,
        ),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux has kibibytes


def _properties() -> SimpleNamespace:
    major, minor = _CAPABILITY
    return SimpleNamespace(
        name="CPU in place of a GPU",
        major=major,
        minor=minor,
        total_memory=psutil.virtual_memory().total,
        multi_processor_count=1,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        is_integrated=0,
        is_multi_gpu_board=0,
        gcnArchName="",
    )


def _force_comm() -> None:
    """``torch.cuda.comm``: every device is the same memory."""
    comm = torch.nn.parallel.comm

    def broadcast(tensor: Any, devices: Any = None, *, out: Any = None) -> tuple[Any, ...]:
        if out is not None:
            return tuple(each.copy_(tensor) for each in out)
        return tuple(tensor.clone() for _ in devices)

    def broadcast_coalesced(tensors: Any, devices: Any, *_: Any) -> list[list[Any]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    def reduce_add(inputs: Any, destination: Any = None) -> Any:
        return torch.stack(tuple(inputs)).sum(0)

    def scatter(
        tensor: Any, devices: Any = None, chunk_sizes: Any = None, dim: int = 0, *_: Any, **__: Any
    ) -> tuple[Any, ...]:
        if chunk_sizes is not None:
            return torch.split(tensor, list(chunk_sizes), dim)
        return torch.chunk(tensor, len(devices), dim)

    def gather(tensors: Any, dim: int = 0, destination: Any = None, *, out: Any = None) -> Any:
        return torch.cat(tuple(tensors), dim, out=out)

    for fake in (broadcast, broadcast_coalesced, reduce_add, scatter, gather):
        _put(comm, fake.__name__, fake)


@contextlib.contextmanager
def _in_stream(stream: Any) -> Iterator[None]:
    yield


def _nothing(*_: Any, **__: Any) -> None:
    """What the CPU does not have, or need."""


def _refuse_graphs(*_: Any, **__: Any) -> Any:
    raise RuntimeError(
        "CUDA graphs were asked for, and --force-cpu can't replay what a graph captured. Switch "
        "them off for the check (an option of the script, or torch.cuda.make_graphed_callables, "
        "which is mapped), or check on a machine with a GPU."
    )
