"""Scripts as users write them, with CUDA and NCCL hard-coded, run without and with the mapping."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import final

import pytest
import torch

from scaleproof.launch.needs_cuda import needs_cuda

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the scripts would run as they are: this machine has a GPU"
)

_DRIVER = """
import json, os, runpy, sys, traceback
import torch, torch.distributed, torch._dynamo

def run(job):
    out = os.open(job["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(job["environment"])
    torch.set_num_threads(1)
    if job["force"]:
        from scaleproof.observe.force_cpu import force_cpu, what_was_mapped
        force_cpu(2)
    sys.argv = job["argv"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    if job["force"]:
        print("MAPPED", json.dumps(what_was_mapped()))
    sys.stdout.flush()
    return 0

for line in sys.stdin:
    children = []
    for job in json.loads(line):
        child = os.fork()
        if child == 0:
            os._exit(run(job))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""
"""Imports torch once, then is forked for each process of each script."""

_SINGLE = """
import torch, torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

assert torch.cuda.is_available(), "no GPU"
torch.cuda.set_device(0)
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = True
torch.manual_seed(0)
device = torch.device("cuda")
data = TensorDataset(torch.randn(16, 4), torch.randint(0, 2, (16,)))
model = nn.Sequential(nn.Linear(4, 8, device="cuda"), nn.Dropout(0.1), nn.Linear(8, 2).cuda()).to(0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(data, batch_size=4, pin_memory=True, pin_memory_device="cuda"):
    x, y = x.cuda(non_blocking=True), y.to(device, non_blocking=True)
    weights = torch.ones(2, device=device)
    loss = nn.functional.cross_entropy(model(x), y, weight=weights)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# What is moved is a copy, as it would be on a GPU.
host = torch.ones(3)
host.cuda().add_(1)
assert host.sum() == 3
best = {name: value.cpu() for name, value in model.state_dict().items()}
with torch.no_grad():
    model[0].weight.add_(1)
assert not torch.equal(best["0.weight"], model[0].weight)
leaf = torch.ones(3, device="cuda:1", requires_grad=True).to("cuda:1")
assert leaf.is_leaf

# Other ways to name a device, or what lies on one.
assert isinstance(device, torch.device) and device.type == "cuda"
assert torch.device(1) == torch.device("cuda", 1) == torch.device("cuda:1")
generator = torch.Generator(device="cuda").manual_seed(0)
torch.rand(2, generator=generator, device=device)
assert isinstance(generator, torch.Generator)
torch.cuda.FloatTensor(2).type("torch.cuda.HalfTensor")
with torch.device("cuda"):
    torch.zeros(2)
torch.set_default_device("cuda")
torch.zeros(2) + torch.arange(2, device=torch.device("cpu"))
torch.set_default_device(None)
nn.DataParallel(model, device_ids=[0, 1]).cuda()(torch.randn(4, 4).to("cuda"))
add = lambda x: x + torch.zeros(2, device=device)
assert torch.compile(add, backend="eager", fullgraph=True)(torch.ones(2).cuda()).sum() == 2
scripted = torch.jit.script(nn.Linear(4, 2)).cuda()
"""

_AMP = """
import torch, torch.nn as nn

torch.manual_seed(0)
model = nn.Linear(4, 2).to("cuda:0")
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for scaler in (torch.cuda.amp.GradScaler(), torch.amp.GradScaler("cuda"), torch.amp.GradScaler()):
    with torch.autocast("cuda", dtype=torch.float16):
        out = model(torch.randn(4, 4, device="cuda"))
        assert out.dtype == torch.bfloat16, out.dtype
    with torch.cuda.amp.autocast():
        assert model(torch.randn(4, 4, device="cuda")).dtype == torch.bfloat16
    loss = out.float().square().mean()
    scaler.scale(loss).backward()
    scaled = model.weight.grad.norm()
    scaler.unscale_(optimizer)
    assert scaled > 1000 * model.weight.grad.norm() > 0  # it does scale
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
"""

_CHECKPOINT = """
import sys, torch, torch.nn as nn

model = nn.Linear(4, 2)
path = sys.argv[1]
for location in (None, "cuda", "cuda:1", torch.device("cuda", 0), {"cuda:0": "cuda:1"},
                 lambda storage, location: storage.cuda(0)):
    for weights_only in (True, False):
        state = torch.load(path, map_location=location, weights_only=weights_only)
        model.load_state_dict(state["model"])
        assert state["model"]["weight"].sum() == 8
        assert state["where"] == torch.device("cuda:0")
        torch.cuda.set_rng_state(state["random"])
torch.save({"model": model.cuda().state_dict(), "where": torch.device("cuda")}, path)
"""

_FIGURES = """
import time, torch

start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
start.record()
time.sleep(0.02)
end.record()
torch.cuda.synchronize()
assert 20 <= start.elapsed_time(end) < 2000
stream = torch.cuda.Stream()
stream.wait_stream(torch.cuda.current_stream())
x = torch.ones(2, device="cuda")
with torch.cuda.stream(stream):
    torch.cuda.nvtx.range_push("step")
    x.record_stream(stream)
    torch.cuda.nvtx.range_pop()
with torch.cuda.device(1):
    assert torch.cuda.current_device() == 1
assert torch.cuda.current_device() == 0 and torch.cuda.device_count() == 2
torch.cuda.reset_peak_memory_stats()
torch.cuda.empty_cache()
share = torch.cuda.memory_allocated() / torch.cuda.max_memory_reserved()
free, total = torch.cuda.mem_get_info()
assert 0 < free < total == torch.cuda.get_device_properties(0).total_memory
print(torch.cuda.memory_summary(), torch.cuda.memory_stats()["num_ooms"], torch.cuda.utilization())
assert torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability() >= (8, 0)
print(torch.cuda.get_device_name(0))
assert torch.accelerator.current_accelerator().type == "cuda"
torch.accelerator.synchronize()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
    torch.cuda.profiler.start()
try:
    torch.cuda.CUDAGraph()
except RuntimeError as error:
    assert "--force-cpu" in str(error)
else:
    raise SystemExit("graphs can't be mapped")
"""

_SAME_SEED = """
import torch, torch.nn as nn

torch.manual_seed(5)
torch.cuda.manual_seed_all(5)
torch.optim.SGD(nn.Linear(1, 1).cuda().parameters(), lr=1)
torch.manual_seed(6)  # during training as well
torch.cuda.manual_seed(6)
assert torch.initial_seed() == 6
"""

_OWN_SEED = (
    _SAME_SEED
    + """
torch.cuda.manual_seed(7)  # what makes the masks of ranks differ
assert torch.initial_seed() == 7
"""
)

_SEED_BEFORE = """
import torch, torch.nn as nn

torch.manual_seed(5)
torch.cuda.manual_seed(7)
model = nn.Linear(2, 2).cuda()
torch.manual_seed(5)
assert torch.equal(nn.Linear(2, 2).weight, model.weight)  # from the CPU's generator
torch.cuda.manual_seed(7)
torch.optim.SGD(model.parameters(), lr=1)
assert torch.initial_seed() == 7
"""

_DDP = """
import os, torch, torch.nn as nn, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
dist.init_process_group(backend="nccl", device_id=torch.device("cuda", rank))
assert dist.is_nccl_available() and dist.get_world_size() == 2
torch.manual_seed(0)
inputs, plain = torch.randn(10, 3, 4) + 2, nn.BatchNorm1d(3)
mine = slice(0, 6) if rank == 0 else slice(6, 10)

# The same as one device on the batches of both ranks.
x = inputs.clone().requires_grad_()
plain(x).square().mul(x.detach()).sum().backward()
model = DDP(
    nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3)).cuda(rank),
    device_ids=[rank],
    output_device=rank,
)
part = inputs[mine].to(rank).requires_grad_()
model(part).square().mul(part.detach()).sum().backward()
torch.testing.assert_close(part.grad, x.grad[mine])
torch.testing.assert_close(model.module.weight.grad, plain.weight.grad / 2)
torch.testing.assert_close(model.module.running_var, plain.running_var)
torch.testing.assert_close(model.module.running_mean, plain.running_mean)
assert model.module.num_batches_tracked == 1

mean = torch.tensor(float(rank), device=f"cuda:{rank}")
dist.all_reduce(mean, op=dist.ReduceOp.AVG)
assert mean == 0.5
groups = [dist.new_group(backend="nccl"), dist.new_group([0, 1], None, "cpu:gloo,cuda:nccl")]
for group in groups:
    gathered = [torch.zeros(1, device=rank) for _ in range(2)]
    dist.all_gather(gathered, torch.full((1,), float(rank), device="cuda"), group=group)
    assert [int(each) for each in gathered] == [0, 1]
names = ["a"] if rank == 0 else [None]
dist.broadcast_object_list(names, src=0, device=torch.device("cuda", rank))
assert names == ["a"]
dist.barrier(device_ids=[rank])
dist.destroy_process_group()
"""

_FSDP2 = """
import os, torch, torch.nn as nn, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

rank = int(os.environ["RANK"])
mesh = init_device_mesh("cuda", (2,), mesh_dim_names=("dp",))
device = torch.device(mesh.device_type, rank)
torch.manual_seed(0)
with torch.device("meta"):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for layer in (model[0], model[2], model):
    fully_shard(layer, mesh=mesh, mp_policy=policy)
model.to_empty(device="cuda")
for layer in (model[0], model[2]):
    layer.reset_parameters()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
loss = model(torch.randn(3, 4, device=device)).float().sum()
loss.backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
dist.destroy_process_group()
"""


@final
class Driver:
    """Runs scripts in processes of their own."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self._process = process

    def run(self, script: str, *args: str, force: bool, num_ranks: int = 1) -> list[str]:
        """What each rank printed, with its exit code on the last line."""
        path = self.folder / "train.py"
        path.write_text(script)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        outputs = [self.folder / f"output{rank}" for rank in range(num_ranks)]
        jobs = [
            {
                "argv": [str(path), *args],
                "environment": {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(num_ranks),
                },
                "force": force,
                "output": str(output),
            }
            for rank, output in enumerate(outputs)
        ]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return [
            f"{output.read_text()}\nexit {code}"
            for output, code in zip(outputs, codes, strict=True)
        ]

    def check(self, script: str, *args: str, num_ranks: int = 1) -> list[str]:
        """What was mapped, of a script that fails without it and is recognised by how it fails."""
        for output in self.run(script, *args, force=False, num_ranks=num_ranks):
            assert output.endswith("exit 1"), output
            assert needs_cuda(output), output
        outputs = self.run(script, *args, force=True, num_ranks=num_ranks)
        return [_mapped(output) for output in outputs][-1]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Driver(tmp_path_factory.mktemp("scripts"), process)
        process.kill()


def _mapped(output: str) -> list[str]:
    assert output.endswith("exit 0"), output
    (line,) = (line for line in output.splitlines() if line.startswith("MAPPED "))
    return json.loads(line.removeprefix("MAPPED "))


def test_one_device(driver: Driver) -> None:
    mapped = driver.check(_SINGLE)
    assert len(mapped) == len(set(mapped))
    assert {
        "torch.cuda.is_available",
        "torch.cuda.set_device",
        "device='cuda'",
        ".to('cuda')",
        ".cuda()",
        "pinned memory",
        "torch.Generator(device='cuda')",
        "torch.cuda.HalfTensor",
        "the default device 'cuda'",
        "DataParallel over several GPUs",
    } == set(mapped)


def test_mixed_precision(driver: Driver) -> None:
    mapped = driver.check(_AMP)
    assert "float16 autocast, done in bfloat16" in mapped
    assert "autocast on 'cuda'" in mapped
    assert "GradScaler on 'cuda'" in mapped


def test_checkpoints(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        state = {"weight": torch.ones(2, 4), "bias": torch.zeros(2)}
        random, where = torch.Generator().get_state(), torch.device("cuda:0")
        torch.save({"model": state, "random": random, "where": where}, path)
    assert "a checkpoint on 'cuda'" in driver.check(_CHECKPOINT, str(path))
    assert torch.load(path)["model"]["weight"].sum() == 8  # written by the script; without mapping


def test_figures_of_speed_and_memory(driver: Driver) -> None:
    mapped = driver.check(_FIGURES)
    assert "torch.cuda.synchronize" in mapped
    assert "torch.cuda.mem_get_info" in mapped


def test_a_seed_of_the_device(driver: Driver) -> None:
    own = "a seed of its own for the device"
    (output,) = driver.run(_SAME_SEED, force=True)
    assert own not in _mapped(output)
    for script in (_OWN_SEED, _SEED_BEFORE):
        (output,) = driver.run(script, force=True)
        assert own in _mapped(output)


@pytest.mark.distributed
def test_two_ranks(driver: Driver) -> None:
    mapped = driver.check(_DDP, num_ranks=2)
    assert "the backend nccl" in mapped
    assert "device_ids of DistributedDataParallel" in mapped
    assert "SyncBatchNorm" in mapped


@pytest.mark.distributed
def test_sharded_over_a_mesh(driver: Driver) -> None:
    assert "a device mesh of 'cuda'" in driver.check(_FSDP2, num_ranks=2)


def test_a_script_for_the_cpu_is_left_alone(driver: Driver) -> None:
    script = """
import torch, torch.nn as nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
device = torch.device("cpu")
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).to(device)
optimizer = torch.optim.Adam(model.parameters())
for x in DataLoader(torch.rand(16, 4), batch_size=4, shuffle=True):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x.to(device)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("sum", sum(float(p.detach().double().sum()) for p in model.parameters()))
"""
    (plain,) = driver.run(script, force=False)
    (forced,) = driver.run(script, force=True)
    assert _mapped(forced) == []
    assert plain.splitlines()[0].startswith("sum")
    assert plain.splitlines()[0] == forced.splitlines()[0]
