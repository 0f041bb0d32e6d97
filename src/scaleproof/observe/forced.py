"""What the parts of ``--force-cpu`` share: which devices are meant, what was asked for, by whom."""

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

REAL_DEVICE = torch.device
"""The type itself; ``torch.device`` is replaced by something that is called alike."""

_CPU = torch.device("cpu")
_asked: dict[str, None] = {}
_lock = threading.Lock()
_FOLDERS = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep  # noqa: PTH100, PTH120 - strings, hot
    for path in (torch.__file__, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
)
_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def asked(what: str) -> None:
    """The script asked for this and got what the CPU has instead."""
    if what not in _asked:
        with _lock:
            _asked[what] = None


def what_was_asked() -> tuple[str, ...]:
    return tuple(_asked)


def is_cuda(device: Any) -> bool:
    """Does a script that writes ``device`` where a device is expected mean a GPU?"""
    if isinstance(device, REAL_DEVICE):
        # "cpu:1" is what becomes of torch.device(mesh.device_type, rank).
        return device.type == "cuda" or (device.type == "cpu" and bool(device.index))
    if isinstance(device, str):
        return device.split(":", 1)[0] == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def on_cpu(device: Any, where: str) -> Any:
    """``device``, or the CPU if a GPU is meant. ``where``: what to say was asked for then."""
    if device is None or not is_cuda(device):
        return device
    asked(where)
    return _CPU


def called_by_script() -> bool:
    """Whether the caller of our caller is the script, not torch, a library or this package.

    Libraries are told the truth: they know how to do without a GPU.
    """
    name = sys._getframe(2).f_code.co_filename
    return not name.startswith((*_FOLDERS, "<frozen")) and not any(
        folder in name for folder in _LIBRARIES
    )


def called_by_torch() -> bool:
    """Whether the caller of our caller is torch itself."""
    return sys._getframe(2).f_code.co_filename.startswith(_FOLDERS[0])


def replace(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    """Put ``around(original)`` where ``owner`` has ``name``; nothing where it has not."""
    original = getattr(owner, name, None)
    if original is not None:
        setattr(owner, name, functools.wraps(original)(around(original)))
