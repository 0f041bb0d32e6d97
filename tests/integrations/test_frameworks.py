"""Frameworks, observed unchanged; each is skipped where it is not installed."""

import sys
from pathlib import Path

import pytest

from observing import TORCHRUN, Observed, observe
from scaleproof.evidence.observations import MetricRecord, PassRecord, ProcessRecord

pytestmark = pytest.mark.distributed

SCRIPTS = Path(__file__).parent / "scripts"


def metrics_of(observed: Observed) -> dict[tuple[str, str], list[float | None]]:
    """What rank 0 was seen to report after training began, by source and name."""
    (run,) = observed.study.runs_of(observed.study.candidate)
    found: dict[tuple[str, str], list[float | None]] = {}
    for record in run.ranks[0].of(MetricRecord):
        if record.steps_done:
            found.setdefault((record.source, record.name), []).append(record.value)
    return found


def test_lightning_with_its_own_launcher(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="the extra integrations is not installed")
    pytest.importorskip("torchmetrics", reason="the extra integrations is not installed")

    observed = observe(tmp_path, [sys.executable, str(SCRIPTS / "lightning_digits.py")])

    metrics = metrics_of(observed)
    assert len(metrics["lightning", "val_loss"]) == 2
    assert metrics["torchmetrics", "MulticlassAccuracy"] == metrics["lightning", "val_acc"]
    # Its sampler pads 261 validation items to 262: the one thing that is wrong.
    assert [finding.check for finding in observed.failed] == ["padded-evaluation"], observed
    (run,) = observed.study.runs_of(observed.study.candidate)
    assert [len(rank.epochs) for rank in run.ranks] == [2, 2]
    assert all(record.is_whole for rank in run.ranks for record in rank.of(PassRecord)[1:])


def test_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra integrations is not installed")

    observed = observe(tmp_path, [*TORCHRUN, str(SCRIPTS / "accelerate_digits.py")])

    assert not observed.failed, observed
    (run,) = observed.study.runs_of(observed.study.candidate)
    (process,) = run.ranks[0].of(ProcessRecord)
    assert (process.parallelism, process.num_ranks) == ("ddp", 2)
    assert set(run.ranks[0].observed_steps["num_backwards"]) <= {1, 2}


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra integrations is not installed")

    script = SCRIPTS / "transformers_tiny.py"
    observed = observe(tmp_path, [*TORCHRUN, str(script), str(tmp_path / "out")])

    assert len(metrics_of(observed)["transformers", "eval_loss"]) == 2
    assert not observed.failed, observed
