"""How a script wants to be started is told from its text: by torchrun unless it starts its ranks,
or drives its devices, by itself."""

import pytest

from scaleproof.launch.launchers import launcher_of

BY_TORCHRUN = {
    "ddp": """
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
model = DistributedDataParallel(Net())
""",
    "ddp as DDP": """
import os
from torch.nn.parallel import DistributedDataParallel as DDP
model = DDP(Net(), device_ids=[int(os.environ["LOCAL_RANK"])])
""",
    "data parallel by hand": """
import torch, torch.distributed as dist
dist.init_process_group()
for p in model.parameters():
    dist.all_reduce(p.grad)
""",
    "trainer of hugging face": """
from transformers import Trainer, TrainingArguments
trainer = Trainer(model=model, args=TrainingArguments("out"), train_dataset=data)
trainer.train()
""",
    "accelerate": """
from accelerate import Accelerator
accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
""",
    "lightning on one device": """
import lightning as L
trainer = L.Trainer(max_epochs=2, devices=1, accelerator="cpu")
""",
    "lightning that asks torchrun": """
import os
import lightning as L
trainer = L.Trainer(devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)), strategy="ddp")
""",
    "lightning that was not told": """
import lightning.pytorch as pl
trainer = pl.Trainer(max_epochs=2)
""",
    "both styles": """
import torch.distributed as dist
from torch.nn import DataParallel
from torch.nn.parallel import DistributedDataParallel
def wrap(model):
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        return DistributedDataParallel(model)
    return DataParallel(model)
""",
    "multiprocessing for something else": """
import multiprocessing
import torch.distributed as dist
print(multiprocessing.cpu_count())
dist.init_process_group("gloo")
""",
    "a method's name": "the_fish.spawn()\ncompletion = respawn(model)\n",
    "nothing": "",
}

BY_PYTHON = {
    "spawn": """
import torch.multiprocessing as mp
if __name__ == "__main__":
    mp.spawn(main, args=(2,), nprocs=2)
""",
    "spawn by its whole name": """
import torch
torch.multiprocessing.spawn(main, nprocs=2)
""",
    "spawn by itself": """
from torch.multiprocessing import spawn
spawn(main, nprocs=2)
""",
    "start_processes": """
from torch.multiprocessing import Queue, start_processes
start_processes(main, nprocs=2, start_method="fork")
""",
    "processes": """
from multiprocessing import Process
ranks = [Process(target=train, args=(rank, 2)) for rank in range(2)]
""",
    "a context": """
import torch.multiprocessing as mp
context = mp.get_context("spawn")
ranks = [context.Process(target=train, args=(rank,)) for rank in range(2)]
""",
    "lightning": """
import lightning as L
trainer = L.Trainer(max_epochs=2, devices=2, accelerator="cpu", strategy="ddp")
""",
    "lightning, older, over several lines": """
from pytorch_lightning import Trainer
trainer = Trainer(
    max_epochs=2,
    devices=args.devices,
    strategy="ddp",
)
""",
    "fabric": """
from lightning.fabric import Fabric
fabric = Fabric(accelerator="cpu", devices=2)
fabric.launch()
""",
    "data parallel": """
from torch import nn
model = nn.DataParallel(Net())
""",
    "a notebook's launcher": """
from accelerate import notebook_launcher
notebook_launcher(train, num_processes=2)
""",
}


@pytest.mark.parametrize("name", BY_TORCHRUN)
def test_by_torchrun(name: str) -> None:
    assert launcher_of(BY_TORCHRUN[name]) == "torchrun"


@pytest.mark.parametrize("name", BY_PYTHON)
def test_by_itself(name: str) -> None:
    assert launcher_of(BY_PYTHON[name]) == "python"


ONLY_SAID = {
    "a comment": "# torchrun is easier than mp.spawn(main)\nimport torch.distributed as dist\n",
    "a docstring": '"""Was: torch.multiprocessing.spawn; now started by torchrun."""\n',
    "a string": 'parser.add_argument("--x", help="unlike with mp.spawn, ...")\n',
    "data parallel in a comment": "# not nn.DataParallel(model), which is slow\nmodel = Net()\n",
}


@pytest.mark.parametrize("name", ONLY_SAID)
def test_what_is_only_said_starts_nothing(name: str) -> None:
    assert launcher_of(ONLY_SAID[name]) == "torchrun"


def test_lightning_with_calls_among_its_arguments() -> None:
    source = """
import lightning as L
trainer = L.Trainer(logger=CSVLogger("logs"), devices=2, strategy="ddp")
"""
    assert launcher_of(source) == "python"


def test_spawn_imported_over_several_lines() -> None:
    source = """
from torch.multiprocessing import (
    Queue,
    spawn,
)
spawn(main, nprocs=2)
"""
    assert launcher_of(source) == "python"
