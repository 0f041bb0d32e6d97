"""Commands to type next, made from the one that was typed."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath

from scaleproof.evidence.observations import ProcessRecord
from scaleproof.evidence.study import Study

_OUT = "--out"


def again(study: Study) -> str:
    """The study's command, without ``--out``: that folder is taken now."""
    ours, rest = _split(study.request.command)
    kept: list[str] = []
    is_value = False
    for word in ours:
        if is_value or word == _OUT:
            is_value = not is_value
        elif not word.startswith(f"{_OUT}="):
            kept.append(word)
    return shlex.join([*kept, *rest])


def comparison(study: Study) -> str:
    """The command that compares the observed one with one device, as far as it can be told."""
    rest = _split(study.request.command)[1]
    asked = study.request.check
    if asked is not None:
        devices = f"1,{asked.num_devices}"
        return shlex.join(
            ["scaleproof", "compare", study.request.target, "--devices", devices, *rest]
        )
    observed = rest[1:] if rest[:1] == ("--",) else rest
    processes = [
        process
        for run in study.runs_of(study.candidate)
        for rank in run.ranks
        for process in rank.of(ProcessRecord)
    ]
    if not observed or not processes or not processes[0].script:
        return "scaleproof compare SCRIPT --devices 1,N"
    first = processes[0]
    script = first.script if first.num_ranks == 1 else _script_of_torchrun(observed, first.script)
    if not script:
        return "scaleproof compare, with --baseline (the command on one device) and --candidate"
    devices = f"1,{max(first.num_ranks, 2)}"
    arguments = ["--", *first.arguments] if first.arguments else []
    return shlex.join(["scaleproof", "compare", script, "--devices", devices, *arguments])


def _script_of_torchrun(observed: Sequence[str], script: str) -> str:
    """The script as it was typed; empty when torchrun did not start it: how one process of it is
    started is then not known."""
    is_torchrun = any(PurePath(word).name == "torchrun" for word in observed) or (
        "torch.distributed.run" in observed
    )
    name = PurePath(script).name
    typed = (word for word in observed if PurePath(word).name == name)
    return next(typed, "") if is_torchrun else ""


def _split(command: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words for scaleproof, and those of the script or command it runs."""
    words = tuple(command)
    end = words.index("--") if "--" in words else len(words)
    if words[1:2] == ("observe",):  # its options come first, and each takes a value
        first = 2
        while first < end and words[first].startswith("-"):
            first += 1 if "=" in words[first] else 2
        end = min(first, end)
    return words[:end], words[end:]
