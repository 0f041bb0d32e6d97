from dataclasses import replace
from pathlib import Path

import numpy as np

from observed import REPLAYS, FakeReplay, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.rank_dependent_gradients import RankDependentGradients, is_unexplained
from scaleproof.evidence.observations import RandomSource
from scaleproof.verdict.answers import Finding, Standing
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.run_check import run_check
from scaleproof.verdict.verdict import judge_study

CHECKED = FakeScript(is_checked=True, replays=REPLAYS)


def finding(folder: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = RankDependentGradients(**thresholds)  # type: ignore[arg-type]
    return run_check(check, build_observed(folder, script), blocks=True)


def unlike_rank_0(
    steps: tuple[int, ...], *, size: float = 1.0, factor: float = 1.0, drawn: bool = False
) -> FakeScript:
    """Rank 1's gradient has a part of its own that no replay reproduces, at these steps."""

    def alone(script: FakeScript, step: int) -> np.ndarray:
        own = script.local(script, 1, step)
        other = np.random.default_rng(step).normal(size=own.shape)
        return factor * (own + size * (step in steps) * other)

    def joint(script: FakeScript, step: int) -> np.ndarray:
        mean = np.mean([script.local(script, rank, step) for rank in range(script.num_ranks)], 0)
        return mean + np.random.default_rng(step).normal(size=mean.shape)

    sources = (RandomSource.TORCH,) if drawn else ()
    replays = {
        "union": FakeReplay(gradient=joint),
        "last-rank": FakeReplay(gradient=alone, drawn=lambda step: sources),
    }
    return replace(CHECKED, replays=replays)


def test_gradients_that_weights_explain_need_no_other_look(tmp_path: Path):
    study = build_observed(tmp_path, CHECKED)

    assert not is_unexplained(study)
    found = run_check(RankDependentGradients(), study, blocks=True)
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "the last rank's items alone" in found.sentence


def test_gradients_that_no_weights_explain_need_one(tmp_path: Path):
    assert is_unexplained(build_observed(tmp_path, unlike_rank_0((1, 2, 3))))


def test_a_rank_that_does_what_rank_0_does_passes_whatever_the_factor(tmp_path: Path):
    found = finding(tmp_path, unlike_rank_0((), factor=3.0))

    assert found.outcome is Outcome.PASS
    assert "at 3 steps" in found.sentence


def test_a_rank_that_does_something_else_is_named_with_the_line(tmp_path: Path):
    found = finding(tmp_path, unlike_rank_0((1, 2, 3)))

    assert found.outcome is Outcome.FAIL
    assert found.sentence.startswith(
        "observed-seed0, step 1, SGD of train.py:41, the backward at train.py:61: the gradient of "
        "rank 1 is not what the same script computes on the same items as rank 0: "
    )
    assert "at 3 of 3 compared steps" in found.sentence
    assert "if rank == 0" in found.remedy


def test_it_rejects_and_the_coupling_is_its_consequence(tmp_path: Path):
    verdict = judge_study(build_observed(tmp_path, unlike_rank_0((1, 2, 3))), Profile())

    assert verdict.standing is Standing.NOT_SOUND
    (found,) = [f for f in verdict.findings if f.check == RankDependentGradients.name]
    assert found.consequences == ("batch-coupled-operation",)


def test_one_step_is_too_little_evidence(tmp_path: Path):
    found = finding(tmp_path, replace(unlike_rank_0((1,)), probed_steps=(1,)))

    assert found.outcome is Outcome.UNDECIDED
    assert "--steps" in found.remedy


def test_steps_with_random_numbers_tell_nothing(tmp_path: Path):
    found = finding(tmp_path, unlike_rank_0((1, 2, 3), drawn=True))

    assert found.outcome is Outcome.UNDECIDED
    assert "random numbers" in found.sentence


def test_the_thresholds_themselves_still_pass(tmp_path: Path):
    script = unlike_rank_0((1, 2, 3), size=0.5)
    steps = finding(tmp_path / "1", script).measurement["steps"]
    rest, of_tensor = (max(step[name] for step in steps) for name in ("rest", "tensor_rest"))

    at_both = {"max_rest": rest, "max_tensor_rest": of_tensor}
    assert finding(tmp_path / "2", script, **at_both).outcome is Outcome.PASS
    below = {**at_both, "max_tensor_rest": 0.5 * of_tensor}
    assert finding(tmp_path / "5", script, **below).outcome is Outcome.FAIL
    script = replace(unlike_rank_0((3, 6, 9)), probed_steps=tuple(range(1, 13)))
    assert finding(tmp_path / "3", script, min_share=0.25).outcome is Outcome.FAIL
    assert finding(tmp_path / "4", script, min_share=0.26).outcome is Outcome.UNDECIDED
