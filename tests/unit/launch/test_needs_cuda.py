"""Messages collected from torch 2.13, with and without CUDA, and from scripts."""

import pytest

from scaleproof.launch.needs_cuda import needs_cuda


def _traceback(source: str, error: str, prefix: str = "") -> str:
    lines = [
        "Traceback (most recent call last):",
        '  File "train.py", line 3, in <module>',
        f"    {source}",
        "    ^^^^^^^^^^^^^^^",
        error,
    ]
    return "".join(f"{prefix}{line}\n" for line in lines)


@pytest.mark.parametrize(
    "error",
    [
        "AssertionError: Torch not compiled with CUDA enabled",
        "RuntimeError: Cannot access accelerator device when none is available.",
        "AttributeError: module 'torch._C' has no attribute '_cuda_setDevice'",
        "RuntimeError: Tried to instantiate dummy base class Event",
        "RuntimeError: torch.cuda.Stream requires CUDA support",
        "RuntimeError: Cannot get CUDA generator without ATen_cuda library. PyTorch splits its",
        "TypeError: type torch.cuda.FloatTensor not available. Torch not compiled with CUDA",
        "RuntimeError: NVTX functions not installed. Are you sure you have a CUDA build?",
        "RuntimeError: pin_memory=True requires a CUDA or other accelerator backend; no pinned",
        "RuntimeError: Attempting to deserialize object on a CUDA device but torch.cuda.is_availa",
        "RuntimeError: Attempting to deserialize object on CUDA device 1 but torch.cuda.device_co",
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA",
        "RuntimeError: No CUDA GPUs are available",
        "torch.AcceleratorError: CUDA error: invalid device ordinal",
        "ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!",
        "RuntimeError: Distributed package doesn't have NCCL built in",
        "RuntimeError: No backend type associated with device type cuda",
        "ValueError: DistributedDataParallel device_ids and output_device arguments only work with "
        "single-device/multiple-device GPU modules or CPU modules, but got device_ids [0]",
        "ValueError: SyncBatchNorm expected input tensor to be on GPU or XPU or privateuseone",
        "ValueError: SyncBatchNorm layers only work with GPU modules",
        "lightning.fabric.utilities.exceptions.MisconfigurationException: No supported gpu backend "
        "found!",
    ],
)
def test_errors_of_torch(error: str) -> None:
    assert needs_cuda(_traceback("train()", error))
    assert needs_cuda(_traceback("train()", error, prefix="[rank1]: ") + "W1121 Sending SIGTERM\n")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("assert torch.cuda.is_available()", "AssertionError"),
        ("local = rank % torch.cuda.device_count()", "ZeroDivisionError: integer modulo by zero"),
        (
            "kind = torch.accelerator.current_accelerator().type",
            "AttributeError: 'NoneType' object has no attribute 'type'",
        ),
        ("assert dist.is_nccl_available()", "AssertionError"),
        ("check()", "RuntimeError: This script requires at least two GPUs"),
        ("check()", "SystemExit: CUDA is not available"),
    ],
)
def test_what_a_script_asks_for_itself(source: str, error: str) -> None:
    assert needs_cuda(_traceback(source, error))
    assert needs_cuda(_traceback(source, error, prefix="[rank0]: "))


@pytest.mark.parametrize(
    "message", ["CUDA is required to run this.", "No GPU found, exiting", "This needs a CUDA GPU"]
)
def test_a_script_that_ends_in_its_own_words(message: str) -> None:
    assert needs_cuda(f"Loading data\n{message}\n")


@pytest.mark.parametrize(
    "output",
    [
        "",
        _traceback(
            "loss.backward()", "RuntimeError: grad can be implicitly created only for scalar"
        ),
        _traceback("open(path)", "FileNotFoundError: [Errno 2] No such file: 'cuda.txt'"),
        _traceback("x.to('gpu')", "RuntimeError: Expected one of cpu, cuda, ipu device type"),
        _traceback("train()", "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        "UserWarning: GradScaler is enabled, but CUDA is not available.  Disabling.\n"
        + _traceback("train(", "ValueError: batch"),
        "No GPU found, using the CPU\nepoch 1\nepoch 2\n" + _traceback("f()", "KeyError: 'label'"),
        "loss 0.1\nusage: train.py [-h] --lr LR\ntrain.py: error: --lr is required\n",
    ],
)
def test_other_failures(output: str) -> None:
    assert not needs_cuda(output)
