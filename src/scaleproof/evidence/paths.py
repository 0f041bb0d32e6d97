"""The only place that knows a file name inside a study.

::

    <study>/study.json                  what was asked
    <study>/report.html                 what it came to
    <study>/<arm>-seed<k>/              one run
        request.json                    what its processes were told to do
        manifest.json                   what this run is
        rank-00000.jsonl                append-only records
        rank-00000/                     arrays that records point to
        rank-00000.outcome.json         how the rank ended
        rank-00000.heartbeat            where the rank is now
        turn                            how many epochs the run may begin
        logs/                           what the processes wrote to stdout and stderr

A run of somebody's own script has, besides::

        processes/1234.pulse            what the process is doing now
        processes/1234.workers.jsonl    what fetching its items drew from random generators
        processes/1234.stack            its Python stacks, when they were asked for
        processes/1234.ask              somebody asks for its collectives ...
        processes/1234.collectives      ... and its answer
        processes/1234.trouble.jsonl    why something could not be observed
        command.json                    how the command ended
        hang.json                       who waited for whom, when it had to be ended

A run that was checked has, besides::

        replays/union/                  a run of one process fed what all ranks were fed
            replay.json                 how far it came, and why not further
        material/                       batches and weights to replay with, until it is done
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

_RANK_RECORDS = re.compile(r"rank-(\d{5})\.(?:jsonl|outcome\.json|heartbeat)")


_REPLAYS = "replays"


@final
@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run."""

    root: Path

    @property
    def name(self) -> str:
        """``<arm>-seed<k>``; a replay has that of the run it is of."""
        is_replay = self.root.parent.name == _REPLAYS
        return (self.root.parent.parent if is_replay else self.root).name

    @property
    def request(self) -> Path:
        return self.root / "request.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def turn(self) -> Path:
        return self.root / "turn"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def records(self, rank: int) -> Path:
        return self.root / f"rank-{rank:05d}.jsonl"

    def arrays(self, rank: int) -> Path:
        return self.root / f"rank-{rank:05d}"

    def outcome(self, rank: int) -> Path:
        return self.root / f"rank-{rank:05d}.outcome.json"

    def heartbeat(self, rank: int) -> Path:
        return self.root / f"rank-{rank:05d}.heartbeat"

    @property
    def hang(self) -> Path:
        return self.root / "hang.json"

    @property
    def command_end(self) -> Path:
        return self.root / "command.json"

    @property
    def processes(self) -> Path:
        return self.root / "processes"

    def pulse(self, pid: int) -> Path:
        return self.processes / f"{pid}.pulse"

    def workers(self, pid: int) -> Path:
        return self.processes / f"{pid}.workers.jsonl"

    def stack(self, pid: int) -> Path:
        return self.processes / f"{pid}.stack"

    def ask(self, pid: int) -> Path:
        return self.processes / f"{pid}.ask"

    def collectives(self, pid: int) -> Path:
        return self.processes / f"{pid}.collectives"

    def trouble(self, pid: int) -> Path:
        return self.processes / f"{pid}.trouble.jsonl"

    def replay(self, name: str) -> "RunPaths":
        return RunPaths(self.root / _REPLAYS / name)

    @property
    def replay_end(self) -> Path:
        return self.root / "replay.json"

    @property
    def material(self) -> Path:
        return self.root / "material"

    def ranks_seen(self) -> tuple[int, ...]:
        """Ranks that left any file, in order."""
        if not self.root.is_dir():
            return ()
        matches = (_RANK_RECORDS.fullmatch(entry.name) for entry in self.root.iterdir())
        return tuple(sorted({int(match[1]) for match in matches if match}))


@final
@dataclass(frozen=True, slots=True)
class StudyPaths:
    """Paths of one study."""

    root: Path

    @property
    def study(self) -> Path:
        return self.root / "study.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def run(self, arm: str, seed: int) -> RunPaths:
        return RunPaths(self.root / f"{arm}-seed{seed}")
