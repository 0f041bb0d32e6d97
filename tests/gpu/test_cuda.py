"""The CUDA paths, on one GPU: two ranks or two replicas share it. Skipped where there is none."""

from pathlib import Path

import pytest
import torch

from scaleproof.evidence.study import Study
from tests_of_runs import run_study

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run_on_cuda(root: Path, recipe: str, **changes: object) -> Study:
    return run_study(root, recipe, device_kind="cuda", **changes)


@pytest.mark.parametrize("strategy", ["ddp", "dp"])
def test_two_ranks_share_a_gpu(tmp_path: Path, strategy: str):
    study = run_on_cuda(tmp_path / "study", "sound", strategy=strategy)
    assert [run.status for run in study.runs.values()] == ["complete"] * 2
    (pair,) = study.pairs
    manifest = pair.candidate.manifest
    assert manifest is not None
    assert manifest.device_kind == "cuda"
    assert manifest.backend == ("gloo" if strategy == "ddp" else "none")


@pytest.mark.parametrize("strategy", ["ddp", "dp"])
def test_two_ranks_take_the_steps_of_one_with_twice_the_batch(tmp_path: Path, strategy: str):
    two = run_on_cuda(
        tmp_path / "two",
        "without_batch_norm",
        strategy=strategy,
        with_baseline=False,
        learning_rate_rule="none",
    )
    one = run_on_cuda(
        tmp_path / "one",
        "without_batch_norm_double_batch",
        strategy="single",
        num_devices=1,
        with_baseline=False,
        learning_rate_rule="none",
    )
    (run_two,), (run_one,) = two.runs.values(), one.runs.values()
    assert run_two.step_losses == pytest.approx(run_one.step_losses, rel=1e-6)


def test_nccl_over_two_gpus(tmp_path: Path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, found {torch.cuda.device_count()}")
    study = run_on_cuda(tmp_path / "study", "sound", share_device=False)
    (pair,) = study.pairs
    assert pair.candidate.manifest is not None
    assert pair.candidate.manifest.backend == "nccl"


def test_digits_in_bf16(tmp_path: Path):
    study = run_on_cuda(tmp_path / "study", "digits", num_epochs=2, num_seeds=1)
    (pair,) = study.pairs
    assert pair.candidate.manifest is not None
    assert pair.candidate.manifest.precision == "bf16"
