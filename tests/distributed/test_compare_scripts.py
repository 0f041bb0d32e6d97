"""Real scripts, really compared: on one and on two processes, and by two commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scaleproof.evidence.study import Study, load_study
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.verdict import judge_study

pytestmark = pytest.mark.distributed

TRAIN = """
import argparse
import os
import sys
import time
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
import scaleproof

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--fail-on-rank", type=int, default=-1)
parser.add_argument("--slow", action="store_true")
args = parser.parse_args()

if "RANK" in os.environ:
    dist.init_process_group("gloo")
rank = dist.get_rank() if dist.is_initialized() else 0
world = dist.get_world_size() if dist.is_initialized() else 1
print("cores", sorted(os.sched_getaffinity(0)), "threads", torch.get_num_threads(), flush=True)

generator = torch.Generator().manual_seed(7)
inputs = torch.randn(480, 20, generator=generator)
targets = (inputs[:, :3].sum(dim=1) > 0).long()
train = TensorDataset(inputs[:320], targets[:320])
torch.manual_seed(args.seed)
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
if world > 1:
    model = DistributedDataParallel(model)
sampler = DistributedSampler(train, world, rank, seed=args.seed)
loader = DataLoader(train, batch_size=16, sampler=sampler)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(args.epochs):
    sampler.set_epoch(epoch)
    model.train()
    for step, (batch, labels) in enumerate(loader):
        if epoch == 1 and step == 2 and rank == args.fail_on_rank:
            raise ValueError("the third batch is bad")
        if args.slow:
            time.sleep(0.5)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()
    model.eval()
    ids = torch.arange(320 + rank, 480, world)
    with torch.no_grad():
        scores = model(inputs[ids])
    scaleproof.report_predictions(
        targets=targets[ids], predictions=scores.argmax(dim=1), sample_ids=ids, epoch=epoch
    )
    scaleproof.report_metrics(epoch=epoch, loss=loss)
print("done")
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def compare(cwd: Path, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaleproof.cli", "compare", "--device", "cpu", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
    )


def sharing() -> tuple[str, ...]:
    return () if len(os.sched_getaffinity(0)) > 1 else ("--share-device",)


def accuracies(study: Study) -> dict[str, float]:
    found: dict[str, float] = {}
    for run in study.usable_runs.values():
        table = run.final_evaluation
        assert len(table) == 160  # every sample once, whatever the number of ranks
        assert sorted(set(table["sample_id"])) == list(range(320, 480))
        found[run.name] = float((table["target"] == table["prediction"]).mean())
    return found


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Study, subprocess.CompletedProcess[str]]:
    """One comparison of the script on one and on two devices, looked at by several tests."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "train.py").write_text(TRAIN)
    result = compare(
        folder,
        *("train.py", "--devices", "1,2", "--out", "study", *sharing()),
        *("--", "--epochs", "4", "--seed", "{seed}"),
    )
    assert result.returncode in (0, 1, 3), result.stderr
    return load_study(folder / "study"), result


def test_a_script_on_one_and_on_two_devices(compared):
    study, result = compared
    assert [run.status for run in study.runs.values()] == ["complete"] * 2
    assert [arm.num_devices for arm in study.request.arms] == [1, 2]
    assert [len(run.ranks) for run in study.runs.values()] == [1, 2]
    assert study.request.num_epochs == 4
    assert all(len(run.epoch_times_s) == 4 for run in study.runs.values())
    assert all(value > 0.7 for value in accuracies(study).values())
    assert result.stdout.split()[0] in ("ADOPT", "REJECT", "UNDECIDED")
    assert "done" not in result.stdout + result.stderr
    assert study.paths.report.exists()


def test_a_sound_script_is_not_called_unsound(compared):
    study, _ = compared
    verdict = judge_study(study, Profile())
    faults = [f for f in verdict.findings if f.question == "sound" and f.outcome == "fail"]
    assert [fault.sentence for fault in faults if fault.blocks] == []


def test_a_comparison_can_be_judged_again(compared):
    study, result = compared
    judged = subprocess.run(
        [sys.executable, "-m", "scaleproof.cli", "judge", str(study.paths.root)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert judged.returncode == result.returncode
    assert judged.stdout.split()[0] == result.stdout.split()[0]


def test_ranks_have_a_core_each_and_one_thread_in_both_arms(compared):
    study, _ = compared
    lines: dict[str, list[str]] = {}
    for arm in ("script-1", "script-2"):
        log = (study.paths.run(arm, 0).logs / "output.log").read_text()
        lines[arm] = sorted({line for line in log.splitlines() if line.startswith("cores [")})
    assert len(lines["script-1"]) == 1
    assert len(lines["script-2"]) == min(2, len(os.sched_getaffinity(0)))
    for line in (*lines["script-1"], *lines["script-2"]):
        assert "," not in line  # one core
        assert line.endswith("threads 1")


def test_two_commands_tell_their_number_of_devices_themselves(script: Path, tmp_path: Path):
    python = sys.executable
    result = compare(
        tmp_path,
        *("--baseline", f"{python} train.py --epochs 2 --seed {{seed}}"),
        "--candidate",
        f"{python} -m torch.distributed.run --standalone --nproc-per-node 2 train.py --epochs 2",
        *("--out", "study", *sharing()),
    )
    assert result.returncode in (0, 1, 3), result.stderr
    study = load_study(tmp_path / "study")
    assert [(arm.name, arm.num_devices) for arm in study.request.arms] == [
        ("baseline", 1),
        ("candidate", 2),
    ]
    assert set(accuracies(study)) == {"baseline-seed0", "candidate-seed0"}


def test_the_rank_that_failed_is_named_and_the_comparison_ends(script: Path, tmp_path: Path):
    result = compare(
        tmp_path, "train.py", "--out", "study", *sharing(), "--", "--fail-on-rank", "1"
    )
    assert result.returncode == 4, result.stderr
    assert "script-2-seed0: rank 1 failed" in result.stderr
    assert result.stderr.count("ValueError: the third batch is bad") >= 1
    assert "train.py" in result.stderr
    assert "src/scaleproof" not in result.stderr


def test_a_script_without_training_is_no_comparison(tmp_path: Path):
    (tmp_path / "idle.py").write_text("import torch\nprint('nothing to do')\n")
    result = compare(tmp_path, "idle.py", "--out", "study", *sharing())
    assert result.returncode == 4
    assert "no training was seen in it" in result.stderr
    assert "nothing to do" in result.stderr


def test_ctrl_c_ends_all_and_what_was_finished_can_be_judged(script: Path, tmp_path: Path):
    study = tmp_path / "study"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scaleproof.cli", "compare", "train.py", "--device", "cpu"),
            *("--share-device", "--out", str(study), "--", "--slow"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (study / "script-1-seed0" / "manifest.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 130, stderr
    assert f"scaleproof judge {study}" in stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
