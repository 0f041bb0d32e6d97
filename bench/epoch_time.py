"""How long an epoch of CIFAR-10 takes: Scaleproof beside the loops people write, in one run.

    python bench/epoch_time.py --data-dir DIR

All comparators are started, load the data and warm up; then they take turns, one stretch each,
while the others sleep. Ratios are taken within a round, so that a machine that slows down hits
all alike. What is compared with what is in bench/README.md.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from contenders import Contender, RunningContender, Stretch
from epoch_time_table import BATCH_PER_DEVICE, LIMIT, NUM_IMAGES, TRAININGS, Results, render
from scaleproof.strategies.devices import available_cores, device_names

NUM_DEVICES = 2

MAX_STEPS = NUM_IMAGES // (NUM_DEVICES * BATCH_PER_DEVICE)
"""Of one epoch with two devices: no image may come twice in a stretch."""


def main() -> None:
    given = _parse_arguments()
    contenders = _contenders(given.only)
    stretch = Stretch(
        data_dir=given.data_dir.resolve(), num_steps=given.steps, num_stretches=given.rounds + 1
    )
    machine = _machine()
    times_s = _measure(contenders, stretch, given.rounds)
    results = Results(machine=machine, num_steps=given.steps, times_s=times_s)
    text = render(results)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.name}.txt").write_text(text)
    (given.out / f"{given.name}.json").write_text(json.dumps(asdict(results), indent=1) + "\n")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times of an epoch of CIFAR-10, side by side.")
    parser.add_argument("--data-dir", type=Path, required=True, help="where CIFAR-10 is")
    parser.add_argument("--steps", type=int, default=100, help="steps of a stretch")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each, after a warm-up")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=TRAININGS)
    parser.add_argument("--name", default="epoch_time", help="of the files with the results")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    if not 1 <= given.steps <= MAX_STEPS:
        parser.error(f"--steps {given.steps}: expected 1 to {MAX_STEPS}, an epoch of two devices")
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: expected at least 1")
    if len(available_cores()) < NUM_DEVICES:
        parser.error(f"this machine has fewer than {NUM_DEVICES} cores: nothing can be compared")
    return given


def _contenders(loops: Sequence[str]) -> list[Contender]:
    contenders = [
        Contender(loop=loop, num_devices=num_devices) for loop in loops for num_devices in (1, 2)
    ]
    if "hand_tuned" in loops:
        limit = Contender(loop="hand_tuned", num_devices=1, num_trainings=NUM_DEVICES)
        assert limit.name == LIMIT
        contenders.append(limit)
    return contenders


def _measure(
    contenders: Sequence[Contender], stretch: Stretch, num_rounds: int
) -> dict[str, list[list[float]]]:
    times_s: dict[str, list[list[float]]] = {contender.name: [] for contender in contenders}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running: list[RunningContender] = []
        for contender in contenders:
            print(f"starting {contender.name}", file=sys.stderr)
            running.append(RunningContender(contender, stretch, logs / contender.name))
            stack.callback(running[-1].stop)
            running[-1].wait_until_ready()
        for each in running:
            each.take_turn()  # warm-up: the first steps choose kernels and touch memory
        for number in range(num_rounds):
            print(f"round {number + 1} of {num_rounds}", file=sys.stderr)
            # Back and forth, so that a steady drift favours nobody.
            for each in running if number % 2 == 0 else reversed(running):
                times_s[each.contender.name].append(each.take_turn())
    return times_s


def _machine() -> dict[str, str | int | float]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": device_names("cpu", 1)[0],
        "cores used": NUM_DEVICES,
        "cores": os.cpu_count() or 0,
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "load before": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    main()
