from dataclasses import replace
from pathlib import Path

import numpy as np

from observed import REPLAYS, FakeReplay, FakeScript, build_observed
from scaleproof.checks.batch_coupled_operation import BatchCoupledOperation
from scaleproof.checks.check import Outcome
from scaleproof.verdict.answers import Finding, Standing
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.run_check import run_check
from scaleproof.verdict.verdict import judge_study

SOUND = FakeScript(is_checked=True, replays=REPLAYS)
NORMS = (("layer1.bn1", "BatchNorm2d"), ("layer1.bn2", "BatchNorm2d"), ("bn", "BatchNorm1d"))


def finding(folder: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = BatchCoupledOperation(**thresholds)  # type: ignore[arg-type]
    return run_check(check, build_observed(folder, script), blocks=False)


def contrastive(steps: tuple[int, ...]) -> FakeScript:
    """One device's gradient is something else at these steps."""

    def gradient(script: FakeScript, step: int) -> np.ndarray:
        mean = np.mean([script.local(script, rank, step) for rank in range(script.num_ranks)], 0)
        return mean + (step in steps) * np.random.default_rng(step).normal(size=mean.shape)

    return replace(SOUND, replays={"union": FakeReplay(gradient=gradient)})


def test_a_weighted_sum_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, SOUND)

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "At 3 compared steps one device's gradient is a weighted sum of those of the ranks."
    )


def test_what_no_weights_explain_is_named_with_the_line(tmp_path: Path) -> None:
    found = finding(tmp_path, contrastive((1, 2, 3)))

    assert found.outcome is Outcome.FAIL
    assert found.sentence.startswith(
        "observed-seed0, step 1, SGD of train.py:41, the backward at train.py:61: one device's "
        "gradient on the items of all ranks is no weighted sum of the gradients of the ranks ("
    )
    assert "at 3 of 3 compared steps: an operation couples the items" in found.sentence
    assert "all_gather" in found.remedy


def test_it_only_advises(tmp_path: Path) -> None:
    verdict = judge_study(build_observed(tmp_path, contrastive((1, 2, 3))), Profile())

    assert BatchCoupledOperation.name in Profile().advisory
    assert verdict.standing is Standing.SOUND
    (found,) = [f for f in verdict.findings if f.check == BatchCoupledOperation.name]
    assert (found.outcome, found.blocks) == (Outcome.FAIL, False)


def test_one_step_is_too_little_evidence(tmp_path: Path) -> None:
    found = finding(tmp_path, replace(contrastive((1,)), probed_steps=(1,)))

    assert found.outcome is Outcome.UNDECIDED
    assert "--steps" in found.remedy


def test_exactly_at_the_share_is_named_and_below_it_passes(tmp_path: Path) -> None:
    script = replace(contrastive((3, 6, 9)), probed_steps=tuple(range(1, 13)))

    assert finding(tmp_path / "1", script).outcome is Outcome.FAIL
    found = finding(tmp_path / "2", script, min_share=0.26)
    assert found.outcome is Outcome.PASS
    assert "Something else differs at 3 of 12 compared steps." in found.sentence


def test_batch_normalisation_over_few_items_is_named(tmp_path: Path) -> None:
    found = finding(tmp_path, replace(SOUND, coupled=NORMS))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0: layer1.bn1 (BatchNorm2d), layer1.bn2 (BatchNorm2d) and 1 more normalise "
        "over the 4 items of a rank's own batch, fewer than 16: noisier than on one device with "
        "the items of all ranks."
    )
    assert "SyncBatchNorm" in found.remedy


def test_exactly_enough_items_pass_with_a_word(tmp_path: Path) -> None:
    script = replace(SOUND, coupled=NORMS[:1])

    found = finding(tmp_path / "1", script, min_items=4)
    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "layer1.bn1 (BatchNorm2d) normalises over each rank's own batch of 4 items; nothing else "
        "couples the items of a batch."
    )
    assert finding(tmp_path / "2", script, min_items=5).outcome is Outcome.FAIL


def test_the_items_are_those_of_a_microbatch(tmp_path: Path) -> None:
    script = replace(SOUND, coupled=NORMS, batch_size=8, num_backwards=4)

    assert "over the 2 items" in finding(tmp_path, script).sentence


def test_modules_are_known_without_a_replay(tmp_path: Path) -> None:
    found = finding(tmp_path / "1", replace(SOUND, coupled=NORMS, replays={}))
    assert found.outcome is Outcome.FAIL
    found = finding(tmp_path / "2", replace(SOUND, replays={}))
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert not found.is_evidence_missing


def test_without_a_loader_the_number_of_items_is_not_known(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        table["num_samples"] = -1

    found = finding(tmp_path, replace(SOUND, coupled=NORMS, steps=steps))

    assert found.outcome is Outcome.PASS
    assert "over each rank's own batch; nothing else" in found.sentence


def test_observing_alone_does_not_tell(tmp_path: Path) -> None:
    found = finding(tmp_path, FakeScript())

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "closer look" in found.sentence


def test_a_tensor_that_is_coupled_alone_is_named(tmp_path: Path) -> None:
    """The gate of a mixture of experts, say: a hundredth of the whole gradient."""
    sizes = np.array([1.0, 1.0, 1e-2])[:, None]

    def one(script: FakeScript, step: int) -> np.ndarray:
        locals_ = [script.local(script, rank, step) for rank in range(script.num_ranks)]
        mean = np.mean(locals_, axis=0)
        mean[2] *= 1 + 0.2 * np.random.default_rng([step, 9]).normal(size=mean.shape[1])
        return mean

    script = replace(
        SOUND,
        local=lambda script, rank, step: FakeScript().local(script, rank, step) * sizes,
        replays={
            "union": FakeReplay(gradient=one),
            "reordered": FakeReplay(gradient=one, noise=1e-7),
        },
    )
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.FAIL
    assert "one device's gradient of tensor 'head.weight' on the items of" in found.sentence
