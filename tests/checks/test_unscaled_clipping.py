from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.unscaled_clipping import UnscaledClipping
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.observations import ProbeRecord, StepFlag
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

SCALE = 65536.0


def finding(path: Path, script: FakeScript, **thresholds: float) -> Finding:
    return run_check(UnscaledClipping(**thresholds), build_observed(path, script), blocks=True)


def scaled(
    *, norm: float = 3e5, scale: float = SCALE, flags: int = StepFlag.SCALED | StepFlag.CLIPPED
) -> dict[str, Any]:
    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(flags)
        if flags & StepFlag.CLIPPED:
            table["clip_norm"], table["clip_max"] = norm, 1.0

    def change(rank: int, record: Any) -> Any:
        if isinstance(record, ProbeRecord):
            return msgspec.structs.replace(record, grad_scale=scale)
        if isinstance(record, CloseUpRecord):
            return msgspec.structs.replace(record, clip_where="train.py:63")
        return record

    return {"is_checked": True, "steps": steps, "change": change}


def test_clipping_after_unscaling_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, FakeScript(**scaled(norm=5.0)))

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "Gradients were unscaled before they were clipped, at 6 steps of all ranks."
    )


def test_clipping_scaled_gradients_fails_and_names_line_and_scale(tmp_path: Path) -> None:
    found = finding(tmp_path, FakeScript(is_clipped_scaled=True, **scaled()))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, ranks 0 and 1, step 1: gradients were clipped at train.py:63 while they "
        "were multiplied by the loss scale, 65,536 (SGD of train.py:41): a norm of 3e+05 was "
        "measured, 1 allowed; so at 3 steps."
    )
    assert "unscale_" in found.remedy


def one_rank(change: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
    def changed(rank: int, record: Any) -> Any:
        record = change(rank, record)
        is_look = isinstance(record, CloseUpRecord)
        return msgspec.structs.replace(record, is_clipped_scaled=rank == 1) if is_look else record

    return changed


def test_a_single_rank_is_named(tmp_path: Path) -> None:
    settings = scaled()
    script = FakeScript(**settings | {"change": one_rank(settings["change"])})

    assert "rank 1, step 1" in finding(tmp_path, script).sentence


@pytest.mark.parametrize(("norm", "outcome"), [(1.0, "pass"), (1.0001, "fail"), (np.nan, "fail")])
def test_a_limit_that_is_not_reached_changes_nothing(
    tmp_path: Path, norm: float, outcome: str
) -> None:
    """A norm that is not known, of shards, may have been above it."""
    script = FakeScript(is_clipped_scaled=True, **scaled(norm=norm))

    assert finding(tmp_path, script).outcome == outcome


def test_exactly_at_the_largest_scale_passes(tmp_path: Path) -> None:
    script = FakeScript(is_clipped_scaled=True, **scaled(scale=8.0))

    assert finding(tmp_path / "at", script, max_scale=8.0).outcome is Outcome.PASS
    below = float(np.nextafter(8.0, 0))
    assert finding(tmp_path / "below", script, max_scale=below).outcome is Outcome.FAIL


def test_a_scale_of_one_is_harmless(tmp_path: Path) -> None:
    script = FakeScript(is_clipped_scaled=True, **scaled(scale=1.0))

    assert finding(tmp_path, script).outcome is Outcome.PASS


def test_scaled_steps_without_clipping_pass(tmp_path: Path) -> None:
    found = finding(tmp_path, FakeScript(**scaled(flags=StepFlag.SCALED)))

    assert found.outcome is Outcome.PASS
    assert found.sentence == "6 scaled steps without clipping."


def test_without_a_scaler_or_a_closer_look_it_is_not_asked(tmp_path: Path) -> None:
    scripts = FakeScript(is_checked=True), FakeScript(**scaled() | {"is_checked": False})
    for number, script in enumerate(scripts):
        found = finding(tmp_path / str(number), script)
        assert found.outcome is Outcome.NOT_APPLICABLE
        assert not found.is_evidence_missing
