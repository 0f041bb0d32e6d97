"""How a script wants to be started: by torchrun, one process per device, or alone, starting its
own processes."""

import re
from typing import Literal

Launcher = Literal["auto", "torchrun", "python"]

_STARTS_PROCESSES = re.compile(
    r"""
    \b(?:mp|multiprocessing)\.(?:spawn|start_processes|Process|get_context)\b
    | \bfrom\ (?:torch\.)?multiprocessing\b.*\bimport\b.*\b(?:Process|spawn|start_processes)\b
    | \bnotebook_launcher\b | \bdebug_launcher\b
    """,
    re.VERBOSE,
)
_TRAINER = re.compile(r"\b(?:Trainer|Fabric)\([^()]*\bdevices\s*=\s*(?!1\b)[^()]*\)", re.DOTALL)
_LIGHTNING = re.compile(r"^\s*(?:import|from)\s+(?:pytorch_)?lightning", re.MULTILINE)
_DATA_PARALLEL = re.compile(r"(?<!Distributed)\bDataParallel\(")


def launcher_of(source: str) -> Literal["torchrun", "python"]:
    """Guessed from the script's text: ``python`` when it starts its processes itself (with
    multiprocessing, or through Lightning's own launcher) or runs its devices from one process."""
    if _STARTS_PROCESSES.search(source):
        return "python"
    if _LIGHTNING.search(source) and _TRAINER.search(source):
        return "python"
    if _DATA_PARALLEL.search(source) and "init_process_group" not in source:
        return "python"
    return "torchrun"
