"""A part of observing that breaks is noted, and the training never hears of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaleproof.evidence.observations import EndRecord
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_records
from scaleproof.evidence.troubles import read_troubles
from scaleproof.launch.environment import observed_environment
from scaleproof.observe.guard import Troubles, guarded


class Part:
    def __init__(self) -> None:
        self.troubles = Troubles()
        self.calls = 0

    @guarded("pass")
    def breaks(self) -> None:
        self.calls += 1
        raise ValueError("no such thing")

    @guarded("steps")
    def steps(self) -> None:
        self.calls += 1
        raise KeyError("gone")

    @guarded("end")
    def end(self) -> None:
        self.calls += 1


def test_the_first_exception_is_noted_and_the_part_stops() -> None:
    part = Part()
    part.breaks()
    part.breaks()

    (missing,) = part.troubles.as_records()
    assert missing.what == "pass"
    assert missing.why.startswith("ValueError: no such thing (test_guard.py:")
    assert part.calls == 1


def test_without_steps_everything_stops_but_the_end() -> None:
    part = Part()
    part.steps()
    part.breaks()
    part.end()

    assert part.calls == 2


TRAINING = """
import torch
{sabotage}
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.ones(8, 2), torch.ones(8, 1))
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(data, 2):
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()
print("trained", model.weight.sum().item() != 0)
"""

LEDGER = "import scaleproof.observe.ledger as l; l.SampleLedger.feed = lambda *_: 1 / 0"
STEPS = "import scaleproof.observe.steps as s; s.Timeline.end_step = lambda *_: 1 / 0"
NO_OBSERVER = "import scaleproof.observe.observer as o; o.Observer.__init__ = lambda *a, **k: 1 / 0"


@pytest.mark.parametrize(
    ("sabotage", "what"), [(LEDGER, "pass"), (STEPS, "steps"), (NO_OBSERVER, "process")]
)
def test_a_training_goes_on_whatever_breaks(sabotage: str, what: str, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "observed-seed0")
    done = subprocess.run(
        [sys.executable, "-c", TRAINING.format(sabotage=sabotage)],
        env={**os.environ, **observed_environment(paths, every=100, pin=False)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained True\n"
    assert done.stderr == ""
    if what == "process":
        (missing,) = read_troubles(paths)
    else:
        records, _ = read_records(paths.records(0))
        (end,) = (record for record in records if isinstance(record, EndRecord))
        (missing,) = end.missing
    assert missing.what == what
    assert missing.why.startswith("ZeroDivisionError: division by zero")
