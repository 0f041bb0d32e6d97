"""``Trainer(accelerator="gpu")`` and ``Fabric(accelerator="cuda")``: Lightning asks no device, but
picks a class of its own by this name."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, final

from scaleproof.observe.forced import asked, replace

_CONNECTORS = {
    "lightning.pytorch.trainer.connectors.accelerator_connector": "_AcceleratorConnector",
    "pytorch_lightning.trainer.connectors.accelerator_connector": "_AcceleratorConnector",
    "lightning.fabric.connector": "_Connector",
    "lightning_fabric.connector": "_Connector",
}
_PRECISIONS = {
    16: "bf16-mixed",
    "16": "bf16-mixed",
    "16-mixed": "bf16-mixed",
    "16-true": "bf16-true",
}


def force_lightning(num_devices: int) -> None:
    """Patch it when it is imported, if it ever is."""
    sys.meta_path.insert(0, _AfterImport(num_devices))


@final
class _AfterImport(MetaPathFinder):
    """Lets the real loader run, then patches."""

    def __init__(self, num_devices: int) -> None:
        self._num_devices = num_devices
        self._is_looking = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol of finders
        target: ModuleType | None = None,  # noqa: ARG002
        /,
    ) -> ModuleSpec | None:
        name = _CONNECTORS.get(fullname)
        if name is None or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_looking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            _patch(getattr(module, name), self._num_devices)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


def _patch(connector: type, num_devices: int) -> None:
    def around(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("accelerator") in ("gpu", "cuda"):
                asked(f"accelerator={kwargs['accelerator']!r} of Lightning")
                kwargs["accelerator"] = "cpu"
                kwargs["devices"] = _num_wanted(kwargs.get("devices", "auto"), num_devices)
                if kwargs.get("precision") in _PRECISIONS:
                    asked("float16 autocast, done in bfloat16")
                    kwargs["precision"] = _PRECISIONS[kwargs["precision"]]
            original(self, *args, **kwargs)

        return __init__

    replace(connector, "__init__", around)


def _num_wanted(devices: Any, num_devices: int) -> int:
    """Lightning's ``devices``: a number, a list of indices, either as text; -1 and auto are all."""
    if isinstance(devices, str) and "," in devices:
        devices = [each for each in devices.split(",") if each.strip()]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return num_devices if str(devices) in ("auto", "-1") else int(devices)
