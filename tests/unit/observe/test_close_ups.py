"""What a checked process records of its steps: one process each, checked as a rank is."""

import os
import subprocess
import sys

import numpy as np
import pytest

from scaleproof.evidence.close_ups import CloseUpRecord, CouplingRecord
from scaleproof.evidence.observations import ProbeRecord, RandomSource
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Rank, load_run
from scaleproof.launch.environment import observed_environment
from scaleproof.observe.replay.asked import CheckFacts

_SCRIPT = """
import random
import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
norm = nn.BatchNorm1d(4)
model = nn.Sequential(nn.Linear(3, 4), norm, nn.Dropout(0.5), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
other = torch.optim.SGD([model[0].weight], lr=0.1)
x, y = torch.randn(8, 3), torch.ones(8, 1)
scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

def loss():
    return nn.functional.mse_loss(model(x), y)

def step(*optimizers):
    for one in optimizers or (optimizer,):
        one.step()
    optimizer.zero_grad()

# 1: three backwards, a third each, and clipping
for _ in range(3):
    (loss() / 3).backward()
nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # CLIPS
step()

# 2: clipping while still scaled, of some only
scaler.scale(loss()).backward()  # SCALES
nn.utils.clip_grad_norm_(list(model[0].parameters()), 1.0)
scaler.step(optimizer)
scaler.update()
optimizer.zero_grad()

# 3: clipping after unscale_, given a generator, twice
scaler.scale(loss()).backward()
scaler.unscale_(optimizer)
nn.utils.clip_grad_value_((p for p in model.parameters()), 1.0)
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
scaler.step(optimizer)
scaler.update()
optimizer.zero_grad()

# 4: draws of its own, after it was given a batch
(x, y), = DataLoader(TensorDataset(x, y), 8)
np.random.rand()
random.random()
loss().backward()
step()

# 5: nothing of the above
loss().backward()
step()

# 6: backward inside a backward counts once
given = x.clone().requires_grad_()
checkpoint(lambda v: model(v).square().mean(), given, use_reentrant=True).backward()
step()

# 7 and 8: two optimizers, the second of what the first has used
loss().backward()
step(optimizer, other)
"""

FLOAT64 = np.dtype(np.float64)


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> Rank:
    folder = tmp_path_factory.mktemp("close")
    script, paths = folder / "train.py", RunPaths(folder / "observed-seed0")
    script.write_text(_SCRIPT)
    facts = CheckFacts(
        replay=None, material=str(paths.material), num_steps=0, num_kept=20, forced_devices=0
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **observed_environment(paths, every=1, pin=False, check=facts)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    run = load_run(paths, Arm(name="observed", role="candidate", strategy="", num_devices=0), 0)
    return run.ranks[0]


@pytest.fixture
def looks(rank: Rank) -> list[CloseUpRecord]:
    found = list(rank.of(CloseUpRecord))
    assert [look.step for look in found] == list(range(1, 9))
    return found


def line_of(mark: str) -> str:
    lines = _SCRIPT.splitlines()
    (number,) = (index for index, line in enumerate(lines, 1) if mark in line)
    return f"train.py:{number}"


def probe_of(rank: Rank, step: int) -> ProbeRecord:
    return next(record for record in rank.of(ProbeRecord) if record.step == step)


def test_each_backward_is_looked_at_by_itself(rank: Rank, looks: list[CloseUpRecord]) -> None:
    backwards = rank.array(looks[0].backwards, FLOAT64)
    local = rank.array(probe_of(rank, 1).values, FLOAT64)[:, 0]
    assert backwards.shape[:2] == (3, 6)
    assert np.allclose(backwards.sum(axis=0), local, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert [len(rank.array(look.backwards, FLOAT64)) for look in looks] == [3, 1, 1, 1, 1, 1, 1, 0]
    assert [arrival.backward for arrival in looks[0].arrivals] == [0, 1, 2]
    assert [arrival.weight for arrival in looks[0].arrivals] == [pytest.approx(1 / 3)] * 3


def test_what_clipping_was_given(rank: Rank, looks: list[CloseUpRecord]) -> None:
    first = looks[0]
    assert first.before_clipping is not None
    assert first.before_clipping_norms is not None
    local, used = rank.array(probe_of(rank, 1).values, FLOAT64).transpose(1, 0, 2)
    given = rank.array(first.before_clipping, FLOAT64)
    assert np.allclose(given, local, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert np.linalg.norm(np.nan_to_num(used)) < 2e-3
    norms = rank.array(first.before_clipping_norms, FLOAT64)
    assert np.allclose(norms, np.linalg.norm(np.nan_to_num(given), axis=1), rtol=1e-4)
    assert first.clip_where == line_of("CLIPS")
    assert first.clipped_tensors == tuple(range(6))
    assert not first.is_clipped_scaled


def test_clipping_of_scaled_gradients_is_seen(rank: Rank, looks: list[CloseUpRecord]) -> None:
    assert [look.is_clipped_scaled for look in looks] == [False, True, *[False] * 6]
    assert looks[1].clipped_tensors == (0, 1)
    assert looks[1].backward_where == line_of("SCALES")
    # The scale is taken out of what arrived at the loss, whoever clipped what.
    assert [a.weight for look in looks[1:3] for a in look.arrivals] == [pytest.approx(1.0)] * 2
    assert probe_of(rank, 2).grad_scale == 64.0


def test_the_first_clipping_of_a_step_counts(rank: Rank, looks: list[CloseUpRecord]) -> None:
    given = looks[2].before_clipping
    assert given is not None
    local = rank.array(probe_of(rank, 3).values, FLOAT64)[:, 0]  # still scaled
    assert np.allclose(rank.array(given, FLOAT64) * 64, local, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_the_script_draws_is_named_and_dropout_is_not(looks: list[CloseUpRecord]) -> None:
    drawn = [set(look.drawn) for look in looks]
    assert drawn[3] == {RandomSource.NUMPY, RandomSource.PYTHON}
    assert drawn[4] == set()
    assert RandomSource.TORCH not in set.union(*drawn)


def test_a_step_without_clipping_has_none(looks: list[CloseUpRecord]) -> None:
    for look in looks[3:]:
        assert (look.before_clipping, look.clipped_tensors, look.clip_where) == (None, (), "")


def test_both_optimizers_have_looks_of_their_own(looks: list[CloseUpRecord]) -> None:
    assert [look.optimizer for look in looks] == [0] * 7 + [1]


def test_what_couples_the_items_of_a_batch_is_named(rank: Rank) -> None:
    (record,) = rank.of(CouplingRecord)
    assert record.modules == (("1", "BatchNorm1d"),)
