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
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

_RANK_RECORDS = re.compile(r"rank-(\d{5})\.(?:jsonl|outcome\.json|heartbeat)")


@final
@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run."""

    root: Path

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
