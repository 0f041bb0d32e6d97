"""A bias before BatchNorm has a gradient that is nothing but rounding: it does not move, which is
no fault."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from observed import NAMES, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.frozen_parameters import FrozenParameters
from scaleproof.evidence.observations import Moment
from scaleproof.evidence.records import TensorKind
from scaleproof.verdict.run_check import run_check

BIAS = "body.bias"


def outcome(folder: Path, size: float) -> Outcome:
    """``size``: of the gradient of the bias, which keeps its bytes; the others' is about 1."""
    row = NAMES.index(BIAS)

    def local(script: FakeScript, rank: int, step: int) -> NDArray[np.float64]:
        values = FakeScript().local(script, rank, step)
        values[row] *= size
        return values

    def state(
        script: FakeScript, rank: int, steps_done: int, moment: Moment
    ) -> dict[tuple[TensorKind, str], NDArray[np.float64]]:
        moving = FakeScript().state(script, rank, steps_done, moment)
        at_rest = FakeScript().state(script, rank, 0, moment)
        key = TensorKind.PARAMETER, BIAS
        return {**moving, key: at_rest[key]}

    study = build_observed(folder, FakeScript(local=local, state=state))
    return run_check(FrozenParameters(), study, blocks=True).outcome


def test_a_real_gradient_without_an_effect_is_a_fault(tmp_path: Path) -> None:
    assert outcome(tmp_path, 1.0) is Outcome.FAIL


def test_a_gradient_below_the_rounding_of_the_weight_is_none(tmp_path: Path) -> None:
    assert outcome(tmp_path, 1e-9) is Outcome.PASS
