from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observed import NAMES, REPLAYS, FakeReplay, FakeScript, build_observed
from scaleproof.checks.relations import TOLD, Relation, relation_of
from scaleproof.checks.replayed import ComparedStep, compared_steps
from scaleproof.errors import EvidenceError
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.close_ups import CloseUpRecord, ReplayName
from scaleproof.evidence.observations import OptimizerRecord, RandomSource, StepFlag
from scaleproof.evidence.study import Study

Gradients = list[np.ndarray]
SOUND = FakeScript(is_checked=True, replays=REPLAYS)


def steps_of(study: Study) -> list[ComparedStep]:
    return [s for run in study.runs_of(study.candidate) for s in compared_steps(run)]


def compare(folder: Path, script: FakeScript) -> list[ComparedStep]:
    return steps_of(build_observed(folder, script))


def relations(steps: Sequence[ComparedStep]) -> list[Relation]:
    return [relation_of(step, 0.01) for step in steps]


def weighted(*weights: float) -> Callable[[FakeScript, int], np.ndarray]:
    """What one device computes: the ranks' gradients times these."""

    def gradient(script: FakeScript, step: int) -> np.ndarray:
        locals_ = [script.local(script, rank, step) for rank in range(script.num_ranks)]
        return np.tensordot(weights, locals_, axes=1)

    return gradient


def replays(
    gradient: Callable[[FakeScript, int], np.ndarray], noise: float = 1e-7
) -> dict[ReplayName, FakeReplay]:
    return {
        "union": FakeReplay(gradient=gradient),
        "reordered": FakeReplay(gradient=gradient, noise=noise),
    }


def test_a_mean_is_what_one_device_computes(tmp_path: Path) -> None:
    steps = compare(tmp_path, SOUND)

    assert relations(steps) == [Relation.SAME] * 3
    first = steps[0]
    assert (first.step, first.where, first.backward_where) == (
        1,
        "SGD of train.py:41",
        "train.py:61",
    )
    assert first.error < 1e-9
    assert first.noise is not None and 1e-8 < first.noise < 1e-6
    assert first.effective.weights == pytest.approx((0.5, 0.5))
    assert first.in_reference.weights == pytest.approx((0.5, 0.5))
    assert first.sources == ((0, 0), (1, 0))
    assert first.num_tensors == 3
    assert not first.off


def test_reference_weights_are_set_beside_the_effective_ones(tmp_path: Path) -> None:
    steps = compare(tmp_path, replace(SOUND, replays=replays(weighted(0.8, 0.2))))

    assert relations(steps) == [Relation.MISWEIGHTED] * 3
    assert steps[0].effective.weights == pytest.approx((0.5, 0.5))
    assert steps[0].in_reference.weights == pytest.approx((0.8, 0.2))
    assert steps[0].in_reference.residual < 1e-6


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_random_weights_are_recovered(weights: list[float], num_backwards: int, seed: int) -> None:
    script = replace(
        SOUND, num_ranks=len(weights), num_backwards=num_backwards, seed=seed,
        probed_steps=(1,), replays=replays(weighted(*weights)),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        (step,) = compare(Path(folder), script)

    assert step.in_reference.weights == pytest.approx(np.repeat(weights, num_backwards), abs=1e-6)
    even = np.full(len(weights) * num_backwards, 1 / len(weights))
    assert step.effective.weights == pytest.approx(even, abs=1e-6)
    shares = np.array(weights) / sum(weights)
    if np.abs(shares * len(shares) - 1).max() > 0.011:
        assert relation_of(step, 0.01) is Relation.MISWEIGHTED


@settings(max_examples=20, deadline=None)
@given(st.floats(-7, -1.5), st.integers(0, 1000))
def test_noise_never_makes_a_fault(exponent: float, seed: int) -> None:
    """Two replays that differ as much as what was used does: bfloat16, say."""
    noise = 10**exponent

    def noisy(script: FakeScript, step: int) -> np.ndarray:
        exact = weighted(0.5, 0.5)(script, step)
        rng = np.random.default_rng([seed, step, 5])
        return exact + noise * exact.std() * rng.normal(size=exact.shape)

    script = replace(SOUND, seed=seed, replays=replays(noisy, noise))
    with TemporaryDirectory() as folder:
        found = relations(compare(Path(folder), script))

    assert found == [Relation.SAME] * 3


def test_noise_of_16_bits_in_the_reduction_alone_is_no_fault(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mean = np.mean(locals_, axis=0)
        return mean * (1 + 0.004 * np.random.default_rng(step).uniform(-1, 1, size=mean.shape))

    steps = compare(tmp_path, replace(SOUND, final=final))

    assert steps[0].error > 1e-3
    assert relations(steps) == [Relation.SAME] * 3


def test_weights_are_not_told_more_exactly_than_they_explain(tmp_path: Path) -> None:
    """An operation that couples the items a little moves weights by as much as it leaves over."""

    def gradient(noise: float) -> Callable[[FakeScript, int], np.ndarray]:
        def uneven(script: FakeScript, step: int) -> np.ndarray:
            exact = weighted(0.51, 0.49)(script, step)
            return exact + noise * np.random.default_rng([step, 3]).normal(size=exact.shape)

        return uneven

    little = compare(tmp_path / "1", replace(SOUND, replays=replays(gradient(0.01))))
    nothing = compare(tmp_path / "2", replace(SOUND, replays=replays(gradient(0.0))))

    assert relations(little) == [Relation.SAME] * 3
    assert relations(nothing) == [Relation.MISWEIGHTED] * 3


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.02, 7.3, -1.0])
def test_a_multiple_is_a_multiple(tmp_path: Path, factor: float) -> None:
    steps = compare(tmp_path, replace(SOUND, replays=replays(weighted(0.5 / factor, 0.5 / factor))))

    assert relations(steps) == [Relation.SCALED] * 3
    assert steps[0].ratio == pytest.approx(factor)


def test_gradients_that_are_alike_still_have_a_factor(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        return SOUND.local(script, 0, step)

    steps = compare(tmp_path, replace(SOUND, local=local, replays=replays(weighted(1.0, 1.0))))

    assert relations(steps) == [Relation.SCALED] * 3
    assert steps[0].effective.weights is None


def test_clipping_is_taken_out(tmp_path: Path) -> None:
    """What clipping was given is compared, on both sides, though it clipped them differently."""

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return 0.01 * np.mean(locals_, axis=0)

    sound = replace(
        SOUND,
        final=final,
        before_clipping=lambda script, rank, step, locals_: np.mean(locals_, axis=0),
        clipped_tensors=(0, 1, 2),
        replays={
            "union": FakeReplay(is_clipped=True, final=lambda step, gradient: 0.3 * gradient),
            "reordered": FakeReplay(is_clipped=True, noise=1e-7),
        },
    )
    assert relations(compare(tmp_path / "1", sound)) == [Relation.SAME] * 3
    blind = replace(sound, before_clipping=None, clipped_tensors=())
    assert relations(compare(tmp_path / "2", blind)) == [Relation.SCALED] * 3


def test_what_a_second_clipping_was_given_is_not_known(tmp_path: Path) -> None:
    def before(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        first = np.mean(locals_, axis=0)
        first[2] = np.nan
        return first

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * np.array([0.1, 0.1, 0.7])[:, None]

    script = replace(SOUND, final=final, before_clipping=before, clipped_tensors=(0, 1, 2))
    steps = compare(tmp_path, script)

    assert relations(steps) == [Relation.SAME] * 3


def test_a_gradient_clipped_by_each_rank_alone_is_not_compared(tmp_path: Path) -> None:
    def clipped(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED | StepFlag.REDUCED_AFTER_CLIPPING)
        table["clip_norm"], table["clip_max"] = (8.0, 4.0)[rank], 1.0

    script = replace(
        SOUND,
        before_clipping=lambda script, rank, step, locals_: locals_[rank],
        clipped_tensors=(0, 1, 2),
        final=lambda script, rank, step, locals_: (locals_[0] / 8 + locals_[1] / 4) / 2,
        steps=clipped,
    )
    steps = compare(tmp_path, script)

    assert relations(steps) == [Relation.UNTOLD] * 3
    assert steps[0].why_not == "each rank clipped a gradient of its own"


def test_clipping_while_scaled_is_unscaled(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if hasattr(record, "grad_scale"):
            return msgspec.structs.replace(record, grad_scale=1024.0)
        return record

    script = replace(
        SOUND,
        local=lambda script, rank, step: 1024 * FakeScript().local(script, rank, step),
        final=lambda script, rank, step, locals_: np.mean(locals_, axis=0) / 5000,
        before_clipping=lambda script, rank, step, locals_: np.mean(locals_, axis=0),
        clipped_tensors=(0, 1, 2),
        is_clipped_scaled=True,
        change=change,
        replays=replays(lambda script, step: weighted(0.5, 0.5)(script, step) / 1024),
    )
    assert relations(compare(tmp_path, script)) == [Relation.SAME] * 3


def test_ranks_that_used_different_gradients_are_left_to_another_check(tmp_path: Path) -> None:
    script = replace(SOUND, final=lambda script, rank, step, locals_: locals_[rank])
    steps = compare(tmp_path, script)

    assert {step.why_not for step in steps} == {"the ranks used different gradients"}
    assert relations(steps) == [Relation.UNTOLD] * 3


def test_shards_are_joined(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mine = np.full_like(locals_[0], np.nan)
        half = slice(rank * 32, rank * 32 + 32)
        mine[:, half] = np.mean(locals_, axis=0)[:, half]
        return mine

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            owned = tuple(
                msgspec.structs.replace(t, is_sharded=True, numel=4) for t in record.owned
            )
            return msgspec.structs.replace(record, owned=owned)
        return record

    script = replace(SOUND, parallelism="fsdp2", final=final, change=change)

    assert relations(compare(tmp_path / "sound", script)) == [Relation.SAME] * 3
    twice = replace(script, replays=replays(weighted(1.0, 1.0)))
    assert relations(compare(tmp_path / "twice", twice)) == [Relation.SCALED] * 3


def coupled(script: FakeScript, step: int) -> np.ndarray:
    exact = weighted(0.5, 0.5)(script, step)
    return exact + 0.5 * np.random.default_rng([step, 9]).normal(size=exact.shape)


def test_what_no_weights_explain_is_coupled(tmp_path: Path) -> None:
    steps = compare(tmp_path, replace(SOUND, replays=replays(coupled)))

    assert relations(steps) == [Relation.COUPLED] * 3
    assert steps[0].in_reference.residual > 0.3


def test_a_tensor_that_no_weights_explain_is_coupled(tmp_path: Path) -> None:
    def one(script: FakeScript, step: int) -> np.ndarray:
        exact = weighted(0.5, 0.5)(script, step)
        exact[2] *= 1 + 0.2 * np.random.default_rng([step, 9]).normal(size=exact.shape[1])
        return exact

    sizes = np.array([1.0, 1.0, 1e-2])[:, None]
    script = replace(
        SOUND,
        local=lambda script, rank, step: FakeScript().local(script, rank, step) * sizes,
        replays=replays(one),
    )
    assert relations(compare(tmp_path, script)) == [Relation.COUPLED] * 3


def test_a_coupled_gradient_of_twice_the_size_is_scaled_all_the_same(tmp_path: Path) -> None:
    def half(script: FakeScript, step: int) -> np.ndarray:
        exact = weighted(0.25, 0.25)(script, step)
        return exact + 0.01 * np.random.default_rng(step).normal(size=exact.shape)

    assert relations(compare(tmp_path, replace(SOUND, replays=replays(half)))) == (
        [Relation.SCALED] * 3
    )


def test_steps_that_draw_random_numbers_count_where_they_agree(tmp_path: Path) -> None:
    def drawn(rank: int, step: int) -> tuple[RandomSource, ...]:
        return (RandomSource.TORCH,) if step > 1 else ()

    sound = compare(tmp_path / "sound", replace(SOUND, drawn=drawn))
    other = compare(
        tmp_path / "other", replace(SOUND, drawn=drawn, replays=replays(weighted(0.7, 0.3)))
    )
    in_replay = {
        name: replace(replay, drawn=lambda step: (RandomSource.NUMPY,))
        for name, replay in replays(coupled).items()
    }
    replayed = compare(tmp_path / "replay", replace(SOUND, replays=in_replay))

    assert relations(sound) == [Relation.SAME] * 3
    assert relations(other) == [Relation.MISWEIGHTED, Relation.RANDOM, Relation.RANDOM]
    assert relations(replayed) == [Relation.RANDOM] * 3


def test_a_change_after_backward_that_no_weights_explain_is_not_told(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mean = np.mean(locals_, axis=0)
        return mean + 0.5 * np.random.default_rng(step).normal(size=mean.shape)

    assert relations(compare(tmp_path, replace(SOUND, final=final))) == [Relation.UNTOLD] * 3


@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_a_tensor_that_is_off_alone_is_found_whatever_its_size(tmp_path: Path, size: float) -> None:
    sizes = np.array([1.0, 1.0, size])[:, None]

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * np.array([1.0, 1.0, 2.0])[:, None]

    script = replace(
        SOUND,
        local=lambda script, rank, step: FakeScript().local(script, rank, step) * sizes,
        final=final,
    )
    steps = compare(tmp_path, script)

    assert relations(steps) == [Relation.ONE_TENSOR_SCALED] * 3
    (off,) = steps[0].off
    assert (off.name, off.ratio) == (NAMES[2], pytest.approx(2.0))


def test_a_tensor_with_next_to_no_gradient_is_not_looked_at(tmp_path: Path) -> None:
    sizes = np.array([1.0, 1.0, 1e-4])[:, None]

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * np.array([1.0, 1.0, 2.0])[:, None]

    script = replace(
        SOUND,
        local=lambda script, rank, step: FakeScript().local(script, rank, step) * sizes,
        final=final,
    )
    assert relations(compare(tmp_path, script)) == [Relation.SAME] * 3


def by_microbatch(weights: Sequence[float]) -> Callable[[FakeScript, int], np.ndarray]:
    def gradient(script: FakeScript, step: int) -> np.ndarray:
        parts = [script.backwards(script, rank, step) for rank in range(script.num_ranks)]
        return np.tensordot(weights, np.concatenate(parts), axes=1)

    return gradient


def test_the_whole_step_tells_the_weights_of_microbatches(tmp_path: Path) -> None:
    """A mean of microbatch means, of 8 and 2 items: each backward's union agrees."""
    whole = FakeReplay(gradient=by_microbatch([0.8, 0.2, 0.8, 0.2]))
    script = replace(SOUND, num_backwards=2, replays={**REPLAYS, "whole-step": whole})
    steps = compare(tmp_path, script)

    assert relations(steps) == [Relation.MISWEIGHTED] * 3
    assert steps[0].reference == "whole-step"
    assert steps[0].sources == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert steps[0].in_reference.weights == pytest.approx((0.8, 0.2, 0.8, 0.2))


def test_a_sum_counts_the_whole_step_once_for_each_backward(tmp_path: Path) -> None:
    whole = FakeReplay(gradient=weighted(1.0, 1.0))  # twice the union's
    script = replace(SOUND, num_backwards=2, replays={**REPLAYS, "whole-step": whole})
    steps = compare(tmp_path, script)

    assert relations(steps) == [Relation.SAME] * 3
    assert steps[0].reference == "union"


def test_state_that_is_carried_from_microbatch_to_microbatch_leaves_the_union(
    tmp_path: Path,
) -> None:
    script = replace(
        SOUND, num_backwards=2, replays={**REPLAYS, "whole-step": FakeReplay(gradient=coupled)}
    )
    assert relations(compare(tmp_path, script)) == [Relation.SAME] * 3


def test_many_backwards_are_added_up_by_rank(tmp_path: Path) -> None:
    steps = compare(tmp_path, replace(SOUND, num_backwards=20))

    assert steps[0].sources == ((0, -1), (1, -1))
    assert relations(steps) == [Relation.SAME] * 3


def test_steps_that_were_not_replayed_are_not_there(tmp_path: Path) -> None:
    part = {name: replace(replay, num_steps=2) for name, replay in REPLAYS.items()}

    assert [s.step for s in compare(tmp_path / "1", replace(SOUND, replays=part))] == [1, 2]
    assert compare(tmp_path / "2", replace(SOUND, replays={})) == []
    assert compare(tmp_path / "3", replace(SOUND, is_checked=False)) == []


def test_without_a_second_replay_noise_is_not_known(tmp_path: Path) -> None:
    steps = compare(tmp_path, replace(SOUND, replays={"union": FakeReplay()}))

    assert steps[0].noise is None
    assert relations(steps) == [Relation.SAME] * 3


def test_tensors_of_other_sizes_are_not_compared(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            owned = tuple(msgspec.structs.replace(t, numel=16) for t in record.owned)
            return msgspec.structs.replace(record, owned=owned)
        return record

    steps = compare(tmp_path, replace(SOUND, change=change))

    assert not set(relations(steps)) & TOLD
    assert "same name and size" in steps[0].why_not


def test_gradients_that_are_not_finite_are_not_compared(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        return np.full((3, 64), np.inf) if step == 2 else FakeScript().local(script, rank, step)

    steps = compare(tmp_path, replace(SOUND, local=local))

    assert relations(steps) == [Relation.SAME, Relation.UNTOLD, Relation.SAME]


def test_a_close_up_of_another_shape_is_refused(tmp_path: Path) -> None:
    script = replace(SOUND, backwards=lambda script, rank, step: np.zeros((1, 3, 63)))
    with pytest.raises(EvidenceError, match=r"shape \(1, 3, 63\), expected \(1, 3, 64\)"):
        compare(tmp_path, script)


def test_a_rank_without_a_close_up_of_a_step_leaves_that_step_out(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord | None:
        is_lost = isinstance(record, CloseUpRecord) and (rank, record.step) == (1, 2)
        return None if is_lost else record

    assert [s.step for s in compare(tmp_path, replace(SOUND, change=change))] == [1, 3]
