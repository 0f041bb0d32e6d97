"""``--force-cpu``: a script with hard-coded CUDA or NCCL runs on the CPU unchanged, and it is said.

What stays different: ``tensor.is_cuda`` is False and ``tensor.device`` the CPU's, ``DataParallel``
runs on one device, float16 autocast is bfloat16, captured CUDA graphs are refused, and kernels
written for CUDA (triton, extensions) fail as they would without this.
"""

from typing import Any

import torch
from torch.amp import autocast_mode, grad_scaler

from scaleproof.observe.forced import asked, is_cuda, replace, what_was_asked
from scaleproof.observe.forced_cuda import force_cuda
from scaleproof.observe.forced_groups import force_groups
from scaleproof.observe.forced_lightning import force_lightning
from scaleproof.observe.forced_tensors import force_tensors

_is_forced = False


def force_cpu(num_devices: int) -> None:
    """Map CUDA and NCCL to the CPU and gloo in this process. To be called when torch has been
    imported, before anything takes its functions from it. ``num_devices``: GPUs to believe in."""
    global _is_forced
    if _is_forced:
        return
    _is_forced = True
    force_groups()
    force_lightning(num_devices)
    force_cuda(num_devices)
    _force_precision()
    force_tensors()


def what_was_mapped() -> tuple[str, ...]:
    """What the script asked for and got on the CPU instead, each once, in the order it came up."""
    return what_was_asked()


def _force_precision() -> None:
    def casting(original: Any) -> Any:
        def __init__(
            self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any
        ) -> None:
            if is_cuda(device_type):
                device_type = "cpu"
                asked("autocast on 'cuda'")
                if dtype == torch.float16:
                    asked("float16 autocast, done in bfloat16")
                    dtype = torch.bfloat16
            original(self, device_type, dtype, *args, **kwargs)

        return __init__

    def scaling(original: Any) -> Any:
        def __init__(self: Any, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
            if is_cuda(device):
                asked("GradScaler on 'cuda'")
                device = "cpu"
            original(self, device, *args, **kwargs)

        return __init__

    replace(autocast_mode.autocast, "__init__", casting)
    replace(grad_scaler.GradScaler, "__init__", scaling)
    for name in ("custom_fwd", "custom_bwd"):
        replace(autocast_mode, name, _on_cpu_type)
        setattr(torch.amp, name, getattr(autocast_mode, name))


def _on_cpu_type(original: Any) -> Any:
    def decorator(*args: Any, **kwargs: Any) -> Any:
        if is_cuda(kwargs.get("device_type")):
            kwargs["device_type"] = "cpu"
        return original(*args, **kwargs)

    return decorator
