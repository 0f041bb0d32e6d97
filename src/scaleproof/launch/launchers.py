"""How a script wants to be started: by torchrun, one process per device, or alone, starting its
own processes."""

import ast
from collections.abc import Iterator
from typing import Literal

Launcher = Literal["auto", "torchrun", "python"]

_STARTERS = {"spawn", "start_processes", "Process", "get_context"}
"""Of ``multiprocessing`` and ``torch.multiprocessing``."""

_VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK")

_LAUNCHERS = {"notebook_launcher", "debug_launcher"}


def launcher_of(source: str) -> Literal["torchrun", "python"]:
    """Guessed from the script's code: ``python`` when it starts its processes itself (with
    multiprocessing, or through Lightning's own launcher) or runs its devices from one process.

    A text that is no Python is left to torchrun, and Python says what is wrong with it.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "torchrun"
    modules = _modules_by_name(tree)
    calls = [_Call(node, modules) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if any(call.starts_processes for call in calls):
        return "python"
    is_lightning = any(name.partition(".")[0] in _LIGHTNING for name in modules.values())
    knows_torchrun = any(
        isinstance(node, ast.Constant) and node.value in _VARIABLES for node in ast.walk(tree)
    )
    if is_lightning and any(call.drives_devices(knows_torchrun) for call in calls):
        return "python"
    names = {call.name for call in calls}
    is_distributed = any(
        "init_process_group" in (getattr(node, "attr", ""), getattr(node, "id", ""))
        for node in ast.walk(tree)
    )
    return "python" if "DataParallel" in names and not is_distributed else "torchrun"


_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


class _Call:
    """A call: the last name of what is called, and where that comes from."""

    def __init__(self, node: ast.Call, modules: dict[str, str]) -> None:
        path = list(_path(node.func))
        self.name = path[-1] if path else ""
        origin = modules.get(path[0], path[0]) if path else ""
        self._origin = ".".join([origin, *path[1:]])
        self._node = node

    @property
    def starts_processes(self) -> bool:
        module, _, name = self._origin.rpartition(".")
        is_ours = module.endswith("multiprocessing") or module in ("mp", "torch.mp")
        return (is_ours and name in _STARTERS) or self.name in _LAUNCHERS

    def drives_devices(self, knows_torchrun: bool) -> bool:
        """A Trainer or Fabric of Lightning that was told of several devices. A number that is no
        constant is torchrun's, where the script knows torchrun's variables."""
        devices = [keyword.value for keyword in self._node.keywords if keyword.arg == "devices"]
        if self.name not in ("Trainer", "Fabric") or not devices:
            return False
        if isinstance(devices[0], ast.Constant):
            return devices[0].value not in (1, "1")
        return not knows_torchrun


def _path(node: ast.expr) -> Iterator[str]:
    """``torch.multiprocessing.spawn`` as its three names."""
    if isinstance(node, ast.Attribute):
        yield from _path(node.value)
        yield node.attr
    elif isinstance(node, ast.Name):
        yield node.id


def _modules_by_name(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
    return names
