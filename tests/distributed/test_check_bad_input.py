"""Scripts that a check can't take as they are: handled, or refused in a sentence that says what to
do."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch

from observing import Observed, check
from scaleproof.checks.replayed import compared_steps
from scaleproof.evidence.close_ups import ForcedRecord
from scaleproof.verdict.answers import Answer

pytestmark = pytest.mark.distributed


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    returncode: int
    out: str
    err: str


def refuse(tmp_path: Path, source: str, *arguments: str) -> Ended:
    """Check a script that comes to nothing."""
    script = tmp_path / "train.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "scaleproof.cli", "check", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "this is a bug of ours" not in done.stderr, done.stderr
    return Ended(
        returncode=done.returncode,
        out=" ".join(done.stdout.split()),
        err=" ".join(done.stderr.split()),
    )


def test_arguments_that_it_needs(tmp_path: Path) -> None:
    source = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.parse_args()
"""
    ended = refuse(tmp_path, source)
    assert ended.returncode == 4
    assert "Give the script its arguments after two dashes" in ended.err
    assert "the following arguments are required: --data" in ended.err
    assert "Traceback" not in ended.err


def test_answers_that_it_asks_for(tmp_path: Path) -> None:
    ended = refuse(tmp_path, "epochs = int(input('How many epochs? '))\n")
    assert ended.returncode == 4
    assert "It reads from the terminal" in ended.err
    assert "after two dashes" in ended.err


def test_no_optimizer(tmp_path: Path) -> None:
    source = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
weight = torch.zeros(3, requires_grad=True)
for _ in range(3):
    (weight - 1).square().sum().backward()
    dist.all_reduce(weight.grad)
    with torch.no_grad():
        weight -= 0.1 * weight.grad
        weight.grad = None
dist.destroy_process_group()
"""
    ended = refuse(tmp_path, source)
    assert ended.returncode == 4
    assert "no training was seen in it" in ended.err
    assert "trains with an optimizer of torch.optim" in ended.err


def test_a_script_that_deletes_its_working_folder(tmp_path: Path) -> None:
    source = """
import os
import shutil
if os.environ["RANK"] == "0":
    for name in os.listdir("."):
        if os.path.isdir(name):
            shutil.rmtree(name)
"""
    ended = refuse(tmp_path, TRAINING.format(before=source, loss=MEAN, epochs=1))
    assert ended.returncode == 4
    assert "was removed while" in ended.err
    assert "name a study folder elsewhere with --out" in ended.err


def test_a_script_with_an_error_of_its_own_gets_no_advice_but_the_error(tmp_path: Path) -> None:
    ended = refuse(tmp_path, "import torch\ntorch.optim.SGD([torch.zeros(2, 3) @ torch.ones(2)])\n")
    assert ended.returncode == 4
    assert "RuntimeError: size mismatch" in ended.err
    assert "--force-cpu" not in ended.err
    assert "two dashes" not in ended.err


TRAINING = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
torch.manual_seed(0)
x = torch.randn(8, 4)
data = TensorDataset(x, x.sum(1, keepdim=True))
model = DistributedDataParallel(nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
{before}
sampler = DistributedSampler(data)
for epoch in range({epochs}):
    sampler.set_epoch(epoch)
    for x, y in DataLoader(data, batch_size=4, sampler=sampler):
        optimizer.zero_grad()
        loss = {loss}
        loss.backward()
        optimizer.step()
dist.destroy_process_group()
"""
"""A step per epoch."""

MEAN = "nn.functional.mse_loss(model(x), y)"


def check_training(tmp_path: Path, loss: str, epochs: int) -> Observed:
    script = tmp_path / "train.py"
    script.write_text(TRAINING.format(before="", loss=loss, epochs=epochs))
    observed = check(tmp_path, script, cwd=tmp_path)
    (run,) = observed.study.runs.values()
    steps = list(compared_steps(run))
    assert [step.error < 1e-5 for step in steps] == [True] * epochs, str(observed)
    assert not observed.failed, str(observed)
    return observed


def test_a_loss_that_is_not_seen(tmp_path: Path) -> None:
    observed = check_training(tmp_path, "(model(x) - y).abs().pow(1.5).mean()", 3)
    assert observed.is_sound is Answer.YES, str(observed)


def test_a_single_step_is_compared_and_too_few_for_the_rest(tmp_path: Path) -> None:
    observed = check_training(tmp_path, MEAN, 1)
    assert observed.is_sound is Answer.UNDECIDED, str(observed)
    assert observed.returncode == 3
    assert "Train for 2 or more steps" in observed.stdout


ON_GPUS = (
    TRAINING.replace('"gloo")', '"nccl")\ntorch.cuda.set_device(dist.get_rank())')
    .replace("(nn.Linear(4, 1))", "(nn.Linear(4, 1).cuda(), device_ids=[dist.get_rank()])")
    .replace("optimizer.zero_grad()", "x, y = x.cuda(), y.to('cuda', non_blocking=True)")
    .replace("optimizer.step()", "optimizer.step()\n        optimizer.zero_grad()")
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the script wants")
def test_cuda_and_nccl_are_mapped_when_asked_and_it_is_said(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    source = ON_GPUS.format(before="", loss=MEAN, epochs=2)

    ended = refuse(tmp_path, source)
    assert ended.returncode == 4
    assert "Add --force-cpu" in ended.err

    observed = check(tmp_path, script, options=("--force-cpu",), cwd=tmp_path)
    (run,) = observed.study.runs.values()
    assert [step.error < 1e-5 for step in compared_steps(run)] == [True, True], str(observed)
    assert observed.is_sound is Answer.YES, str(observed)
    for rank in run.ranks:
        (forced,) = rank.of(ForcedRecord)
        mapped = " ".join(forced.what)
        assert "nccl" in mapped
        assert "cuda" in mapped
    assert "nccl" in observed.stdout
