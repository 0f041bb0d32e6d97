"""The observer of this process, and how a function of torch is replaced to tell it something."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from scaleproof.observe.observer import Observer

F = TypeVar("F", bound=Callable[..., Any])

observer: Observer | None = None
"""None until this process makes an optimizer; then everything that is patched tells it."""

roots: dict[int, Any] = {}
"""Its roots, ``Observer.roots``: looked at in every call of every module."""


def where_called() -> str:
    """The innermost line outside of libraries, ``train.py:37``; empty when there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_OURS, _TORCH, "<")) and _LIBRARIES not in name:
            return f"{os.path.basename(name)}:{frame.f_lineno}"  # noqa: PTH119 - a string, hot
        frame = frame.f_back
    return ""


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))  # noqa: PTH120, PTH100
_LIBRARIES = f"{os.sep}site-packages{os.sep}"


def replace(owner: Any, name: str, around: Callable[[F], F]) -> None:
    """Put ``around(original)`` where ``owner`` has ``name``."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(around(original)))
