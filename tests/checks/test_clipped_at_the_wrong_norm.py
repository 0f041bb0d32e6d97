from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import FakeReplay, FakeScript, build_observed
from scaleproof.checks.check import Outcome
from scaleproof.checks.clipped_at_the_wrong_norm import ClippedAtTheWrongNorm
from scaleproof.evidence.observations import OptimizerRecord, StepFlag
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

LIMIT = 5.0
ALL = (0, 1, 2)
Gradients = list[np.ndarray]


def finding(path: Path, script: FakeScript, **thresholds: float) -> Finding:
    check = ClippedAtTheWrongNorm(**thresholds)
    return run_check(check, build_observed(path, script), blocks=True)


def mean_of(script: FakeScript, step: int) -> np.ndarray:
    return np.mean([script.local(script, r, step) for r in range(script.num_ranks)], axis=0)


def given(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
    return np.mean(locals_, axis=0)


def replicated(times: float = 1.0, **changes: Any) -> FakeScript:
    """Two replicas; ``clip_grad_norm_`` measures ``times`` the norm of the whole gradient."""

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mean = np.mean(locals_, axis=0)
        return mean * min(1.0, LIMIT / (times * float(np.linalg.norm(mean))))

    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED)
        table["clip_max"] = LIMIT
        for row in range(len(table)):
            table["clip_norm"][row] = times * np.linalg.norm(mean_of(FakeScript(), row + 1))

    settings: dict[str, Any] = {
        "is_checked": True,
        "final": final,
        "before_clipping": given,
        "clipped_tensors": ALL,
        "steps": steps,
    }
    return FakeScript(**settings | changes)


def by_hand(times: float) -> FakeScript:
    """The same without torch's function: the limit is not known."""
    return replicated(
        times, before_clipping=None, clipped_tensors=(), steps=lambda rank, table: None
    )


def test_the_norm_of_the_whole_gradient_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, replicated())

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "Gradients were clipped at 3 steps, clipping at train.py:63, on all ranks by the norm of "
        "what was given."
    )


def test_replicated_tensors_counted_on_each_rank_fail(tmp_path: Path) -> None:
    found = finding(tmp_path, replicated(2**0.5))

    assert found.outcome is Outcome.FAIL
    assert found.sentence.startswith(
        "observed-seed0, step 1 (SGD of train.py:41, clipping at train.py:63): rank 0 clips by a "
        "norm of "
    )
    assert "it counts the same tensors on each of 2 ranks; so at 3 steps" in found.sentence


def test_another_kind_of_norm_is_no_fault(tmp_path: Path) -> None:
    """The largest number, or the sum, of 192."""
    for number, times in enumerate((0.2, 11.0)):
        assert finding(tmp_path / str(number), replicated(times)).outcome is Outcome.PASS


def test_a_limit_that_is_never_reached_passes(tmp_path: Path) -> None:
    def steps(rank: int, table: np.ndarray) -> None:
        replicated(2**0.5).steps(rank, table)
        table["clip_max"] = 1e6

    script = replicated(2**0.5, steps=steps, final=given)

    assert finding(tmp_path, script).outcome is Outcome.PASS


def test_one_step_is_too_little(tmp_path: Path) -> None:
    found = finding(tmp_path, replicated(2**0.5, probed_steps=(2,)))

    assert found.outcome is Outcome.UNDECIDED


def sharded(rank: int, record: Any) -> Any:
    if isinstance(record, OptimizerRecord):
        owned = tuple(msgspec.structs.replace(t, is_sharded=True) for t in record.owned)
        return msgspec.structs.replace(record, owned=owned)
    return record


def fsdp2(norm_of: Callable[[np.ndarray, np.ndarray], float], **changes: Any) -> FakeScript:
    """Each rank holds a part of the coordinates, 48 and 16 of 64; ``norm_of(own, whole)``."""

    def own(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mine = np.full_like(locals_[0], np.nan)
        part = (slice(0, 48), slice(48, 64))[rank]
        mine[:, part] = np.mean(locals_, axis=0)[:, part]
        return mine

    def factor(rank: int, step: int) -> float:
        locals_ = [FakeScript().local(FakeScript(), r, step) for r in range(2)]
        part = np.nan_to_num(own(FakeScript(), rank, step, locals_))
        return min(1.0, LIMIT / norm_of(part, np.mean(locals_, axis=0)))

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return own(script, rank, step, locals_) * factor(rank, step)

    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED)
        table["clip_max"], table["clip_norm"] = LIMIT, np.nan  # a DTensor's is not read

    settings: dict[str, Any] = {
        "parallelism": "fsdp2",
        "before_clipping": own,
        "final": final,
        "steps": steps,
        "change": sharded,
    }
    return replicated(**settings | changes)


def whole_norm(part: np.ndarray, whole: np.ndarray) -> float:
    return float(np.linalg.norm(whole))


def own_norm(part: np.ndarray, whole: np.ndarray) -> float:
    return float(np.linalg.norm(part))


def test_shards_clipped_by_the_whole_norm_pass(tmp_path: Path) -> None:
    assert finding(tmp_path, fsdp2(whole_norm)).outcome is Outcome.PASS


def test_shards_clipped_by_their_own_norm_fail_and_name_the_rank(tmp_path: Path) -> None:
    found = finding(tmp_path, fsdp2(own_norm))

    assert found.outcome is Outcome.FAIL
    assert "rank 0 clips by a norm of" in found.sentence
    assert "it is that of the rank's own shard; so at 3 steps" in found.sentence


def test_shards_clipped_by_hand_are_seen_by_unequal_factors(tmp_path: Path) -> None:
    silent: dict[str, Any] = {
        "before_clipping": None,
        "clipped_tensors": (),
        "steps": lambda rank, table: None,
    }
    found = finding(tmp_path / "own", fsdp2(own_norm, **silent))

    assert found.outcome is Outcome.FAIL
    assert "ranks 0 and 1 multiplied their shards of one gradient by" in found.sentence
    sound = finding(tmp_path / "whole", fsdp2(whole_norm, **silent))
    assert sound.outcome is Outcome.PASS


def test_exactly_at_the_tolerance_of_factors(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * (0.5, 0.375)[rank]

    script = replicated(
        final=final, before_clipping=None, clipped_tensors=(), steps=lambda rank, table: None
    )

    assert finding(tmp_path / "at", script, tolerance=0.25 + 1e-9).outcome is Outcome.PASS
    assert finding(tmp_path / "above", script, tolerance=0.25 - 1e-9).outcome is Outcome.FAIL


def only(tensors: tuple[int, ...]) -> Any:
    def before(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        values = np.full_like(locals_[0], np.nan)
        values[list(tensors)] = np.mean(locals_, axis=0)[list(tensors)]
        return values

    return before


def test_every_tensor_by_itself_fails(tmp_path: Path) -> None:
    found = finding(tmp_path, replicated(before_clipping=only((0,))))

    assert found.outcome is Outcome.FAIL
    assert "each of 3 tensors is clipped by its own norm" in found.sentence


@pytest.mark.parametrize(("first", "clipped"), [((0, 1), ALL), ((0,), (0,)), ((0,), (0, 1))])
def test_parts_that_are_clipped_apart_are_no_fault(
    tmp_path: Path, first: tuple[int, ...], clipped: tuple[int, ...]
) -> None:
    script = replicated(before_clipping=only(first), clipped_tensors=clipped)
    found = finding(tmp_path, script)

    assert found.outcome is Outcome.PASS
    assert ("in parts: the first of" in found.sentence) == (len(first) < len(clipped))


def one_device(step: int, gradient: np.ndarray) -> np.ndarray:
    return gradient * min(1.0, LIMIT / float(np.linalg.norm(gradient)))


def test_clipping_by_hand_is_compared_with_one_device(tmp_path: Path) -> None:
    replays = {"union": FakeReplay(final=one_device)}

    def with_replay(times: float) -> FakeScript:
        script = by_hand(times)
        return FakeScript(
            is_checked=True,
            final=script.final,
            replays=replays,  # type: ignore[arg-type]
        )

    found = finding(tmp_path / "wrong", with_replay(2**0.5))
    assert found.outcome is Outcome.FAIL
    assert (
        "clipped by a norm 1.41 times as large (the root of the number of ranks, 2); so at 3 steps"
    ) in found.sentence
    assert finding(tmp_path / "sound", with_replay(1.0)).outcome is Outcome.PASS


@pytest.mark.parametrize("factors", [(0.5, 0.5, 0.5), (0.3, 0.3, 0.3), (2.0, 2.0, 2.0)])
def test_a_constant_factor_that_nothing_was_called_for_is_no_clipping(
    tmp_path: Path, factors: tuple[float, ...]
) -> None:
    """``param.grad /= num_ranks`` by hand, for one: misscaled."""

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * factors[step - 1]

    script = FakeScript(is_checked=True, final=final, replays={"union": FakeReplay()})
    found = finding(tmp_path, script)

    assert (found.outcome, found.sentence) == (Outcome.PASS, "No gradient was clipped.")


def test_a_factor_of_a_norm_changes_from_step_to_step(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.mean(locals_, axis=0) * (0.4, 0.45, 0.7)[step - 1]

    script = FakeScript(is_checked=True, final=final, replays={"union": FakeReplay()})

    assert finding(tmp_path, script).outcome is Outcome.FAIL


def test_what_a_replay_did_after_its_end_is_not_compared(tmp_path: Path) -> None:
    def only_the_third(step: int, gradient: np.ndarray) -> np.ndarray:
        return gradient * (0.1 if step == 3 else 1.0)

    replay = FakeReplay(final=only_the_third, num_steps=2, is_last_another=True)
    found = finding(tmp_path, FakeScript(is_checked=True, replays={"union": replay}), min_steps=1)

    assert found.outcome is Outcome.PASS


def test_without_a_replay_a_common_factor_tells_nothing(tmp_path: Path) -> None:
    assert finding(tmp_path, by_hand(2**0.5)).outcome is Outcome.PASS


def test_a_replay_of_another_gradient_has_another_factor(tmp_path: Path) -> None:
    replay = FakeReplay(gradient=lambda script, step: 2 * mean_of(script, step), final=one_device)
    script = FakeScript(is_checked=True, final=by_hand(1.0).final, replays={"union": replay})

    assert finding(tmp_path, script).outcome is Outcome.PASS


def stages(*, norms: tuple[float, float], probed_steps: tuple[int, ...] = ()) -> FakeScript:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, OptimizerRecord):
            owned = tuple(
                msgspec.structs.replace(t, name=f"stage{rank}.{t.name}") for t in record.owned
            )
            return msgspec.structs.replace(record, owned=owned)
        return record

    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED)
        table["clip_max"], table["clip_norm"] = 1.0, norms[rank]

    return FakeScript(is_checked=True, steps=steps, change=change)


def test_stages_that_clip_by_norms_of_their_own_fail(tmp_path: Path) -> None:
    found = finding(tmp_path / "own", stages(norms=(2.0, 3.0)))

    assert found.outcome is Outcome.FAIL
    assert "ranks 0 and 1 own different tensors and clip by norms of their own, 2 and 3, to 1" in (
        found.sentence
    )
    assert finding(tmp_path / "all", stages(norms=(3.6, 3.6))).outcome is Outcome.UNDECIDED


def test_nothing_clipped_passes_and_one_rank_is_not_asked(tmp_path: Path) -> None:
    found = finding(tmp_path / "two", FakeScript(is_checked=True))
    assert (found.outcome, found.sentence) == (Outcome.PASS, "No gradient was clipped.")

    found = finding(tmp_path / "one", FakeScript(is_checked=True, num_ranks=1))
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert not found.is_evidence_missing
