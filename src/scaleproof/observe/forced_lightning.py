"""``Trainer(accelerator="gpu")`` and ``Fabric(accelerator="cuda")``: Lightning asks no device, but
picks a class of its own by this name."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from scaleproof.observe.forced import asked, replace
from scaleproof.observe.libraries import when_imported

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

    def patch(module: ModuleType) -> None:
        _patch(getattr(module, _CONNECTORS[module.__name__]), num_devices)

    for name in _CONNECTORS:
        when_imported(name, patch)


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
