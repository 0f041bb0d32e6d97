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
from scaleproof.evidence.study import Run

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
    """Ids of the processes of a run that were observed at all, whether they trained or not."""
    return _processes(paths, paths.pulse)


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
