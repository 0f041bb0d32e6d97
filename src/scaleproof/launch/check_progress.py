"""Progress of a check: what runs, and where its ranks are."""

from typing import final

from typing_extensions import override

from scaleproof.evidence.paths import RunPaths
from scaleproof.launch.check_command import CheckWatcher
from scaleproof.launch.run_line import RunLine


@final
class CheckProgress(RunLine, CheckWatcher):
    """Use as a context manager around ``conduct_check``."""

    @override
    def begins(self, paths: RunPaths, words: str) -> None:
        self.show(paths, words)

    @override
    def ended(self, words: str) -> None:
        self.say(f"  {words}")
