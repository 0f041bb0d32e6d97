from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from observed import REPLAYS, FakeReplay, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.misweighted_gradients import MisweightedGradients
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.close_ups import ReplayName
from scaleproof.evidence.observations import ProbeRecord
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.profile import Profile
from scaleproof.verdict.run_check import run_check
from scaleproof.verdict.verdict import judge_study

Gradients = list[np.ndarray]
Weights = Callable[[int], tuple[float, ...]]
SOUND = FakeScript(is_checked=True, replays=REPLAYS)


def finding(folder: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = MisweightedGradients(**thresholds)  # type: ignore[arg-type]
    return run_check(check, build_observed(folder, script), blocks=True)


def reference(*weights: float, at: Callable[[int], bool] | None = None) -> FakeReplay:
    """One device weights the ranks' backwards so at some steps, and alike at the others."""

    def gradient(script: FakeScript, step: int) -> np.ndarray:
        parts = [script.backwards(script, rank, step) for rank in range(script.num_ranks)]
        sources = np.concatenate(parts)
        alike = np.full(len(sources), 1 / script.num_ranks)
        own = weights if at is None or at(step) else alike
        return np.tensordot(own, sources, axes=1)

    return FakeReplay(gradient=gradient)


def replays(*weights: float, at: Callable[[int], bool] | None = None) -> dict[
    ReplayName, FakeReplay
]:  # fmt: skip
    union = reference(*weights, at=at)
    return {"union": union, "reordered": replace(union, noise=1e-7)}


def used(*weights: float) -> Callable[[FakeScript, int, int, Gradients], np.ndarray]:
    return lambda script, rank, step, locals_: np.tensordot(weights, locals_, axes=1)


def unknown_loss(rank: int, record: AnyRecord) -> AnyRecord:
    if isinstance(record, ProbeRecord):
        return msgspec.structs.replace(record, loss_reduction="unknown")
    return record


def test_agreement_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, SOUND)

    assert found.outcome is Outcome.PASS
    assert found.sentence.startswith(
        "All 2 ranks count as they do on one device with the same items, at 3 compared steps "
        "(largest difference "
    )


def without_head(script: FakeScript, step: int) -> np.ndarray:
    gradient = np.mean([script.local(script, rank, step) for rank in range(2)], axis=0)
    gradient[2] = np.nan
    return gradient


def test_a_tensor_that_only_the_ranks_have_a_gradient_of_fails(tmp_path: Path) -> None:
    union = FakeReplay(gradient=without_head)
    script = replace(SOUND, replays={"union": union, "reordered": replace(union, noise=1e-7)})
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.FAIL
    assert (
        "tensor 'head.weight' has a gradient on one side only, on the ranks or on one device with "
        "the same items, while the others agree, at 3 of 3 compared steps"
    ) in found.sentence


def test_a_tensor_that_only_one_device_has_a_gradient_of_fails(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(FakeScript(), rank, step)
        gradient[2] = np.nan
        return gradient

    def whole(script: FakeScript, step: int) -> np.ndarray:
        return np.mean([FakeScript().local(FakeScript(), r, step) for r in range(2)], axis=0)

    union = FakeReplay(gradient=whole)
    both = {"union": union, "reordered": replace(union, noise=1e-7)}
    found = finding(tmp_path, replace(SOUND, local=local, replays=both))

    assert found.outcome is Outcome.FAIL
    assert "tensor 'head.weight' has a gradient on one side only" in found.sentence


def test_a_tensor_without_a_gradient_on_both_sides_is_no_fault(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(FakeScript(), rank, step)
        gradient[2] = np.nan
        return gradient

    assert finding(tmp_path, replace(SOUND, local=local)).outcome is Outcome.PASS


def test_masked_tokens_fail_with_both_weights(tmp_path: Path) -> None:
    """Without a replay nothing is wrong with weights of a half."""
    script = replace(SOUND, replays=replays(0.508, 0.492))

    found = finding(tmp_path / "1", script)
    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, step 1, SGD of train.py:41, the backward at train.py:61: the ranks count "
        "0.5 and 0.5 in the gradient that was used, and 0.508 and 0.492 on one device with the "
        "same items, at 3 of 3 compared steps."
    )
    assert "multiply by the number of ranks" in found.remedy
    assert finding(tmp_path / "2", replace(script, replays={})).outcome is Outcome.PASS


def test_agreement_overrules_what_weights_alone_would_say(tmp_path: Path) -> None:
    """Weights that follow tokens nobody recorded, changing or not."""
    script = replace(SOUND, final=used(0.7, 0.3))

    assert finding(tmp_path / "1", script).outcome is Outcome.FAIL
    sound = replace(script, replays=replays(0.7, 0.3))
    assert finding(tmp_path / "2", sound).outcome is Outcome.PASS
    assert finding(tmp_path / "3", replace(sound, replays={})).outcome is Outcome.FAIL


def test_a_sum_over_ranks_of_a_loss_nobody_knows_is_decided(tmp_path: Path) -> None:
    script = replace(SOUND, final=used(1, 1), change=unknown_loss, replays=replays(1, 1))

    assert finding(tmp_path / "1", script).outcome is Outcome.PASS
    assert finding(tmp_path / "2", replace(script, replays={})).outcome is Outcome.UNDECIDED


def test_a_second_average_stays_a_fault_of_this_check_alone(tmp_path: Path) -> None:
    script = replace(SOUND, final=used(0.25, 0.25))
    verdict = judge_study(build_observed(tmp_path, script), Profile())
    found = {f.check: f for f in verdict.findings}

    assert found["misweighted-gradients"].outcome is Outcome.FAIL
    assert "averaged twice" in found["misweighted-gradients"].sentence
    assert found["misscaled-gradients"].consequence_of == ("misweighted-gradients",)


def test_a_microbatch_is_named(tmp_path: Path) -> None:
    whole = reference(0.8, 0.2, 0.8, 0.2)
    script = replace(SOUND, num_backwards=2, replays={**REPLAYS, "whole-step": whole})
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.FAIL
    assert (
        "microbatch 1 of rank 0 counts 0.25 in the gradient that was used, and 0.4 on one device"
        in found.sentence
    )


def test_one_tensor_is_named(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mean = np.mean(locals_, axis=0)
        mean[1] = locals_[0][1]  # rank 0 keeps its own, and sends it to all
        return mean

    found = finding(tmp_path, replace(SOUND, final=final))

    assert found.outcome is Outcome.FAIL
    assert (
        "in tensor 'body.bias' the ranks count 1 and 0 in the gradient that was used, and 0.5 and "
        "0.5 on one device with the same items, while 2 tensors agree"
        in found.sentence.replace("6.66e-17", "0")
    )


def test_a_ragged_batch_at_the_end_is_a_remark(tmp_path: Path) -> None:
    ragged = replays(0.75, 0.25, at=lambda step: step % 6 == 0)
    script = replace(SOUND, probed_steps=tuple(range(1, 13)), replays=ragged)
    found = finding(tmp_path / "1", script)

    assert found.outcome is Outcome.PASS
    assert "Not at steps 6 and 12: there, the ranks count 0.5 and 0.5" in found.sentence
    assert finding(tmp_path / "2", script, min_share=2 / 12).outcome is Outcome.FAIL


def test_one_compared_step_is_too_few(tmp_path: Path) -> None:
    found = finding(tmp_path, replace(SOUND, probed_steps=(1,), replays=replays(0.8, 0.2)))

    assert found.outcome is Outcome.UNDECIDED


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    script = replace(SOUND, replays=replays(0.625, 0.375))

    assert finding(tmp_path / "1", script, reference_tolerance=0.25 + 1e-6).outcome is Outcome.PASS
    assert finding(tmp_path / "2", script, reference_tolerance=0.25 - 1e-6).outcome is Outcome.FAIL


def test_what_can_not_be_compared_is_judged_as_without_a_replay(tmp_path: Path) -> None:
    def other(script: FakeScript, step: int) -> np.ndarray:
        return np.random.default_rng(step).normal(size=(3, 64))

    coupled: dict[ReplayName, FakeReplay] = {"union": FakeReplay(gradient=other)}
    sound = finding(tmp_path / "1", replace(SOUND, replays=coupled))
    uneven = finding(tmp_path / "2", replace(SOUND, replays=coupled, final=used(0.8, 0.2)))

    assert (sound.outcome, uneven.outcome) == (Outcome.PASS, Outcome.FAIL)
    assert "count alike" in sound.sentence


def test_uneven_batches_are_one_finding_with_the_loader_as_its_root(tmp_path: Path) -> None:
    def sizes(rank: int, table: np.ndarray) -> None:
        table["num_samples"] = (6, 2)[rank]

    script = replace(SOUND, steps=sizes, change=unknown_loss, replays=replays(0.75, 0.25))
    verdict = judge_study(build_observed(tmp_path / "1", script), Profile())
    found = {f.check: f for f in verdict.findings}
    assert found["uneven-batches"].outcome is Outcome.FAIL
    assert found["misweighted-gradients"].consequence_of == ("uneven-batches",)
    assert "(batches of 6 and 2 samples)" in found["misweighted-gradients"].sentence

    # A loss that is divided by the samples of all ranks makes up for it.
    sound = replace(script, replays=replays(0.5, 0.5))
    verdict = judge_study(build_observed(tmp_path / "2", sound), Profile())
    found = {f.check: f for f in verdict.findings}
    assert found["uneven-batches"].outcome is Outcome.PASS
    assert "one device agrees" in found["uneven-batches"].sentence
    assert found["misweighted-gradients"].outcome is Outcome.PASS
