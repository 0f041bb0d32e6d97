"""What could not be observed of a script, and why: so that nobody takes it for "nothing wrong".

The ranks say so in their last record; a process that has no rank, or none yet, in a file of its
own, line by line.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

import msgspec

from scaleproof.errors import EvidenceError
from scaleproof.evidence.observations import EndRecord, Missing, ProcessRecord
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.study import Run
from scaleproof.evidence.writer import write_json

_DECODER = msgspec.json.Decoder(Missing)
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@final
class Unobserved(msgspec.Struct, frozen=True, kw_only=True):
    """Something that some ranks of a run could not record. ``what``: the tag of the records."""

    run: str
    ranks: tuple[int, ...]
    what: str
    why: str


def unobserved_by_ranks(run: Run) -> tuple[Unobserved, ...]:
    """What the ranks of a script's run say they could not record; the same said by several ranks
    is one entry. A rank without its last record could not say: that is an entry too."""
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank in run.ranks:
        ends = rank.of(EndRecord)
        missing = [(part.what, part.why) for end in ends for part in end.missing]
        if rank.of(ProcessRecord) and not ends:
            missing.append(("end", "its last record is missing: it was cut off"))
        for key in dict.fromkeys(missing):
            ranks.setdefault(key, []).append(rank.rank)
    return tuple(
        Unobserved(run=run.name, ranks=tuple(of_ranks), what=what, why=why)
        for (what, why), of_ranks in ranks.items()
    )


@final
class CommandEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How an observed command itself ended. ``exit_code``: as a shell says it."""

    exit_code: int


def write_command_end(paths: RunPaths, exit_code: int) -> None:
    """Say how the command ended: nobody else can when none of its processes trained."""
    write_json(paths.command_end, CommandEnd(exit_code=exit_code))


def read_exit_code(paths: RunPaths) -> int | None:
    """The exit code of an observed command; None when it was not written down.

    Raises ``EvidenceError`` for a file that can't be read.
    """
    path = paths.command_end
    if not path.exists():
        return None
    return read_json(path, CommandEnd, what="how the command ended").exit_code


def append_trouble(path: Path, trouble: Missing) -> None:
    """Add a line to a process's own file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(trouble) + b"\n")


def read_troubles(paths: RunPaths) -> tuple[Missing, ...]:
    """Why processes of a run could not be observed, each reason once, in the order of their ids.

    A torn last line is what a killed process leaves and is left out; any other line that is not
    an entry is one, and says so. Raises ``EvidenceError`` for a file that can't be read.
    """
    found: dict[Missing, None] = {}
    for pid in _processes(paths, paths.trouble):
        found.update(dict.fromkeys(_read(paths.trouble(pid))))
    return tuple(found)


def processes_seen(paths: RunPaths) -> tuple[int, ...]:
    """Ids of the processes of a run that trained or joined a process group."""
    return _processes(paths, paths.pulse)


def processes_with_torch(paths: RunPaths) -> tuple[int, ...]:
    """Ids of the processes of a run that were seen to import torch, whether they trained or not."""
    return tuple(sorted({*_processes(paths, paths.stack), *processes_seen(paths)}))


def _processes(paths: RunPaths, path_of: Callable[[int], Path]) -> tuple[int, ...]:
    if not paths.processes.is_dir():
        return ()
    stems = [entry.name.partition(".")[0] for entry in paths.processes.iterdir()]
    pids = {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}
    return tuple(sorted(pid for pid in pids if path_of(pid).exists()))


def _read(path: Path) -> Iterator[Missing]:
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EvidenceError(
            f"can't read {path} (why a process could not be observed): "
            f"{error.strerror or error}. Make it a file that can be read, or delete it."
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            yield _DECODER.decode(line)
        except _NOT_JSON:
            yield Missing(what="process", why=f"line {number} of {path.name} can't be read")
    try:
        yield _DECODER.decode(last)  # whole, but for its line feed
    except _NOT_JSON:
        return
