"""Stands in for the running of observed commands: leaves evidence as if they had run."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from observed import FakeScript, build_observed
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import EVALUATION_TABLE, EvaluationRecord
from scaleproof.evidence.writer import RankWriter


class FakeRuns:
    """Instead of running a command: leaves the evidence of ``scripts``, by the arm's name."""

    def __init__(self, made: Path, **scripts: FakeScript) -> None:
        self.made, self.scripts = made, {name.replace("_", "-"): s for name, s in scripts.items()}
        self.commands: list[tuple[str, list[str]]] = []
        self.pins: list[bool] = []
        self.exit_code = 0
        self.then: Callable[[RunPaths], None] = lambda paths: None

    def __call__(
        self, paths: RunPaths, argv: Sequence[str], /, *, pin: bool = False, **_: Any
    ) -> int:
        arm, seed = paths.root.name.rsplit("-seed", 1)
        self.commands.append((paths.root.name, list(argv)))
        self.pins.append(pin)
        if arm in self.scripts:
            study = build_observed(self.made / paths.root.name, self.scripts[arm])
            run = study.paths.run("observed", 0)
            shutil.copytree(run.root, paths.root, dirs_exist_ok=True)
            if paths.manifest.exists():
                manifest = json.loads(paths.manifest.read_text())
                paths.manifest.write_text(json.dumps({**manifest, "arm": arm, "seed": int(seed)}))
        self.then(paths)
        return self.exit_code


def predicting(share_right: float) -> Callable[[int, RankWriter], None]:
    """One evaluation at the end, by rank 0, of 2000 samples in two classes."""

    def write(rank: int, writer: RankWriter) -> None:
        table = np.zeros(2000 if rank == 0 else 0, EVALUATION_TABLE)
        table["sample_id"] = np.arange(len(table))
        table["target"] = table["prediction"] = table["sample_id"] % 2
        wrong = table["sample_id"] >= share_right * len(table)
        table["prediction"][wrong] = 1 - table["target"][wrong]
        writer.record(EvaluationRecord(epochs_done=3, table=writer.array("scored", table)))

    return write
