"""Devices, tensors, modules, generators and checkpoints of a script that asks for CUDA.

``torch.device("cuda")`` stays what it is, so that a script takes the same branches as on a GPU; it
is read as the CPU wherever a tensor or a module is made or moved. Functions are replaced by name: a
mode of torch would hold in one thread only, and cost every operation.
"""

from typing import Any

import torch
from torch.jit import _builtins
from torch.nn.utils.rnn import PackedSequence
from torch.serialization import register_package
from torch.storage import TypedStorage, UntypedStorage
from torch.utils import _device
from torch.utils.data import DataLoader

from scaleproof.observe.forced import REAL_DEVICE, asked, called_by_script, is_cuda, on_cpu, replace

_MAKERS = [
    "arange",
    "as_tensor",
    "asarray",
    "bartlett_window",
    "blackman_window",
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_quantized",
    "empty_strided",
    "eye",
    "from_file",
    "full",
    "full_like",
    "hamming_window",
    "hann_window",
    "kaiser_window",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "range",
    "scalar_tensor",
    "sparse_bsc_tensor",
    "sparse_bsr_tensor",
    "sparse_compressed_tensor",
    "sparse_coo_tensor",
    "sparse_csc_tensor",
    "sparse_csr_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
    "zeros_like",
]
_TENSOR_MAKERS = [
    "new",
    "new_empty",
    "new_empty_strided",
    "new_full",
    "new_ones",
    "new_tensor",
    "new_zeros",
]
_TYPES = ["Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool"]
_MADE = "device='cuda'"
_BEFORE_CUDA = 15
"""Priority among torch's restorers of storages: the CPU's is 10, that of CUDA 20."""


def force_tensors() -> None:
    _device._device_constructors()  # remembered: it has to name the originals
    _force_device_type()
    _force_generators()
    for name in _MAKERS:
        _force_maker(torch, name)
    for name in ("fftfreq", "rfftfreq"):
        _force_maker(torch.fft, name)
    for name in _TENSOR_MAKERS:
        _force_maker(torch.Tensor, name)
    _force_moves()
    _force_types()
    _force_default_device()
    _force_storages()
    _force_loaders()


class _Named(type):
    """Of a class that stands for a type of torch that can't be subclassed: objects are the real
    type's, and it equals that type, as a key too."""

    real: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.make(*args, **kwargs)  # type: ignore[attr-defined]

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or issubclass(subclass, cls.real)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.real

    def __hash__(cls) -> int:
        return hash(cls.real)


def _named(real: type, make: Any) -> Any:
    names = {
        "real": real,
        "make": staticmethod(make),
        "__module__": "torch",
        "__doc__": real.__doc__,
    }
    return _Named(real.__name__, (), names)


def _force_device_type() -> None:
    def make(*args: Any, **kwargs: Any) -> torch.device:
        if args and isinstance(args[0], int) and not isinstance(args[0], bool):
            return REAL_DEVICE("cuda", max(args[0], 0))  # the current accelerator, of which is none
        return REAL_DEVICE(*args, **kwargs)

    torch.device = _named(REAL_DEVICE, make)


def _force_generators() -> None:
    real = torch.Generator

    def make(device: Any = "cpu") -> torch.Generator:
        return real(on_cpu(device, "torch.Generator(device='cuda')"))

    torch.Generator = _named(real, make)


def _force_maker(owner: Any, name: str) -> None:
    """A function that makes a tensor on ``device=``."""

    def around(original: Any) -> Any:
        def maker(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("device") is not None:
                kwargs["device"] = on_cpu(kwargs["device"], _MADE)
            if kwargs.get("pin_memory"):
                asked("pinned memory")
                kwargs["pin_memory"] = False
            return original(*args, **kwargs)

        if name != "as_tensor":
            return maker

        def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
            return original(data, dtype=dtype, device=on_cpu(device, _MADE))

        return as_tensor

    original = getattr(owner, name)
    replace(owner, name, around)
    operation = _builtins._find_builtin(original) if owner is not torch.Tensor else None
    if operation is not None:  # so that torch.jit.script knows it by its new name
        _builtins._register_builtin(getattr(owner, name), operation)


def _force_moves() -> None:
    def moving(original: Any) -> Any:
        def to(self: Any, *args: Any, **kwargs: Any) -> Any:
            names_device = bool(args) and isinstance(args[0], (str, REAL_DEVICE, int))
            if names_device:
                args = (on_cpu(args[0], ".to('cuda')"), *args[1:])
            elif kwargs.get("device") is not None:
                names_device = True
                kwargs["device"] = on_cpu(kwargs["device"], ".to('cuda')")
            moved = original(self, *args, **kwargs)
            is_copy_due = names_device and moved is self and isinstance(self, torch.Tensor)
            return _copied(moved) if is_copy_due and called_by_script() else moved

        return to

    for owner in (torch.Tensor, torch.nn.Module, PackedSequence):
        replace(owner, "to", moving)

    def to_cuda(_original: Any) -> Any:
        def cuda(
            self: torch.Tensor,
            device: Any = None,  # noqa: ARG001 - torch's signature
            non_blocking: bool = False,
            memory_format: torch.memory_format = torch.preserve_format,
        ) -> torch.Tensor:
            asked(".cuda()")
            moved = torch.Tensor.to(
                self, "cpu", non_blocking=non_blocking, memory_format=memory_format
            )
            return _copied(moved) if moved is self and called_by_script() else moved

        return cuda

    def to_host(original: Any) -> Any:
        def cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            moved = original(self, *args, **kwargs)
            return _copied(moved) if moved is self and called_by_script() else moved

        return cpu

    def pinned(_original: Any) -> Any:
        def pin_memory(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            asked("pinned memory")
            return self

        return pin_memory

    def recording(_original: Any) -> Any:
        def record_stream(self: torch.Tensor, stream: Any) -> None:
            pass

        return record_stream

    replace(torch.Tensor, "cuda", to_cuda)
    replace(torch.Tensor, "cpu", to_host)
    replace(torch.Tensor, "pin_memory", pinned)
    replace(torch.Tensor, "record_stream", recording)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of its own, as between host and device: else what a script changes in place on one
    side, a batch of the data or the kept best weights, would change on the other as well.

    Not of a tensor that needs gradients: a script that moves a leaf twice means the same leaf.
    """
    return tensor if tensor.requires_grad else tensor.clone()


def _force_types() -> None:
    for kind in _TYPES:
        setattr(torch.cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))

    def host_type(kind: Any) -> Any:
        if isinstance(kind, str) and kind.startswith("torch.cuda."):
            asked(kind)
            return kind.replace("torch.cuda.", "torch.", 1)
        return kind

    def typing(original: Any) -> Any:
        def type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: A001 - torch's name
            return original(self, host_type(dtype), *args, **kwargs)

        return type

    def defaulting(original: Any) -> Any:
        def set_default_tensor_type(t: Any) -> None:
            original(host_type(t))

        return set_default_tensor_type

    replace(torch.Tensor, "type", typing)
    replace(torch, "set_default_tensor_type", defaulting)


def _force_default_device() -> None:
    """``torch.set_default_device`` and ``with torch.device("cuda"):``."""

    def around(original: Any) -> Any:
        def __init__(self: Any, device: Any) -> None:
            original(self, on_cpu(device, "the default device 'cuda'"))

        return __init__

    replace(_device.DeviceContext, "__init__", around)

    def defaulting(original: Any) -> Any:
        def set_default_device(device: Any) -> None:
            original(on_cpu(device, "the default device 'cuda'"))

        return set_default_device

    replace(torch, "set_default_device", defaulting)


def _force_storages() -> None:
    """Storages of checkpoints: torch.load asks the restorers in the order of their priority."""

    def restore(storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return None
        asked("a checkpoint on 'cuda'")
        return storage

    register_package(_BEFORE_CUDA, lambda _storage: None, restore)

    def staying(_original: Any) -> Any:
        def cuda(self: Any, *_: Any, **__: Any) -> Any:
            asked(".cuda()")
            return self

        return cuda

    for storage in (UntypedStorage, TypedStorage):
        replace(storage, "cuda", staying)
        replace(storage, "pin_memory", staying)

    def loading(original: Any) -> Any:
        def load(*args: Any, **kwargs: Any) -> Any:
            if is_cuda(kwargs.get("map_location")):
                kwargs["map_location"] = "cpu"
            return original(*args, **kwargs)

        return load

    replace(torch.jit, "load", loading)


def _force_loaders() -> None:
    def around(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if self.pin_memory:
                asked("pinned memory")
                self.pin_memory, self.pin_memory_device = False, ""

        return __init__

    replace(DataLoader, "__init__", around)
