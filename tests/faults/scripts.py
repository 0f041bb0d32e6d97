"""The scripts of the corpus: how each is started, and how its text is changed for a test."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = Path(__file__).parent / "scripts"

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


def path_of(script: str) -> Path:
    """Where a script of the corpus is."""
    example = EXAMPLES / script
    return example if example.exists() else SCRIPTS / script


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A script with ``edits``: (old, new) pairs of text; every old one is in it exactly once.

    ``script``: of the examples, or of the folder ``scripts`` beside this file. ``group``: the class
    of fault. ``links``: where it happened to others, as ``owner/repository#12`` or
    ``owner/repository PR#12``.

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
    group: str = ""
    links: tuple[str, ...] = ()

    def plant(self) -> str:
        """The script's text with the edits made."""
        text = path_of(self.script).read_text()
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
