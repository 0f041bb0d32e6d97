"""Did a script fail because it asks for CUDA or NCCL? Then ``--force-cpu`` can be offered."""

import itertools
import re

_MESSAGES = (
    # torch without CUDA
    "Torch not compiled with CUDA enabled",
    "Cannot access accelerator device when none is available",
    "module 'torch._C' has no attribute '_cuda_",
    "module 'torch._C' has no attribute '_nccl_",
    "Tried to instantiate dummy base class",
    "torch.cuda.Stream requires CUDA support",
    "CUDA generator without ATen_cuda library",
    "initialize CUDA without ATen_cuda library",
    "not available. Torch not compiled with CUDA",
    "NVTX functions not installed",
    "pin_memory=True requires a CUDA",
    "Attempting to deserialize object on a CUDA device",
    "SyncBatchNorm expected input tensor to be on GPU",
    "SyncBatchNorm layers only work with GPU modules",
    # torch with CUDA, on a machine without a GPU or with too few
    "Found no NVIDIA driver",
    "The NVIDIA driver on your system is too old",
    "No CUDA GPUs are available",
    "no CUDA-capable device is detected",
    "Attempting to deserialize object on CUDA device",
    "invalid device ordinal",
    "Duplicate GPU detected",
    # process groups
    "Distributed package doesn't have NCCL built in",
    "ProcessGroupNCCL is only supported with GPUs",
    "No backend type associated with device type cuda",
    "device_ids and output_device arguments only work with single-device/multiple-device GPU",
    # libraries
    "No supported gpu backend found",
    "can not run on your system since the accelerator is not available",
    "fp16 mixed precision requires a GPU",
)
"""Said by errors only, not by warnings."""

_RANK_PREFIX = re.compile(r"^\[rank\d+\]:[ ]?")
_ERROR_LINE = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b")
_MARKERS = re.compile(r"^[\s^~]*$")
_ASKS_FOR_GPU = re.compile(r"\btorch\.(?:cuda|accelerator)\.|\bis_nccl_available\(")
_OWN_WORDS = re.compile(
    r"\b(?:cuda|gpus?|nccl)\b[^.]{0,30}"
    r"\b(?:not (?:available|found|detected)|required|needed|unavailable)\b"
    r"|\b(?:requires?|needs?) (?:\w+ ){0,3}(?:cuda|gpus?|nccl)\b"
    r"|\bno (?:\w+ )?(?:cuda|gpus?)\b",
    re.IGNORECASE,
)
_NUM_LAST_LINES = 3
"""In which a script that ends by itself says why, in its own words."""


def needs_cuda(output: str) -> bool:
    """Whether ``output``, the last lines of a script that failed, says that it lacks CUDA or NCCL.

    A device that does not exist ("gpu") is a slip of the script, which no option mends.
    """
    if any(message in output for message in _MESSAGES):
        return True
    lines = [_RANK_PREFIX.sub("", line) for line in output.splitlines()]
    lines = [line for line in lines if not _MARKERS.match(line)]
    for before, line in itertools.pairwise(lines):
        if _ERROR_LINE.match(line) and (_ASKS_FOR_GPU.search(before) or _says_so(line)):
            return True
    return any(_says_so(line) for line in lines[-_NUM_LAST_LINES:])


def _says_so(line: str) -> bool:
    return "warn" not in line.lower() and _OWN_WORDS.search(line) is not None
