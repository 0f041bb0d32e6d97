"""Every style of training, observed: bit for bit the training it is without, and seen whole."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from scaleproof.evidence.observations import (
    EndRecord,
    OptimizerRecord,
    PassRecord,
    ProbeRecord,
    ProcessRecord,
    SnapshotRecord,
)
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Run, load_run
from scaleproof.launch.environment import observed_environment

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parent / "styles.py"
SINGLE = ("data_parallel", "closure", "saved")
STYLES = (
    "ddp",
    "data_parallel",
    "allreduce",
    "accumulation",
    "amp",
    "fsdp2",
    "optimizers",
    "iterable",
    "compiled",
    "closure",
    "saved",
)
FLOAT64 = np.dtype("<f8")
ARM = Arm(name="observed", role="candidate", strategy="script", num_devices=0)


def start(style: str, environment: dict[str, str]) -> dict[int, str]:
    """Run a style; the digest that each rank printed."""
    command = [sys.executable, str(SCRIPT), style]
    if style not in SINGLE:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command[1:1] = launcher
    done = subprocess.run(
        command,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    found = re.findall(r"rank (\d) digest ([0-9a-f]{64})", done.stdout)
    assert found, done.stdout + done.stderr
    return {int(rank): digest for rank, digest in found}


@cache
def observed(style: str, root: Path) -> tuple[dict[int, str], Run]:
    paths = RunPaths(root / style / "observed-seed0")
    digests = start(style, observed_environment(paths, every=5, pin=False))
    return digests, load_run(paths, ARM, 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("styles")


@pytest.mark.parametrize("style", STYLES)
def test_the_observed_training_is_bit_for_bit_the_same(style: str, root: Path) -> None:
    digests, run = observed(style, root)

    assert digests == start(style, dict(os.environ))
    assert run.ranks  # it was observed


@pytest.mark.parametrize("style", STYLES)
def test_nothing_is_missing(style: str, root: Path) -> None:
    digests, run = observed(style, root)

    assert run.status == "complete"
    assert len(run.ranks) == len(digests)
    for rank in run.ranks:
        (end,) = rank.of(EndRecord)
        assert end.missing == ()
        assert end.steps_done == len(rank.observed_steps) > 0
        assert {snapshot.moment for snapshot in rank.of(SnapshotRecord)} >= {"start", "end"}
        uses = [record.use for record in rank.of(PassRecord)]
        assert uses == ["training"] * 3
        assert len(rank.epochs) == 3
        owned = {record.optimizer: len(record.owned) for record in rank.of(OptimizerRecord)}
        for probe in rank.of(ProbeRecord):
            values = rank.array(probe.values, FLOAT64)
            assert values.shape[0] == owned[probe.optimizer]


@pytest.mark.parametrize("style", [style for style in STYLES if style not in SINGLE])
def test_the_gradient_used_is_the_mean_of_the_ranks_own(style: str, root: Path) -> None:
    """The mechanism itself: final = sum over ranks of w_r times local_r, with w = 1/N."""
    _, run = observed(style, root)

    for index in range(3):
        probes = [rank.of(ProbeRecord)[index] for rank in run.ranks]
        values = [
            rank.array(probe.values, FLOAT64) for rank, probe in zip(run.ranks, probes, strict=True)
        ]
        mean = np.mean([v[:, 0] / p.grad_scale for v, p in zip(values, probes, strict=True)], 0)
        first, second = (v[:, 1] for v in values)
        final = np.where(np.isnan(first), second, first)  # shards are joined
        known = ~np.isnan(final) & ~np.isnan(mean)
        assert known.sum() >= 8  # the smallest optimizer owns eight numbers
        factor = (final[known] @ mean[known]) / (mean[known] @ mean[known])
        residual = np.linalg.norm(final[known] - factor * mean[known])
        assert residual < 2e-5 * np.linalg.norm(final[known])
        if style not in ("accumulation", "amp"):  # these clip
            assert factor == pytest.approx(1, abs=1e-4)


def test_who_trains_is_known(root: Path) -> None:
    kinds = {style: observed(style, root)[1].ranks[0].of(ProcessRecord)[0] for style in STYLES}

    assert kinds["ddp"].parallelism == kinds["compiled"].parallelism == "ddp"
    assert kinds["fsdp2"].parallelism == "fsdp2"
    assert kinds["data_parallel"].parallelism == "data-parallel"
    assert kinds["allreduce"].parallelism == "none"
    assert {kinds[style].num_ranks for style in SINGLE} == {1}
    assert kinds["ddp"].num_ranks == 2
