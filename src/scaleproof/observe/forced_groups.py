"""NCCL groups, device meshes and data-parallel wrappers of a script that asks for CUDA: gloo."""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel

from scaleproof.observe.forced import asked, called_by_script, is_cuda, on_cpu, replace
from scaleproof.observe.forced_batch_norm import force_sync_batch_norm

_BACKEND_POSITIONS = {
    "init_process_group": 0,
    "new_group": 2,
    "new_subgroups": 3,
    "new_subgroups_by_enumeration": 2,
}
_OBJECT_FUNCTIONS = ("broadcast_object_list", "send_object_list", "recv_object_list")
_GPU_BACKENDS = ("nccl", "cuda:")


def force_groups() -> None:
    if not dist.is_available():
        return
    _force_wrappers()
    force_sync_batch_norm()
    from torch.distributed import device_mesh
    from torch.distributed import distributed_c10d as c10d

    names = [*_BACKEND_POSITIONS, *_OBJECT_FUNCTIONS, "is_nccl_available", "is_backend_available"]
    before = {name: getattr(c10d, name) for name in names}
    for name, position in _BACKEND_POSITIONS.items():
        _force_backend(c10d, name, position)
    for name in _OBJECT_FUNCTIONS:
        _force_object_device(c10d, name)
    _force_answers(c10d)
    _force_meshes(device_mesh)
    if not hasattr(c10d, "ProcessGroupNCCL"):
        c10d.ProcessGroupNCCL = dist.ProcessGroupNCCL = _ProcessGroupNCCL  # type: ignore[attr-defined]
    _rename(before, {name: getattr(c10d, name) for name in names})


def _rename(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Modules of torch that have imported the originals by name get what replaces them."""
    modules = [module for name, module in sys.modules.items() if name.startswith("torch.dist")]
    for module in modules:
        for name, original in before.items():
            if vars(module).get(name) is original:
                setattr(module, name, after[name])


def _force_wrappers() -> None:
    def distributing(original: Any) -> Any:
        def __init__(
            self: Any,
            module: torch.nn.Module,
            device_ids: Any = None,
            output_device: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            if device_ids is not None or output_device is not None:
                asked("device_ids of DistributedDataParallel")
            original(self, module, None, None, *args, **kwargs)

        return __init__

    def spreading(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            asked("DataParallel over several GPUs")
            original(self, *args, **kwargs)

        return __init__

    def allowing(_original: Any) -> Any:
        def _passing_sync_batchnorm_handle(self: Any, module: torch.nn.Module) -> None:
            """torch refuses SyncBatchNorm on the CPU here."""

        return _passing_sync_batchnorm_handle

    replace(DistributedDataParallel, "__init__", distributing)
    replace(DistributedDataParallel, "_passing_sync_batchnorm_handle", allowing)
    replace(DataParallel, "__init__", spreading)


def _force_backend(owner: Any, name: str, position: int) -> None:
    def around(original: Any) -> Any:
        def make_group(*args: Any, **kwargs: Any) -> Any:
            given = args[position] if len(args) > position else kwargs.get("backend")
            if isinstance(given, str) and any(each in given.lower() for each in _GPU_BACKENDS):
                asked("the backend nccl")
                kwargs["pg_options"] = None  # NCCL's
                if len(args) > position:
                    args = (*args[:position], "gloo", *args[position + 1 :])
                else:
                    kwargs["backend"] = "gloo"
            if kwargs.get("device_id") is not None and is_cuda(kwargs["device_id"]):
                asked(f"device_id of {name}")
                kwargs["device_id"] = None
            return original(*args, **kwargs)

        return make_group

    replace(owner, name, around)


def _force_object_device(owner: Any, name: str) -> None:
    where = f"device of {name}"

    def around(original: Any) -> Any:
        def send_objects(*args: Any, **kwargs: Any) -> Any:
            mapped = [
                on_cpu(each, where) if isinstance(each, torch.device) else each for each in args
            ]
            if kwargs.get("device") is not None:
                kwargs["device"] = on_cpu(kwargs["device"], where)
            return original(*mapped, **kwargs)

        return send_objects

    replace(owner, name, around)


def _force_answers(c10d: Any) -> None:
    def having(original: Any) -> Any:
        def is_nccl_available() -> bool:
            return called_by_script() or original()

        return is_nccl_available

    def knowing(original: Any) -> Any:
        def is_backend_available(backend: str) -> bool:
            return (backend.lower() == "nccl" and called_by_script()) or original(backend)

        return is_backend_available

    replace(c10d, "is_nccl_available", having)
    replace(c10d, "is_backend_available", knowing)


def _force_meshes(device_mesh: Any) -> None:
    where = "a device mesh of 'cuda'"

    def making(original: Any) -> Any:
        def __init__(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
            original(self, _kind(device_type, where), *args, **kwargs)

        return __init__

    replace(device_mesh.DeviceMesh, "__init__", making)

    def from_group(original: Any) -> Any:
        def mapped(group: Any, device_type: str, *args: Any, **kwargs: Any) -> Any:
            return original(group, _kind(device_type, where), *args, **kwargs)

        return mapped

    original = device_mesh.DeviceMesh.from_group
    device_mesh.DeviceMesh.from_group = staticmethod(from_group(original))


def _kind(device_type: str, where: str) -> str:
    """``device_type``, or that of the CPU."""
    mapped = on_cpu(device_type, where)
    return mapped if isinstance(mapped, str) else mapped.type


class _ProcessGroupNCCL:
    """Where torch was built without NCCL, scripts still make its options."""

    class Options:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.config = _Settings()


class _Settings:
    """Takes any attribute."""
