"""What schedulers are made for is found in torch's, in Hugging Face's and in users' own, and a real
process records how often each was stepped."""

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from observing import observe
from scaleproof.evidence.schedules import ScheduleRecord
from scaleproof.observe.schedules import plan_of

total_steps = 70
"""What the schedule of a plain script looks up in its module."""


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)


def of_a_closure(optimizer: Any, num_training_steps: int) -> Any:
    def rate(step: int) -> float:
        return max(0.0, 1 - step / num_training_steps)

    return lr_scheduler.LambdaLR(optimizer, rate)


def of_a_partial(optimizer: Any, **settings: Any) -> Any:
    def rate(step: int, *, num_warmup_steps: int, num_training_steps: int | None) -> float:
        return 1.0

    return lr_scheduler.LambdaLR(optimizer, functools.partial(rate, **settings))


def warmed_up(optimizer: Any, last: Any, milestone: int = 5) -> Any:
    warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=milestone)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, last], milestones=[milestone])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=30), (30, "T_max")),
        (lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=40), (40, "total_steps")),
        (
            lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, epochs=4, steps_per_epoch=5),
            (20, "total_steps"),
        ),
        (lambda o: lr_scheduler.PolynomialLR(o, total_iters=50), (50, "total_iters")),
        (lambda o: of_a_closure(o, 60), (60, "num_training_steps")),
        (
            lambda o: of_a_partial(o, num_warmup_steps=5, num_training_steps=80),
            (80, "num_training_steps"),
        ),
        (
            lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 - step / total_steps),
            (70, "total_steps"),
        ),
        (
            lambda o: warmed_up(o, lr_scheduler.CosineAnnealingLR(o, T_max=25)),
            (30, "milestones + T_max"),
        ),
        (
            lambda o: lr_scheduler.ChainedScheduler(
                [
                    lr_scheduler.LinearLR(o, total_iters=5),
                    lr_scheduler.CosineAnnealingLR(o, T_max=30),
                ]
            ),
            (30, "T_max"),
        ),
    ],
)
def test_a_plan_is_found(make: Any, expected: tuple[int, str]) -> None:
    assert plan_of(make(sgd())) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 10),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10),
        lambda o: lr_scheduler.ReduceLROnPlateau(o),
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.95**epoch),
        lambda o: of_a_partial(o, num_warmup_steps=5, num_training_steps=None),
        lambda o: warmed_up(o, lr_scheduler.ExponentialLR(o, 0.9)),
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.LinearLR(o, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)]
        ),
    ],
)
def test_what_has_no_end_has_no_plan(make: Any) -> None:
    assert plan_of(make(sgd())) == (None, "")


SCRIPT = """
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR, StepLR

model = torch.nn.Linear(4, 1)
other = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
unused = torch.optim.SGD(other.parameters(), lr=0.01)
twice = CosineAnnealingLR(optimizer, T_max=12)
by_epoch = StepLR(optimizer, 1)
parts = [LinearLR(unused, total_iters=2), CosineAnnealingLR(unused, T_max=10)]
whole = SequentialLR(unused, parts, milestones=[2])
for step in range(12):
    loss = model(torch.randn(8, 4)).square().mean() + other(torch.randn(8, 4)).square().mean()
    loss.backward()
    for one in (optimizer, unused):
        one.step()
        one.zero_grad()
    twice.step()
    twice.step()
    whole.step()
    if step % 6 == 5:
        by_epoch.step()
del twice
"""


def test_a_process_records_its_schedulers(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    observed = observe(tmp_path, [sys.executable, str(script)])

    (rank,) = observed.study.runs["observed", 0].ranks
    twice, by_epoch, whole = rank.of(ScheduleRecord)
    assert (twice.kind, twice.where, twice.optimizer) == ("CosineAnnealingLR", "train.py:9", 0)
    assert (twice.num_planned, twice.plan_source, twice.is_decaying) == (12, "T_max", True)
    assert (twice.num_done, twice.num_calls, twice.num_moments) == (24, 24, 12)
    assert (twice.num_optimizer_steps, twice.over_at_step) == (12, 6)
    assert (by_epoch.num_planned, by_epoch.num_calls, by_epoch.num_moments) == (None, 2, 2)
    assert (whole.kind, whole.where, whole.optimizer) == ("SequentialLR", "train.py:12", 1)
    assert (whole.num_planned, whole.num_done, whole.num_calls) == (12, 12, 12)
    assert whole.over_at_step == 12
