from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from observed import NAMES, FakeScript, build_observed
from scaleproof.checks.check import PAGE_SECTIONS, Outcome
from scaleproof.checks.misweighted_gradients import MisweightedGradients
from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.observations import OptimizerRecord, ProbeRecord, StepFlag
from scaleproof.evidence.study import Study
from scaleproof.verdict.answers import Finding
from scaleproof.verdict.run_check import run_check

Gradients = list[np.ndarray]
Final = Callable[[FakeScript, int, int, Gradients], np.ndarray]


def finding(study: Study, **thresholds: float) -> Finding:
    return run_check(MisweightedGradients(**thresholds), study, blocks=True)


def weighted(*weights: float | Callable[[int], float]) -> Final:
    """Each rank's gradient times a weight, or a weight by step, the same on all ranks."""

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        numbers = [w(step) if callable(w) else w for w in weights]
        return np.tensordot(numbers, locals_, axes=1)

    return final


def probes(**fields: object) -> Callable[[int, AnyRecord], AnyRecord]:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        return msgspec.structs.replace(record, **fields) if type(record) is ProbeRecord else record

    return change


unknown_loss = probes(loss_reduction="unknown")


def clipped(norms: Sequence[float], limit: float) -> Callable[[int, np.ndarray], None]:
    def steps(rank: int, table: np.ndarray) -> None:
        table["flags"] |= np.uint16(StepFlag.CLIPPED)
        table["clip_norm"] = norms[rank]
        table["clip_max"] = limit

    return steps


def test_a_mean_passes(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path))

    assert found.outcome is Outcome.PASS
    assert found.sentence == (
        "All 2 ranks count alike in the gradients that were used (3 probed steps)."
    )


def test_averaged_twice_fails_with_the_weights_and_the_line(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=weighted(0.25, 0.25))))

    assert found.outcome is Outcome.FAIL
    assert found.sentence == (
        "observed-seed0, step 1, SGD of train.py:41: the ranks count 0.25 and 0.25 in the gradient "
        "that was used, expected 0.50 each: averaged twice over 2 ranks, at 3 of 3 probed steps."
    )
    assert "once" in found.remedy


def test_averaged_twice_at_one_step_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(final=weighted(0.25, 0.25), probed_steps=(2,))

    assert finding(build_observed(tmp_path / "1", script)).outcome is Outcome.UNDECIDED
    mixed = FakeScript(final=weighted(*[lambda step: 0.5 if step == 1 else 0.25] * 2))
    assert finding(build_observed(tmp_path / "2", mixed)).outcome is Outcome.UNDECIDED


def test_averaged_twice_is_seen_through_clipping(tmp_path: Path) -> None:
    script = FakeScript(final=weighted(0.025, 0.025), steps=clipped((5.0, 5.0), 0.5))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_clipping_to_exactly_one_over_n_is_clipping(tmp_path: Path) -> None:
    script = FakeScript(final=weighted(0.25, 0.25), steps=clipped((2.0, 2.0), 1.0))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_clipping_by_a_norm_that_is_not_known_is_no_fault(tmp_path: Path) -> None:
    script = FakeScript(final=weighted(0.25, 0.25), steps=clipped((np.nan, np.nan), 1.0))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_summed_fails_when_the_loss_is_a_mean_and_is_undecided_otherwise(tmp_path: Path) -> None:
    plain = FakeScript(final=weighted(1, 1))
    unknown = FakeScript(final=weighted(1, 1), change=unknown_loss)

    found = finding(build_observed(tmp_path / "mean", plain))
    assert found.outcome is Outcome.FAIL
    assert "count 1 and 1" in found.sentence
    assert "a mean over each rank's own batch" in found.sentence
    found = finding(build_observed(tmp_path / "unknown", unknown))
    assert found.outcome is Outcome.UNDECIDED
    assert "divided by the samples of all ranks" in found.sentence


def test_division_after_accumulation_passes(tmp_path: Path) -> None:
    def accumulate(rank: int, table: np.ndarray) -> None:
        table["num_backwards"] = 4

    script = FakeScript(final=weighted(1 / 8, 1 / 8), steps=accumulate)

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_division_by_the_usual_number_of_backwards_in_a_shorter_window_passes(
    tmp_path: Path,
) -> None:
    def accumulate(rank: int, table: np.ndarray) -> None:
        table["num_backwards"] = 4
        table["num_backwards"][1] = 2

    script = FakeScript(final=weighted(1 / 8, 1 / 8), steps=accumulate)

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_a_branch_that_one_rank_did_not_use_is_averaged_with_nothing(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        if rank == 1:
            gradient[2] = np.nan
        return gradient

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return np.nansum(locals_, axis=0) / 2

    assert finding(build_observed(tmp_path, FakeScript(local=local, final=final))).outcome is (
        Outcome.PASS
    )


def test_gradients_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    def local(script: FakeScript, rank: int, step: int) -> np.ndarray:
        gradient = FakeScript().local(script, rank, step)
        return np.full_like(gradient, np.inf) if step == 3 else gradient

    found = finding(build_observed(tmp_path, FakeScript(local=local)))

    assert found.outcome is Outcome.PASS
    assert "2 probed steps" in found.sentence


def shards_of(num_ranks: int, weight: float) -> FakeScript:
    """FSDP2, with as few coordinates per rank that only all shards together tell the weights."""

    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mine = np.full_like(locals_[0], np.nan)
        part = slice(rank * 64 // num_ranks, (rank + 1) * 64 // num_ranks)
        mine[:, part] = weight * np.sum(locals_, axis=0)[:, part]
        return mine

    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            owned = tuple(msgspec.structs.replace(t, is_sharded=True) for t in record.owned)
            return msgspec.structs.replace(record, owned=owned)
        return record

    return FakeScript(num_ranks=num_ranks, parallelism="fsdp2", final=final, change=change)


def test_many_shards_are_joined(tmp_path: Path) -> None:
    sound = finding(build_observed(tmp_path / "sound", shards_of(16, 1 / 16)))
    twice = finding(build_observed(tmp_path / "twice", shards_of(16, 1 / 256)))

    assert sound.outcome is Outcome.PASS
    assert "All 16 ranks" in sound.sentence
    assert twice.outcome is Outcome.FAIL


def test_as_many_backwards_as_ranks_can_be_told_only_of_a_plain_mean(tmp_path: Path) -> None:
    def accumulate(rank: int, table: np.ndarray) -> None:
        table["num_backwards"] = 2

    plain = FakeScript(final=weighted(0.25, 0.25), steps=accumulate)
    unknown = FakeScript(final=weighted(0.25, 0.25), steps=accumulate, change=unknown_loss)

    assert finding(build_observed(tmp_path / "mean", plain)).outcome is Outcome.PASS
    found = finding(build_observed(tmp_path / "unknown", unknown))
    assert found.outcome is Outcome.UNDECIDED
    assert "a division by 2 backwards, or a second one by 2 ranks" in found.sentence


def test_constant_unequal_weights_fail(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=weighted(0.8, 0.2))))

    assert found.outcome is Outcome.FAIL
    assert "the ranks count 0.8 and 0.2 in the gradient that was used" in found.sentence


def test_unequal_weights_that_change_and_add_up_to_1_are_undecided(tmp_path: Path) -> None:
    final = weighted(lambda step: 0.5 + step / 10, lambda step: 0.5 - step / 10)
    found = finding(build_observed(tmp_path, FakeScript(final=final)))

    assert found.outcome is Outcome.UNDECIDED
    assert "tokens" in found.sentence


def test_unequal_weights_that_do_not_add_up_to_1_fail(tmp_path: Path) -> None:
    final = weighted(lambda step: 0.5 + step / 10, 0.5)

    assert finding(build_observed(tmp_path, FakeScript(final=final))).outcome is Outcome.FAIL


def uneven(rank: int, table: np.ndarray) -> None:
    table["num_samples"] = (6, 2)[rank]


@pytest.mark.parametrize("weights", [(0.75, 0.25), (0.5, 0.5)])
def test_uneven_batches_may_count_by_samples_or_alike(
    tmp_path: Path, weights: tuple[float, float]
) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=weighted(*weights), steps=uneven)))

    assert found.outcome is Outcome.PASS
    assert ("by their samples" in found.sentence) == (weights == (0.75, 0.25))


def test_the_other_way_round_they_fail(tmp_path: Path) -> None:
    script = FakeScript(final=weighted(0.25, 0.75), steps=uneven)

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(final=weighted(0.625, 0.375)))

    assert finding(study, tolerance=0.25 + 1e-9).outcome is Outcome.PASS
    assert finding(study, tolerance=0.25 - 1e-9).outcome is Outcome.FAIL


def test_multiples_on_ranks_fail_and_name_the_loss_scales(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        # scaled by 4 and 8, averaged so, then each divided by its own scale
        return (locals_[0] + locals_[1]) / 2 / (4, 8)[rank]

    def scales(rank: int, record: AnyRecord) -> AnyRecord:
        return probes(grad_scale=(4.0, 8.0)[rank])(rank, record)

    found = finding(build_observed(tmp_path, FakeScript(final=final, change=scales)))

    assert found.outcome is Outcome.FAIL
    assert "1 and 0.5 of rank 0's. Their loss scales differ: 4 and 8." in found.sentence
    assert "same loss scale" in found.remedy


def test_a_loss_scale_is_divided_out(tmp_path: Path) -> None:
    script = FakeScript(final=weighted(0.5 / 1024, 0.5 / 1024), change=probes(grad_scale=1024.0))

    assert finding(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_a_factor_nobody_knows_is_undecided_if_constant_and_noted_if_not(tmp_path: Path) -> None:
    constant = FakeScript(final=weighted(0.15, 0.15))
    varying = FakeScript(final=weighted(*[lambda step: 0.5 / (step + 3)] * 2))

    found = finding(build_observed(tmp_path / "constant", constant))
    assert found.outcome is Outcome.UNDECIDED
    assert "0.3 times their mean" in found.sentence
    found = finding(build_observed(tmp_path / "varying", varying))
    assert found.outcome is Outcome.PASS
    assert "scaled alike, by 0.167 to 0.25" in found.sentence


def noisy(size: float) -> Final:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        mean = np.mean(locals_, axis=0)
        return mean + size * np.random.default_rng(step).normal(size=mean.shape)

    return final


def test_a_reduction_in_16_bits_passes_with_a_note(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=noisy(0.003))))

    assert found.outcome is Outcome.PASS
    assert "16 bits, or compression" in found.sentence


def test_what_is_no_weighted_sum_is_undecided(tmp_path: Path) -> None:
    found = finding(build_observed(tmp_path, FakeScript(final=noisy(0.5))))

    assert found.outcome is Outcome.UNDECIDED
    assert "no weighted sum of the ranks' gradients" in found.sentence


@pytest.mark.parametrize(
    ("reduce", "words"),
    [
        (np.maximum, "value by value, the largest of the values of ranks 0 and 1, not their mean"),
        (np.minimum, "value by value, the smallest of the values of"),
        (np.multiply, "value by value, the product of ranks 0 and 1"),
    ],
)
def test_another_reduction_than_a_mean_fails_and_is_named(
    tmp_path: Path, reduce: Callable[..., np.ndarray], words: str
) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        return 0.3 * reduce(*locals_)  # clipped, by what is not known

    found = finding(build_observed(tmp_path / "all", FakeScript(final=final)))
    assert found.outcome is Outcome.FAIL
    assert words in found.sentence
    one = FakeScript(final=final, probed_steps=(2,))
    assert finding(build_observed(tmp_path / "one", one)).outcome is Outcome.UNDECIDED


def test_one_tensor_that_is_summed_is_named(tmp_path: Path) -> None:
    def final(script: FakeScript, rank: int, step: int, locals_: Gradients) -> np.ndarray:
        used = np.mean(locals_, axis=0)
        used[NAMES.index("head.weight")] *= 2
        return used

    found = finding(build_observed(tmp_path, FakeScript(final=final)))

    assert found.outcome is Outcome.FAIL
    assert "step 1, SGD of train.py:41, tensor 'head.weight': the ranks count 1 and 1" in (
        found.sentence
    )


def test_gradients_that_are_alike_are_undecided(tmp_path: Path) -> None:
    script = FakeScript(local=lambda script, rank, step: FakeScript().local(script, 0, step))
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "can't be told apart" in found.sentence


def test_gradients_nobody_shared_are_left_to_the_other_check(tmp_path: Path) -> None:
    script = FakeScript(final=lambda script, rank, step, locals_: locals_[rank])
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "unsynced-gradients" in found.remedy
    assert "unsynced-gradients" in MisweightedGradients.consequence_of


def test_ranks_with_different_parameters_have_nothing_to_average(tmp_path: Path) -> None:
    def change(rank: int, record: AnyRecord) -> AnyRecord:
        if isinstance(record, OptimizerRecord):
            owned = tuple(
                msgspec.structs.replace(t, name=f"stage{rank}.{t.name}") for t in record.owned
            )
            return msgspec.structs.replace(record, owned=owned)
        return record

    found = finding(build_observed(tmp_path, FakeScript(change=change)))

    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "parts of one model" in found.sentence


def test_one_rank_and_missing_probes(tmp_path: Path) -> None:
    one = finding(build_observed(tmp_path / "one", FakeScript(num_ranks=1)))
    none = finding(build_observed(tmp_path / "none", FakeScript(probed_steps=())))

    assert one.outcome is none.outcome is Outcome.NOT_APPLICABLE
    assert (one.is_evidence_missing, none.is_evidence_missing) == (False, True)


@pytest.mark.parametrize("gradient", [np.nan, 0.0])
def test_an_optimizer_without_gradients_is_sent_to_the_check_that_tells_why(
    tmp_path: Path, gradient: float
) -> None:
    script = FakeScript(
        local=lambda script, rank, step: np.full((3, 64), gradient),
        final=lambda script, rank, step, locals_: locals_[rank],
    )
    found = finding(build_observed(tmp_path, script))

    assert found.outcome is Outcome.UNDECIDED
    assert "had no gradient at any" in found.sentence
    assert "frozen-parameters" in found.remedy


def test_its_page_has_all_sections() -> None:
    page = MisweightedGradients.__doc__ or ""
    assert [section for section in PAGE_SECTIONS if section not in page] == []
