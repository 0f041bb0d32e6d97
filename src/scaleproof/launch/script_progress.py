"""Progress of a comparison of scripts: which run of which, and where its ranks are."""

from typing import final

from typing_extensions import override

from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.study import Run
from scaleproof.launch.run_line import RunLine
from scaleproof.launch.script_arms import ScriptWatcher


@final
class ScriptProgress(RunLine, ScriptWatcher):
    """Use as a context manager around ``conduct_scripts``."""

    @override
    def run_begins(self, paths: RunPaths, number: int, num_runs: int) -> None:
        self.show(paths, f"Run {number} of {num_runs}: {paths.root.name}")

    @override
    def run_ended(self, run: Run, exit_code: int, elapsed_s: float) -> None:
        num_steps = max((len(rank.observed_steps) for rank in run.ranks), default=0)
        num_epochs = max((len(rank.epochs) for rank in run.ranks), default=0)
        ranks = "1 rank" if len(run.ranks) == 1 else f"{len(run.ranks)} ranks"
        self.say(
            f"  {ranks}, {num_steps} steps in {num_epochs} epochs, {elapsed_s:.1f} s"
            + (f"; exit code {exit_code}, after training" if exit_code else "")
        )
