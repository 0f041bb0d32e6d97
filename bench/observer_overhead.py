"""What observing costs: the same training with and without, in turns, block by block.

Both trainings are alive at once and take turns of a few seconds on the same cores, so that a
drifting machine hits them alike; each block is compared with the one beside it. Writes the table
to ``bench/results/observer_overhead.md`` and every block's time to ``.json``.

    python bench/observer_overhead.py --data-dir data/cifar10
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from scaleproof.evidence.paths import RunPaths
from scaleproof.launch.environment import observed_environment
from scaleproof.launch.turns import grant_epochs

RESULTS = Path(__file__).parent / "results"
TRAINING = Path(__file__).parent / "observed_training.py"
EVERY = 100  # the default of scaleproof observe
TIMEOUT_S = 600.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """``num_steps`` in each of ``num_blocks`` blocks."""

    name: str
    label: str
    num_ranks: int
    num_blocks: int
    num_steps: int


WORKLOADS = (
    Workload(name="cifar10", label="CIFAR-10 ResNet", num_ranks=1, num_blocks=20, num_steps=30),
    Workload(
        name="cifar10", label="CIFAR-10 ResNet, DDP", num_ranks=2, num_blocks=20, num_steps=30
    ),
    Workload(name="deep", label="100 layers", num_ranks=1, num_blocks=24, num_steps=50),
    Workload(name="deep", label="100 layers, DDP", num_ranks=2, num_blocks=20, num_steps=50),
    Workload(name="small", label="1 ms steps", num_ranks=1, num_blocks=30, num_steps=1000),
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``ratios``: observed over plain, block by block; the interval is of their median."""

    label: str
    plain_step_ms: float
    overhead: float
    interval: tuple[float, float]
    extra_peak_bytes: int
    ratios: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where CIFAR-10 lies")
    parser.add_argument("--only", help="only workloads whose label contains this")
    arguments = parser.parse_args()
    outcomes = []
    for workload in WORKLOADS:
        if arguments.only is None or arguments.only in workload.label:
            print(f"{workload.label} ...", file=sys.stderr, flush=True)
            outcomes.append(measure(workload, arguments.data_dir))
            print(row(outcomes[-1]), file=sys.stderr, flush=True)
    text = table(outcomes)
    print(text)
    if arguments.only is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "observer_overhead.md").write_text(text)
        raw = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
        (RESULTS / "observer_overhead.json").write_text(raw + "\n")


def measure(workload: Workload, data_dir: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        plain, observed = Path(scratch) / "plain", Path(scratch) / "observed"
        run = RunPaths(Path(scratch) / "study" / "observed-seed0")
        seen = observed_environment(run, every=EVERY, pin=False)
        with (
            training(workload, plain, data_dir, dict(os.environ)),
            training(workload, observed, data_dir, seen),
        ):
            for block in range(workload.num_blocks):
                pair = (plain, observed) if block % 2 == 0 else (observed, plain)
                for folder in pair:
                    grant_epochs(folder / "turn", block + 1)
                    wait_for(lambda folder=folder, block=block: len(blocks(folder)) > block)
            wait_for((plain / "peak").exists)
            wait_for((observed / "peak").exists)
        if not list(run.root.glob("rank-*.jsonl")):
            raise SystemExit("nothing was observed: the comparison says nothing")
        before, after = np.array(blocks(plain)), np.array(blocks(observed))
        peaks = [int((folder / "peak").read_text()) for folder in (plain, observed)]
    ratios = after / before
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Outcome(
        label=workload.label,
        plain_step_ms=float(np.median(before)) / workload.num_steps * 1e3,
        overhead=float(np.median(ratios)) - 1,
        interval=(float(low) - 1, float(high) - 1),
        extra_peak_bytes=peaks[1] - peaks[0],
        ratios=ratios.tolist(),
    )


@contextlib.contextmanager
def training(
    workload: Workload, folder: Path, data_dir: Path, environment: dict[str, str]
) -> Iterator[None]:
    folder.mkdir()
    command = [sys.executable]
    if workload.num_ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(workload.num_ranks)]
    command += [str(TRAINING), workload.name, str(folder)]
    command += [str(workload.num_blocks), str(workload.num_steps), str(data_dir)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**environment, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )
    try:
        yield
        process.wait(TIMEOUT_S)
    finally:
        process.terminate()
        process.wait()


def blocks(folder: Path) -> list[float]:
    path = folder / "blocks"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(is_reached) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not is_reached():
        if time.monotonic() > deadline_s:
            raise SystemExit("a training stopped moving: look into its log")
        time.sleep(0.02)


def row(outcome: Outcome) -> str:
    low, high = outcome.interval
    return (
        f"| {outcome.label} | {outcome.plain_step_ms:.2f} | {outcome.overhead:+.2%} "
        f"| {low:+.2%} to {high:+.2%} | {outcome.extra_peak_bytes / 1e6:.0f} |"
    )


def table(outcomes: list[Outcome]) -> str:
    lines = [
        "# What observing costs",
        "",
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores; default sampling (every {EVERY} steps), gloo. Observed and plain",
        "trainings take turns block by block; the overhead is the median over blocks of observed /",
        "plain, with its 95 % bootstrap interval.",
        "",
        "| training | plain step, ms | overhead | 95 % interval | more memory at peak, MB |",
        "|---|--:|--:|--:|--:|",
        *map(row, outcomes),
        "",
        f"Median over the trainings: {np.median([o.overhead for o in outcomes]):+.2%}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
