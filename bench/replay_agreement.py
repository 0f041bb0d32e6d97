"""How well replays agree: ``scaleproof check`` on a sound script of every framework and style.

Each script runs on two ranks and again on one process that is fed what both were fed; the figures
are distances of the gradients that were used from the replayed ones, relative to those, over all
compared steps. *Rounding* is the same distance between two replays that differ in nothing but the
order of the items: less can't be asked for. Writes ``bench/results/replay_agreement.{json,md}``.

    python bench/replay_agreement.py                 # all: about half a minute each
    python bench/replay_agreement.py --only vae
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from scaleproof.checks.replayed import compared_steps
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import load_study

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 600.0
NUM_STEPS = 20
SOUND = 0
"""The exit code of a check that found nothing."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One script, and what it stands for."""

    label: str
    script: str
    arguments: tuple[str, ...] = ()


STYLES = (
    Style(label="DDP", script="examples/mnist_ddp.py"),
    Style(
        label="DDP, BatchNorm, augmenting workers",
        script="examples/resnet_cifar10.py",
        arguments=("--epochs", "2", "--train-size", "512"),
    ),
    Style(label="DDP, autocast and GradScaler", script="examples/amp_scaler.py"),
    Style(label="DDP, IterableDataset", script="examples/iterable_stream.py"),
    Style(label="DDP, mp.spawn", script="examples/spawn_ddp.py"),
    Style(label="DDP, accumulation, no_sync", script="tests/faults/scripts/accumulate_cnn.py"),
    Style(label="DDP, padded sequences", script="tests/faults/scripts/reverse_seq2seq.py"),
    Style(label="DDP, BatchNorm, ResNet", script="tests/faults/scripts/ecg_resnet.py"),
    Style(label="DDP over a device mesh", script="tests/faults/scripts/unet.py"),
    Style(label="DDP, random latents", script="tests/faults/scripts/vae.py"),
    Style(label="DDP, gathered contrastive loss", script="tests/faults/scripts/simclr.py"),
    Style(label="DDP, averaged teacher", script="tests/faults/scripts/mean_teacher.py"),
    Style(label="DDP, torchmetrics", script="tests/faults/scripts/torchmetrics_ddp.py"),
    Style(label="FSDP2", script="examples/fsdp2.py"),
    Style(
        label="FSDP2 and tensor parallelism",
        script="tests/faults/scripts/fsdp2_tensor_parallel.py",
    ),
    Style(label="Accelerate", script="tests/faults/scripts/accelerate_topics.py"),
    Style(label="Lightning", script="tests/faults/scripts/lightning_autoencoder.py"),
    Style(
        label="Lightning, manual, own launcher", script="tests/faults/scripts/lightning_manual.py"
    ),
    Style(label="Transformers Trainer", script="tests/faults/scripts/hf_trainer_gpt2.py"),
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One style. ``errors`` and ``roundings``: of each compared step of each optimizer, in order;
    ``why_not``: why fewer steps were replayed than wanted, or none compared."""

    label: str
    script: str
    exit_code: int
    num_replayed: int
    num_wanted: int
    why_not: str
    errors: list[float]
    roundings: list[float]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="only styles whose label or script contains this")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = []
    for style in STYLES:
        if arguments.only is None or arguments.only in f"{style.label} {style.script}":
            found.append(measure(style))
            print(row(found[-1]), file=sys.stderr, flush=True)
    if not found:
        raise SystemExit(f"no style has {arguments.only!r} in its label or script")
    text = table(found, load)
    print(text)
    if arguments.only is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "replay_agreement.md").write_text(text)
        raw = json.dumps([asdict(agreement) for agreement in found], indent=1)
        (RESULTS / "replay_agreement.json").write_text(raw + "\n")


def measure(style: Style) -> Agreement:
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(shutil.copy(REPOSITORY / style.script, scratch))
        out = Path(scratch) / "study"
        command = [sys.executable, "-m", "scaleproof.cli", "check", str(script)]
        command += ["--steps", str(NUM_STEPS), "--out", str(out)]
        if style.arguments:
            command += ["--", *style.arguments]
        begin_s = time.monotonic()
        result = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        seconds = time.monotonic() - begin_s
        if not (out / "study.json").exists() or result.returncode > 3:
            raise SystemExit(f"{style.script} was not checked:\n{result.stdout}{result.stderr}")
        (run,) = load_study(out).runs.values()
        steps = list(compared_steps(run))
        replay = replays_of(run).get("union")
    compared = [step for step in steps if not step.why_not]
    whys = [step.why_not for step in steps if step.why_not]
    return Agreement(
        label=style.label,
        script=style.script,
        exit_code=result.returncode,
        num_replayed=0 if replay is None else replay.end.num_steps,
        num_wanted=0 if replay is None else replay.end.num_wanted,
        why_not="not replayed" if replay is None else replay.end.why_not or "".join(whys[:1]),
        errors=[step.error for step in compared],
        roundings=[step.noise for step in compared if step.noise is not None],
        seconds=seconds,
    )


def row(agreement: Agreement) -> str:
    verdict = "" if agreement.exit_code == SOUND else f" (exit code {agreement.exit_code})"
    return (
        f"| {agreement.label}{verdict} | `{Path(agreement.script).name}` "
        f"| {agreement.num_replayed} of {agreement.num_wanted} "
        f"| {_figure(agreement.errors, np.median)} | {_figure(agreement.errors, np.max)} "
        f"| {_figure(agreement.roundings, np.median)} | {agreement.seconds:.0f} |"
    )


def _figure(values: list[float], of) -> str:
    return f"{of(values):.1e}" if values else "-"


def table(found: list[Agreement], load: float) -> str:
    notes = [f"{a.label}: {a.why_not}." for a in found if a.why_not]
    lines = [
        "# How well replays agree",
        "",
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, load before {load:.1f}; two ranks, gloo.",
        "",
        "| style | script | steps replayed | median difference | worst step | rounding | s |",
        "|---|---|--:|--:|--:|--:|--:|",
        *map(row, found),
        "",
        *notes,
        "",
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
