"""The functions of ``torch.cuda`` and ``torch.accelerator`` on a machine that needs no GPU.

Where it matters what the answer is, the script is told of GPUs, so that it takes the branches that
it would take on one; torch and libraries are told that there is none.
"""

import resource
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any, final

import psutil
import torch
import torch.cuda.nvtx
import torch.cuda.profiler
import torch.nn.attention
import torch.nn.parallel.comm
from torch.nn.attention import SDPBackend

from scaleproof.observe.forced import REAL_DEVICE, asked, called_by_script, replace
from scaleproof.observe.forced_randomness import DeviceRandomness
from scaleproof.observe.forced_streams import Event, Graph, Stream, StreamContext

_CAPABILITY = (8, 0)
"""The least that has bfloat16, which is what scripts ask it for."""


def force_cuda(num_devices: int) -> None:
    devices, randomness = _Devices(num_devices), DeviceRandomness(num_devices)
    _force_questions(devices)
    _force_accelerator(devices)
    for name, fake in {**_fakes(devices), **_memory(), **randomness.fakes()}.items():
        _put(torch.cuda, name, fake)
    for name, fake in (("Stream", Stream), ("Event", Event), ("ExternalStream", Stream)):
        setattr(torch.cuda, name, fake)
    torch.cuda.device = torch.cuda.device_of = devices.context()
    torch.cuda.StreamContext = torch.cuda.stream = StreamContext
    torch.cuda.manual_seed = torch.cuda.manual_seed_all = randomness.manual_seed
    for name in ("CUDAGraph", "graph"):
        setattr(torch.cuda, name, Graph)
    for owner, names in (
        (torch.cuda.nvtx, ("range_push", "range_pop", "range_start", "range_end", "mark")),
        (torch.cuda.profiler, ("start", "stop")),
    ):
        for name in names:
            setattr(owner, name, _nothing)
    _force_comm()
    _force_attention()
    randomness.listen()


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

    def context(self) -> type:
        """``torch.cuda.device``: torch asks whether objects are of this type."""
        devices = self

        class device:
            def __init__(self, device: Any) -> None:
                self._device = device

            def __enter__(self) -> None:
                self._before = devices.current
                if self._device is not None and not isinstance(self._device, torch.Tensor):
                    devices.choose(self._device)

            def __exit__(self, *_: object) -> None:
                devices.current = self._before

        return device


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
    _for_script(torch.cuda, "get_arch_list", lambda: ["sm_80"], list)
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

    idle = [
        "init",
        "synchronize",
        "set_stream",
        "ipc_collect",
        "set_sync_debug_mode",
        "set_per_process_memory_fraction",
        "caching_allocator_enable",
    ]
    zero = [
        "utilization",
        "temperature",
        "power_draw",
        "clock_rate",
        "memory_usage",
        "get_sync_debug_mode",
    ]
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
    current, peak = (
        ("memory_allocated", "memory_reserved", "memory_cached"),
        (
            "max_memory_allocated",
            "max_memory_reserved",
            "max_memory_cached",
        ),
    )
    idle = [
        "empty_cache",
        "reset_peak_memory_stats",
        "reset_max_memory_allocated",
        "reset_max_memory_cached",
        "reset_accumulated_memory_stats",
        "reset_peak_host_memory_stats",
        "empty_host_cache",
    ]
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

    def reduce_add(inputs: Any, *_: Any) -> Any:
        return torch.stack(tuple(inputs)).sum(0)

    def scatter(
        tensor: Any, devices: Any = None, chunk_sizes: Any = None, dim: int = 0, *_: Any, **__: Any
    ) -> tuple[Any, ...]:
        if chunk_sizes is not None:
            return torch.split(tensor, list(chunk_sizes), dim)
        return torch.chunk(tensor, len(devices), dim)

    def gather(tensors: Any, dim: int = 0, *_: Any, out: Any = None, **__: Any) -> Any:
        return torch.cat(tuple(tensors), dim, out=out)

    for fake in (broadcast, broadcast_coalesced, reduce_add, scatter, gather):
        _put(comm, fake.__name__, fake)


def _force_attention() -> None:
    """Kernels of attention that only GPUs have: plain mathematics is allowed besides."""

    def around(original: Any) -> Any:
        def sdpa_kernel(backends: Any, set_priority: bool = False) -> Any:
            wanted = [backends] if isinstance(backends, SDPBackend) else list(backends)
            return original([*dict.fromkeys((*wanted, SDPBackend.MATH))], set_priority)

        return sdpa_kernel

    replace(torch.nn.attention, "sdpa_kernel", around)


def _nothing(*_: Any, **__: Any) -> None:
    """What the CPU does not have, or need."""
