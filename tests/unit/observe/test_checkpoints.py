"""A real process says what the file it went on from held, and what it put back."""

import sys
from pathlib import Path

import pytest

from observing import observe
from scaleproof.evidence.checkpoints import CheckpointRecord, StateCounts
from scaleproof.evidence.observations import EndRecord

SCRIPT = """
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


{body}
"""
SAVE = """
train(5)
torch.save(
    {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 5,
    },
    "last.pt",
)
"""
NOTHING, ONE = (StateCounts(optimizers=n, schedulers=n, scalers=0) for n in (0, 1))


def records_of(tmp_path: Path, body: str) -> tuple[CheckpointRecord, ...]:
    for name, text in (("first.py", SAVE), ("train.py", body)):
        (tmp_path / name).write_text(SCRIPT.replace("{body}", text))
    observe(tmp_path / "saving", [sys.executable, "first.py"], cwd=tmp_path)
    observed = observe(tmp_path / "resuming", [sys.executable, "train.py"], cwd=tmp_path)
    (rank,) = observed.study.runs["observed", 0].ranks
    (end,) = rank.of(EndRecord)
    assert end.missing == ()
    return rank.of(CheckpointRecord)


@pytest.mark.parametrize("restores", [True, False])
def test_what_is_put_back_is_told_from_what_is_not(tmp_path: Path, restores: bool) -> None:
    body = "saved = torch.load('last.pt')\nmodel.load_state_dict(saved['model'])\n"
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


@pytest.mark.parametrize(
    ("body", "share"),
    [
        ("torch.nn.Linear(4, 8).load_state_dict(part)", 0.0),  # a teacher's
        ("model[0].load_state_dict(part)", 0.5),
        ("model.load_state_dict(dict(saved['model']))", 1.0),
    ],
)
def test_only_what_is_trained_counts(tmp_path: Path, body: str, share: float) -> None:
    load = "saved = torch.load('last.pt')\n"
    load += "part = {k[2:]: v for k, v in saved['model'].items() if k.startswith('0.')}\n"
    (record,) = records_of(tmp_path, f"{load}{body}\ntrain(3)")

    assert record.model_share == share


@pytest.mark.parametrize(
    "body",
    [
        "torch.save(model.state_dict(), 'x.pt')\nmodel.load_state_dict(torch.load('x.pt'))\n",
        "torch.save([torch.ones(3)] * 3 + ['text', 4], 'x.pt')\ntorch.load('x.pt')\n",
        "torch.save(7, 'x.pt')\ntorch.load('x.pt')\n",
    ],
)
def test_files_without_training_state_are_nothing_to_restore(tmp_path: Path, body: str) -> None:
    assert records_of(tmp_path, f"{body}train(3)") == ()


def test_loading_after_training_is_no_resume(tmp_path: Path) -> None:
    assert (
        records_of(tmp_path, "train(3)\nmodel.load_state_dict(torch.load('last.pt')['model'])")
        == ()
    )
