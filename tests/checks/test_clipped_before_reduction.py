from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from observed import FakeScript, build_observed
from scaleproof.checks.check import PAGE_SECTIONS, Outcome
from scaleproof.checks.clipped_before_reduction import ClippedBeforeReduction
from scaleproof.checks.misweighted_gradients import MisweightedGradients
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import OptimizerRecord, ProbeRecord, StepFlag
from scaleproof.evidence.study import Study
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

Gradients = list[np.ndarray]
LIMIT = 5.0


def finding(study: Study, **thresholds: float) -> Finding:
    return run_check(ClippedBeforeReduction(**thresholds), study, blocks=True)


def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
    """Rank 1's gradients are three times as large as rank 0's."""
    return FakeScript().local(script, rank, step) * (1 + 2 * rank)


def norms_of(script: FakeScript, step: int) -> list[float]:
    return [float(np.linalg.norm(local(script, rank, step))) for rank in range(script.num_ranks)]


def clipped_alone(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    factors = [min(1.0, LIMIT / np.linalg.norm(g)) for g in locals_]
    return np.mean([f * g for f, g in zip(factors, locals_, strict=True)], axis=0)


def clipped_after(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    mean = np.mean(locals_, axis=0)
    return mean * min(1.0, LIMIT / float(np.linalg.norm(mean)))


def calls(
    *, own_norm: bool, is_reduced_after: bool = False, limit: float = LIMIT
) -> Callable[[int, np.ndarray], None]:
    """What ``clip_grad_norm_`` was seen to measure: the rank's own norm, or that of the mean."""

    def steps(rank: int, table: np.ndarray) -> None:
        flags = StepFlag.CLIPPED
        if is_reduced_after:
            flags |= StepFlag.REDUCED_AFTER_CLIPPING
        table["flags"] |= np.uint16(flags)
        table["clip_max"] = limit
        script = FakeScript()
        for row in range(len(table)):
            step = row + 1
            mean = np.mean([local(script, r, step) for r in range(2)], axis=0)
            norms = norms_of(script, step)
            table["clip_norm"][row] = norms[rank] if own_norm else np.linalg.norm(mean)

    return steps


def test_nothing_clipped_passes(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path))

    assert found.outcome is Outcome.PASS
    assert "No step called torch.nn.utils.clip_grad_norm_" in found.sentence


def test_clipping_before_the_average_fails_and_names_the_rank_that_counts_least(
    tmp_path: Path,
) -> None:
    script = FakeScript(
        local=local, final=clipped_alone, steps=calls(own_norm=True, is_reduced_after=True)
    )
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.FAIL
    assert found.sentence.startswith(
        "observed-seed0, step 1: the ranks' gradients were clipped before they were shared (SGD of "
        "train.py:41): they count "
    )
    assert "as clip_grad_norm_ scaled each; rank 1 the least; so at 3 steps." in found.sentence
    assert "right before optimizer.step()" in found.remedy


def test_clipping_after_the_average_passes_even_with_a_collective_behind_it(
    tmp_path: Path,
) -> None:
    for probed_steps in ((1, 2), ()):
        for is_reduced_after in (False, True):
            script = FakeScript(
                local=local,
                final=clipped_after,
                steps=calls(own_norm=False, is_reduced_after=is_reduced_after),
                probed_steps=probed_steps,
            )
            folder = tmp_path / f"{len(probed_steps)}-{is_reduced_after}"
            found = finding(build_observed(folder, script))

            assert found.outcome is Outcome.PASS
            assert "clipped at 18 steps, after they were shared" in found.sentence


def test_a_limit_that_is_never_reached_passes(tmp_path: Path) -> None:
    script = FakeScript(
        local=local,
        steps=calls(own_norm=True, is_reduced_after=True, limit=1e6),
        probed_steps=(),
    )

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_without_a_probe_a_collective_after_clipping_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(
        local=local,
        final=clipped_alone,
        steps=calls(own_norm=True, is_reduced_after=True),
        probed_steps=(),
    )
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "from step 1 on" in found.sentence


def test_even_weights_clear_a_suspicious_order(tmp_path: Path) -> None:
    """It clipped something else than the gradients that were shared."""
    script = FakeScript(local=local, steps=calls(own_norm=True, is_reduced_after=True))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_a_clipping_of_its_own_is_seen_by_the_norms(tmp_path: Path) -> None:
    two = FakeScript(local=local, final=clipped_alone)
    one = FakeScript(local=local, final=clipped_alone, probed_steps=(2,))

    found = finding(build_observed(tmp_path / "two", two))
    assert found.outcome is Outcome.FAIL
    assert "each by its own norm" in found.sentence
    assert finding(build_observed(tmp_path / "one", one)).outcome is Outcome.UNDECIDED


def test_weights_that_are_uneven_otherwise_are_not_clipping(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return 0.2 * locals_[0] + 0.8 * locals_[1]

    found = finding(build_observed(tmp_path, FakeScript(local=local, final=final)))

    assert found.outcome is Outcome.PASS


def test_exactly_at_the_tolerance_of_factors(tmp_path: Path) -> None:
    """Factors no further apart than the tolerance can't be told from an even mean."""

    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED | StepFlag.REDUCED_AFTER_CLIPPING)
        table["clip_max"], table["clip_norm"] = 1.0, (1.6, 2.4)[rank]

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return 0.6 * locals_[0] + 0.4 * locals_[1]

    study = build_observed(tmp_path, FakeScript(final=final, steps=steps))

    assert finding(study, tolerance=0.4 - 1e-6).outcome is Outcome.FAIL
    assert finding(study, tolerance=0.4 + 1e-6).outcome is Outcome.PASS


def sharded(rank: int, record: AnyRecord) -> AnyRecord:
    if isinstance(record, OptimizerRecord):
        owned = tuple(msgspec.structs.replace(t, is_sharded=True) for t in record.owned)
        return msgspec.structs.replace(record, owned=owned)
    return record


def fsdp2(factors: tuple[float, float]) -> FakeScript:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mine = np.full_like(locals_[0], np.nan)
        half = slice(32 * rank, 32 * rank + 32)
        mine[:, half] = factors[rank] * np.mean(locals_, axis=0)[:, half]
        return mine

    return FakeScript(parallelism="fsdp2", final=final, change=sharded)


def test_shards_clipped_by_their_own_norms_fail(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path / "local", fsdp2((0.2, 0.4))))

    assert found.outcome is Outcome.FAIL
    assert "by 0.200 and 0.400: each clipped by the norm of its own shard" in found.sentence
    assert "to_local" in found.remedy
    assert finding(build_observed(tmp_path / "all", fsdp2((0.3, 0.3)))).outcome is Outcome.PASS


def test_it_is_the_root_of_uneven_weights(tmp_path: Path) -> None:
    script = FakeScript(
        local=local, final=clipped_alone, steps=calls(own_norm=True, is_reduced_after=True)
    )
    found = run_check(MisweightedGradients(), build_observed(tmp_path, script), blocks=True)

    assert found.outcome is Outcome.UNDECIDED
    assert "clipped-before-reduction" in found.remedy
    assert ClippedBeforeReduction.name in MisweightedGradients.consequence_of


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_one_rank_has_nothing_to_reduce(tmp_path: Path, num_ranks: int) -> None:
    found = finding(build_observed(tmp_path, FakeScript(num_ranks=num_ranks)))

    assert (found.outcome is Outcome.NOT_APPLICABLE) == (num_ranks == 1)


def test_its_page_has_all_sections() -> None:
    page = ClippedBeforeReduction.__doc__ or ""
    assert [section for section in PAGE_SECTIONS if section not in page] == []


def scaled(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    """Rank 1's loss was multiplied by twice as much, and nothing makes up for it."""
    return np.mean([(1 + other) * gradient for other, gradient in enumerate(locals_)], axis=0)


def own_scales(rank: int, record: AnyRecord) -> AnyRecord:
    if isinstance(record, ProbeRecord):
        return msgspec.structs.replace(record, grad_scale=1.0 + rank)
    return record


def test_loss_scales_that_differ_are_another_fault(tmp_path: Path) -> None:
    def local_of(script: FakeScript, rank: int, step: int) -> np.ndarray:
        return local(script, rank, step) * (1 + rank)  # scaled, as hooks see it

    def twice(rank: int, table: np.ndarray) -> None:
        calls(own_norm=True, is_reduced_after=True)(rank, table)
        table["clip_norm"] *= 2 - rank  # each unscales by its own

    script = FakeScript(local=local_of, final=scaled, steps=twice, change=own_scales)
    same_scale = FakeScript(local=local_of, final=clipped_alone, steps=twice)

    assert finding(build_observed(tmp_path / "own", script)).outcome is Outcome.PASS
    assert finding(build_observed(tmp_path / "same", same_scale)).outcome is Outcome.FAIL


def given_own(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    return locals_[rank]


def given_mean(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    return np.mean(locals_, axis=0)


@pytest.mark.parametrize(
    ("given", "limit", "outcome"),
    [
        pytest.param(given_own, 0.5, Outcome.FAIL, id="own"),
        pytest.param(given_mean, 0.5, Outcome.PASS, id="shared"),
        pytest.param(given_own, 1e9, Outcome.PASS, id="own, and the limit not reached"),
    ],
)
def test_what_the_first_clipping_of_a_step_was_given(
    tmp_path: Path, given: Callable[..., np.ndarray], limit: float, outcome: Outcome
) -> None:
    """As when every microbatch is clipped, and the ranks share the sum: no weight tells."""

    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED)
        table["clip_norm"], table["clip_max"] = 1.0, limit

    def unweighted(
        script: FakeScript, rank: int, step: int, locals_: Gradients
    ) -> np.ndarray:  # no weighted sum of the ranks' gradients
        return np.random.default_rng([9, step]).normal(size=locals_[0].shape)

    script = FakeScript(
        final=unweighted,
        steps=steps,
        is_checked=True,
        before_clipping=given,
        clipped_tensors=(0, 1, 2),
    )
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is outcome
    if outcome is Outcome.FAIL:
        assert "step 1: each rank clipped a gradient of its own at train.py:63 (norms " in (
            found.sentence
        )
        assert "allowed 0.5) before the ranks' gradients were shared; so at 3 steps" in (
            found.sentence
        )
