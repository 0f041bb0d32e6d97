"""The example scripts: how each is started, and how its text is changed for a test."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

EXAMPLES = Path(__file__).parents[2] / "examples"

ARGUMENTS = {
    "mnist_ddp.py": "--epochs 3",
    "resnet_cifar10.py": "--epochs 2 --train-size 512",
    "gan.py": "--epochs 3",
    "language_model.py": "--max-iters 12 --eval-interval 6",
    "fsdp2.py": "--epochs 3",
    "handwritten_allreduce.py": "--epochs 3",
    "spawn_ddp.py": "--epochs 6",
    "single_process.py": "--epochs 3",
    "amp_scaler.py": "--epochs 3",
    "iterable_stream.py": "--epochs 3 --epoch-size 1024",
    "data_parallel.py": "--epochs 3",
}
"""Every example, with what makes it short."""

STARTS_ITSELF = {
    "handwritten_allreduce.py",
    "spawn_ddp.py",
    "single_process.py",
    "data_parallel.py",
}
"""Started with plain ``python``; the others by torchrun."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """An example with ``edits``: (old, new) pairs of text; every old one is in it exactly once.

    ``check`` names the fault; it is empty when there is none. ``words`` must be in the finding's
    sentence, and so must the script's line that begins with ``at``, as ``file.py:12``.
    ``arguments`` are instead of the example's; ``resumes``: it goes on from a checkpoint.
    """

    name: str
    script: str
    edits: tuple[tuple[str, str], ...] = ()
    check: str = ""
    words: tuple[str, ...] = ()
    at: str = ""
    arguments: str = ""
    resumes: bool = False

    def plant(self) -> str:
        """The script's text with the edits made."""
        text = (EXAMPLES / self.script).read_text()
        for old, new in self.edits:
            assert text.count(old) == 1, f"{self.name}: {old!r} is there {text.count(old)} times"
            text = text.replace(old, new)
        return text

    @property
    def where(self) -> str:
        """``file.py:12``: the line that begins with ``at``; empty without one."""
        if not self.at:
            return ""
        lines = [line.strip() for line in self.plant().splitlines()]
        numbers = [n for n, line in enumerate(lines, start=1) if line.startswith(self.at)]
        assert len(numbers) == 1, f"{self.name}: {self.at!r} begins lines {numbers}"
        return f"{self.script}:{numbers[0]}"
