"""Which kind of device this machine has, without the seconds that importing torch takes where the
answer is plain."""

import sys
from pathlib import Path
from typing import Literal

_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Of NVIDIA's driver: on Linux, and inside Windows."""


def device_kind_here() -> Literal["cpu", "cuda"]:
    if sys.platform == "linux" and not any(path.exists() for path in _DRIVERS):
        return "cpu"
    from scaleproof.strategies.devices import default_device_kind

    return default_device_kind()
