"""A real process says what the file it went on from held, and what it put back."""

import subprocess
import sys
from pathlib import Path

import pytest

from observing import observe
from scaleproof.evidence.checkpoints import CheckpointRecord, StateCounts
from scaleproof.evidence.observations import EndRecord

MODEL = """
import torch

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)


def train(num_steps):
    for _ in range(num_steps):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


"""
SAVE = """
train(5)
saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
torch.save({name: one.state_dict() for name, one in saved.items()} | {"epoch": 5}, "last.pt")
"""
NOTHING, ONE = (StateCounts(optimizers=n, schedulers=n, scalers=0) for n in (0, 1))


def records_of(tmp_path: Path, body: str) -> tuple[CheckpointRecord, ...]:
    """A first process trains and saves, a second one, observed, does ``body``."""
    subprocess.run([sys.executable, "-c", MODEL + SAVE], cwd=tmp_path, check=True, timeout=120)
    (tmp_path / "train.py").write_text(MODEL + body)
    observed = observe(tmp_path, [sys.executable, "train.py"], cwd=tmp_path)
    (rank,) = observed.study.runs["observed", 0].ranks
    (end,) = rank.of(EndRecord)
    assert end.missing == ()
    return rank.of(CheckpointRecord)


@pytest.mark.parametrize("restores", [True, False])
def test_what_is_put_back_is_told_from_what_is_not(tmp_path: Path, restores: bool) -> None:
    body = "saved = torch.load('last.pt')\nmodel.load_state_dict(dict(saved['model']))\n"
    if restores:
        body += "optimizer.load_state_dict(saved['optimizer'])\n"
        body += "scheduler.load_state_dict(saved['scheduler'])\n"
    (record,) = records_of(tmp_path, body + "train(3)\ntorch.load('last.pt')")

    assert (record.file, record.where) == ("last.pt", "train.py:17")
    assert record.held == record.in_use == ONE
    assert record.restored == (ONE if restores else NOTHING)
    assert record.model_share == 1.0
    (saved,) = record.saved
    assert (saved.num_tensors, saved.num_steps, saved.learning_rate) == (4, 5, 0.01)
    assert (record.trained.num_tensors, record.trained.learning_rate) == (4, 0.01)


OTHERS = """
with open("last.pt", "rb") as stream:
    saved = torch.load(stream)
part = {name[2:]: value for name, value in saved["model"].items() if name.startswith("0.")}
torch.nn.Linear(4, 8).load_state_dict(part)  # a teacher, which is not trained
saved = torch.load("last.pt")
part = {name[2:]: value for name, value in saved["model"].items() if name.startswith("0.")}
model[0].load_state_dict(part)
train(3)
"""


def test_only_what_is_trained_counts(tmp_path: Path) -> None:
    shares = [(record.file, record.model_share) for record in records_of(tmp_path, OTHERS)]

    assert shares == [("last.pt", 0.0), ("last.pt", 0.5)]


NOTHING_TO_RESTORE = """
for content in (model.state_dict(), [torch.ones(3)] * 3 + ["text", 4], 7, {"state": {}}):
    torch.save(content, "x.pt")
    loaded = torch.load("x.pt")
    if "0.weight" in (loaded if isinstance(loaded, dict) else ()):
        model.load_state_dict(loaded)
train(3)
model.load_state_dict(torch.load("last.pt")["model"])  # to evaluate
"""


def test_files_without_training_state_and_loading_after_training_are_no_resume(
    tmp_path: Path,
) -> None:
    assert records_of(tmp_path, NOTHING_TO_RESTORE) == ()


PREPARED = """
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

get_optimizer_state_dict(model, optimizer)  # makes a step at a rate of 0, to have state to load
train(3)
"""


def test_a_step_that_only_prepares_loading_is_none_of_training(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(MODEL + PREPARED)
    observed = observe(tmp_path, [sys.executable, "train.py"], cwd=tmp_path)
    (rank,) = observed.study.runs["observed", 0].ranks
    (end,) = rank.of(EndRecord)

    assert (end.steps_done, end.missing) == (3, ())
    assert rank.observed_steps["learning_rate"].tolist()[0] == pytest.approx(0.01)
