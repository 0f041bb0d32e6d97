"""One process of a comparator: it waits for its turn, trains a stretch, reports the time, waits.

The driver starts one process per device and talks to it over standard input and output. A process
whose turn it isn't sleeps in a blocking read and costs nothing.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist

BATCH_PER_DEVICE = 128
LEARNING_RATE = 1e-3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What this process is to do. A stretch is ``num_steps`` steps of 128 images per device."""

    rank: int
    num_devices: int
    core: int
    data_dir: Path
    num_steps: int
    num_stretches: int

    @property
    def num_stretch_samples(self) -> int:
        """Images in one stretch, over all devices."""
        return self.num_steps * BATCH_PER_DEVICE * self.num_devices


def parse_task() -> Task:
    """What the driver gave on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--stretches", type=int, required=True)
    given = parser.parse_args()
    return Task(
        rank=given.rank,
        num_devices=given.devices,
        core=given.core,
        data_dir=given.data_dir,
        num_steps=given.steps,
        num_stretches=given.stretches,
    )


def become_device(task: Task) -> None:
    """Make this process one CPU device: one core, one intra-op thread."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {task.core})


@final
class Turns:
    """This process's side of the conversation with the driver."""

    def __init__(self) -> None:
        # What a library prints must not get between the reports: it goes to stderr.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._started_s = 0.0

    def wait(self) -> bool:
        """Say ready, then sleep until it is this process's turn. False: there is no more."""
        self._say({"ready": True})
        return sys.stdin.readline() == "go\n"

    def start_clock(self) -> None:
        """Start together with the other ranks."""
        if dist.is_initialized():
            dist.barrier()
        self._started_s = time.perf_counter()

    def stop_clock(self) -> None:
        """On a CPU nothing is queued: what was called is done."""
        self.report(time.perf_counter() - self._started_s)

    def report(self, time_s: float) -> None:
        """Tell the driver how long this rank took for the stretch."""
        self._say({"time_s": time_s})

    def _say(self, message: dict[str, float | bool]) -> None:
        print(json.dumps(message), file=self._answers)


def leave_group() -> None:
    """Without the barrier a rank sometimes aborts at interpreter exit (torch 2.13, gloo)."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
