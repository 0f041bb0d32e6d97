"""Write ``faults.md`` from the corpus in ``tests/faults``: ``python docs/generate_faults.py``."""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("faults.md")
REPOSITORY = Path(__file__).parents[1]

sys.path.insert(0, str(REPOSITORY / "tests"))
from faults.corpus import BEYOND, FAULTS, SOUND  # noqa: E402
from faults.scripts import Planted, path_of  # noqa: E402

CLASSES = {
    "data": "Data: which samples, how often, with which random numbers",
    "sync": "Synchronisation: gradients that are not those of all ranks",
    "scaling": "Scaling and weighting: all ranks agree, and are all wrong",
    "clipping": "Clipping",
    "precision": "Precision",
    "state": "State: weights, buffers, copies",
    "schedule": "Schedules and decisions",
    "metrics": "Metrics",
    "resume": "Resuming",
}

_CLASS_OF_CHECK = {
    "batch-coupled-operation": "scaling",
    "buffer-drift": "state",
    "clipped-before-reduction": "clipping",
    "early-stop-differs": "schedule",
    "frozen-parameters": "state",
    "identical-augmentation": "data",
    "identical-dropout": "data",
    "metric-from-one-shard": "metrics",
    "missing-samples": "data",
    "misweighted-gradients": "scaling",
    "overlapping-samples": "data",
    "padded-evaluation": "metrics",
    "replica-drift": "state",
    "resume-repeats-samples": "resume",
    "same-order-every-epoch": "data",
    "schedule-drift": "schedule",
    "train-validation-overlap": "data",
    "uneven-batches": "data",
    "unsynced-gradients": "sync",
}
"""Of faults that don't name their class."""


def generate() -> str:
    """The page of the corpus: faults by class, then the sound scripts."""
    sections = [
        "# Faults\n\nGenerated from `tests/faults` by `docs/generate_faults.py`.\n\n"
        f"**{len(FAULTS)} faults**, each planted by a change of a few lines in a short training "
        "script of a published style, and each silent: the script ends well and its loss looks "
        f"normal. **{len(SOUND)} sound scripts**: those in which they were planted, variants that "
        "only look like faults, and further ones. Where the fault happened to others, the link "
        "leads there.\n\n"
        "`make corpus` runs `scaleproof check` on all of them, in processes of their own, on two "
        "ranks. It fails unless every fault is found by the check named here and by no other "
        "that blocks, with the words and the line that belong to it, and every sound script is "
        "found sound."
    ]
    for name, title in CLASSES.items():
        rows = [_row(fault) for fault in FAULTS if class_of(fault) == name]
        if rows:
            sections.append(f"## {title}\n\n" + _table(rows))
    still_open = BEYOND
    if still_open:
        sections.append(
            "## Beyond\n\nFaults that no check is sure to name, and sound scripts that are not "
            "told from faults; `make corpus` does not run them.\n\n"
            + _table([_row(fault) for fault in still_open])
        )
    sections.append("## Sound scripts\n\n" + _listed_sound())
    return "\n\n".join(sections) + "\n"


def class_of(fault: Planted) -> str:
    """The class that a fault names; otherwise the one its check is about."""
    name = fault.group or _CLASS_OF_CHECK.get(fault.check, "")
    if name not in CLASSES:
        raise ValueError(
            f"fault {fault.name!r} has class {name!r}; expected one of {', '.join(CLASSES)}"
        )
    return name


def address_of(link: str) -> str:
    """``owner/repository#12`` or ``owner/repository PR#12`` as an address on GitHub."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)( PR)?#(\d+)", link)
    if match is None:
        raise ValueError(f"{link!r} is no link: expected owner/repository#12 or ... PR#12")
    repository, is_pull, number = match.groups()
    return f"https://github.com/{repository}/{'pull' if is_pull else 'issues'}/{number}"


def _row(fault: Planted) -> str:
    check = f"[{fault.check}](checks.md#{fault.check})" if fault.check else ""
    links = ", ".join(f"[{link}]({address_of(link)})" for link in fault.links)
    mistake = fault.name.replace("_", " ")
    return f"| {mistake} | {_script(fault.script)} | {check} | {links} |"


def _table(rows: list[str]) -> str:
    return "\n".join(("| mistake | script | found by | happened in |", "|---|---|---|---|", *rows))


def _script(script: str) -> str:
    return f"[{script}](../{path_of(script).relative_to(REPOSITORY).as_posix()})"


def _listed_sound() -> str:
    unlike: dict[str, list[str]] = {sound.script: [] for sound in SOUND}
    for sound in SOUND:
        if sound.edits or sound.resumes:
            unlike[sound.script].append(sound.name.replace("_", " "))
    lines = [
        f"- {_script(script)}" + (f"; also: {', '.join(variants)}" if variants else "")
        for script, variants in unlike.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(generate())
