"""A plan is read as it was written; a damaged one is an error."""

from pathlib import Path

import msgspec
import pytest

from scaleproof.evidence.writer import write_json
from scaleproof.observe.replay.plan import PlannedStep, ReplayPlan, plan_file, read_plan

PLAN = ReplayPlan(
    num_ranks=2,
    steps=(PlannedStep(optimizer=1, num_backwards=3),),
    training=((0, 0), (0, 2)),
    microbatches=(((0, 0, 0), (0, 0, 1)),),
    lengths={"train.py:3": 7},
    continues=True,
    is_shared=True,
)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(plan_file(tmp_path), PLAN)
    assert read_plan(tmp_path) == PLAN


@pytest.mark.parametrize("text", [b"", b"{", b'{"num_ranks": "two"}', b"\x80\x04K\x01."])
def test_a_damaged_plan_is_an_error(tmp_path: Path, text: bytes) -> None:
    plan_file(tmp_path).write_bytes(text)
    with pytest.raises(msgspec.DecodeError):
        read_plan(tmp_path)
