from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.overlapping_samples import OverlappingSamples
from scaleproof.evidence.observations import LoaderRecord, PassRecord, ProbeRecord, RandomSource
from scaleproof.evidence.study import Study
from scaleproof.verdict.run_check import run_check

Change = Callable[[int, Any], Any]


def judge(study: Study, **thresholds: float) -> Judgement:
    check = OverlappingSamples(**thresholds)
    return check.judge(check.measure(study))


def sampler(name: str, **fields: Any) -> Change:
    """The training loader has a sampler that says nothing of shards, unless ``fields`` do."""

    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord) and record.loader == TRAINING:
            record = msgspec.structs.replace(
                record, **{"sampler": f"torch.utils.data.sampler.{name}", "shards": None, **fields}
            )
        return record

    return change


def changing_passes(change: Change, of_pass: Callable[[int, PassRecord], PassRecord]) -> Change:
    def both(rank: int, record: Any) -> Any:
        record = change(rank, record)
        is_training = isinstance(record, PassRecord) and record.loader == TRAINING
        return of_pass(rank, record) if is_training else record

    return both


def unchanged(rank: int, record: Any) -> Any:
    return record


def everything(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([rank, epoch]).permutation(script.num_samples)


def own_seed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([rank, epoch]).permutation(script.num_samples)
    return order[rank :: script.num_ranks]


def without_ids(rank: int, record: PassRecord) -> PassRecord:
    return msgspec.structs.replace(record, has_ids=False, order_digest="")


def by_pass(loader: int, ids: np.ndarray) -> np.ndarray:
    """Augmented: other contents at every look."""
    by_pass.number += 1  # type: ignore[attr-defined]
    return ids.astype(np.uint64) + np.uint64(1000 * by_pass.number)  # type: ignore[attr-defined]


by_pass.number = 0  # type: ignore[attr-defined]


def test_parts_of_one_permutation_pass(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == ("No two ranks were handed the same items in 3 training passes.")


def test_it_runs_as_a_check(tmp_path: Path) -> None:
    finding = run_check(OverlappingSamples(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_no_sampler_fails_and_names_ranks_loader_and_cause(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(fed=everything, change=sampler("RandomSampler")))
    judgement = judge(study)

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, training pass 1 over the loader of train.py:30: ranks 0 and 1 were handed "
        "the same 48 items of 48 (100 %): each rank draws from the whole data set, which no "
        "sampler divides; in 3 passes."
    )
    assert "DistributedSampler" in judgement.remedy


def test_no_sampler_and_the_same_seed_on_all_ranks_says_so(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: everything(script, 0, epoch),
        change=sampler("RandomSampler"),
    )

    assert "(100 %), in the same order: " in judge(build_observed(tmp_path, script)).sentence


def test_another_sampler_seed_on_each_rank_fails_with_its_cause(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(fed=own_seed)))

    assert judgement.outcome is Outcome.FAIL
    assert "each in an order of its own" in judgement.sentence
    assert "same seed" in judgement.remedy


def test_a_subset_of_its_own_on_each_rank_is_named_as_the_cause(tmp_path: Path) -> None:
    """``random_split`` with a generator of its own on each rank, then a sampler for ranks."""

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        subset = np.random.default_rng(rank).permutation(60)[:48]
        return np.random.default_rng(epoch).permutation(subset)[rank::2]

    change = sampler("x", sampler="DistributedSampler", num_root=60)

    def keep_shards(rank: int, record: Any) -> Any:
        record = change(rank, record)
        is_loader = isinstance(record, LoaderRecord) and record.loader == TRAINING
        return msgspec.structs.replace(record, shards=(rank, 2)) if is_loader else record

    judgement = judge(build_observed(tmp_path, FakeScript(fed=fed, change=keep_shards)))

    assert judgement.outcome is Outcome.FAIL
    assert "each rank draws from a subset of its own" in judgement.sentence
    assert "random_split" in judgement.remedy


def test_two_ranks_on_one_shard_fail_even_when_redrawn(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.random.default_rng(epoch).integers(0, 48, 24),
        change=sampler("DistributedSampler", shards=(0, 2)),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "their samplers take the same shard" in judgement.sentence


def test_augmentation_does_not_hide_a_missing_sampler(tmp_path: Path) -> None:
    def drawn(rank: int, record: PassRecord) -> PassRecord:
        return msgspec.structs.replace(record, drawn=(RandomSource.TORCH,))

    script = FakeScript(
        fed=everything,
        contents=by_pass,
        change=changing_passes(sampler("RandomSampler"), drawn),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_padding_of_a_distributed_sampler_passes_and_one_more_does_not(tmp_path: Path) -> None:
    def padded_by(number: int) -> FakeScript:
        def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
            order = np.random.default_rng(epoch).permutation(script.num_samples)
            return np.append(order[1::2], order[: 2 * number : 2]) if rank else order[::2]

        return FakeScript(num_samples=47, fed=fed)

    assert judge(build_observed(tmp_path / "one", padded_by(1))).outcome is Outcome.PASS
    assert judge(build_observed(tmp_path / "two", padded_by(2))).outcome is Outcome.FAIL


def test_a_batch_that_accelerate_fills_up_passes(tmp_path: Path) -> None:
    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        order = np.random.default_rng(epoch).permutation(script.num_samples)
        order = np.append(order, order[:6])  # 42 items, in 6 global batches of 8
        return order.reshape(-1, 2, 4)[:, rank].ravel()

    change = sampler("SequentialSampler", batch_size=None)
    judgement = judge(build_observed(tmp_path, FakeScript(num_samples=42, fed=fed, change=change)))

    assert judgement.outcome is Outcome.PASS
    assert "2 items in one pass (to even out the ranks)" in judgement.sentence


@pytest.mark.parametrize("num_drawn", [48, 24])
def test_draws_with_replacement_share_by_chance(tmp_path: Path, num_drawn: int) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.random.default_rng([7, rank, epoch]).integers(
            0, script.num_samples, num_drawn
        ),
        change=sampler("RandomSampler"),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert "as drawing again does" in judgement.sentence


def test_a_weighted_sampler_that_draws_the_same_on_all_ranks_fails(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.random.default_rng(epoch).integers(0, 48, 48),
        change=sampler("WeightedRandomSampler"),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "in the same order" in judgement.sentence


def test_ranks_with_data_of_their_own_that_is_numbered_alike_pass(tmp_path: Path) -> None:
    """``data = load(rank)``: ids 0 to 23 on each rank, of other items."""

    def own_contents(loader: int, ids: np.ndarray) -> np.ndarray:
        own_contents.calls += 1  # type: ignore[attr-defined]
        is_second = own_contents.calls > 6  # type: ignore[attr-defined]  # 3 epochs, 2 loaders
        return ids.astype(np.uint64) + np.uint64(1000 * is_second + 100 * loader)

    own_contents.calls = 0  # type: ignore[attr-defined]
    script = FakeScript(
        num_samples=24,
        fed=lambda script, rank, epoch: np.random.default_rng(epoch).permutation(24),
        contents=own_contents,
        change=sampler("RandomSampler"),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_one_pass_over_contents_that_differ_is_undecided(tmp_path: Path) -> None:
    script = FakeScript(
        num_epochs=1, fed=everything, contents=by_pass, change=sampler("RandomSampler")
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "whose contents differ" in judgement.sentence


def test_too_few_draws_of_an_undivided_set_are_undecided_and_enough_are_not(tmp_path: Path) -> None:
    """Two ranks that draw 10 of 20 ids apart: 5 in common were to be expected; of 21, fewer."""

    def script(num_samples: int) -> FakeScript:
        return FakeScript(
            num_samples=num_samples,
            num_epochs=1,
            fed=lambda script, rank, epoch: np.arange(10) + 10 * rank,
            change=sampler("MySampler"),
        )

    assert judge(build_observed(tmp_path / "20", script(20))).outcome is Outcome.PASS
    judgement = judge(build_observed(tmp_path / "21", script(21)))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "no sampler says that it divides the 21 items of the loader of train.py:30" in (
        judgement.sentence
    )


def test_a_share_exactly_as_allowed_passes(tmp_path: Path) -> None:
    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        order = np.random.default_rng(epoch).permutation(script.num_samples)
        return np.append(order[1::2], order[:12:2]) if rank else order[::2]

    study = build_observed(tmp_path, FakeScript(fed=fed))

    assert judge(study, max_share=6 / 48).outcome is Outcome.PASS
    assert judge(study, max_share=6 / 48 - 1e-9).outcome is Outcome.FAIL


def test_a_stream_that_every_rank_reads_whole_fails(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.arange(script.num_samples),
        change=changing_passes(sampler("_InfiniteConstantSampler"), without_ids),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "(100 %, by their contents): the iterable data set is not divided" in judgement.sentence
    assert "split_dataset_by_node" in judgement.remedy


def test_a_stream_that_is_divided_passes(tmp_path: Path) -> None:
    script = FakeScript(change=changing_passes(sampler("_InfiniteConstantSampler"), without_ids))

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_a_stream_whose_items_are_alike_by_nature_passes(tmp_path: Path) -> None:
    script = FakeScript(
        contents=lambda loader, ids: (ids % 5).astype(np.uint64),
        change=changing_passes(sampler("_InfiniteConstantSampler"), without_ids),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


@pytest.mark.parametrize("fault", ["no contents", "augmented"])
def test_a_stream_that_can_not_be_told_apart_is_undecided(tmp_path: Path, fault: str) -> None:
    def hide(rank: int, record: PassRecord) -> PassRecord:
        record = without_ids(rank, record)
        if fault == "no contents":
            return msgspec.structs.replace(record, contents=None)
        return msgspec.structs.replace(record, drawn=(RandomSource.TORCH,))

    script = FakeScript(
        fed=everything,
        contents=by_pass,
        change=changing_passes(sampler("_InfiniteConstantSampler"), hide),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert ("neither ids nor tensors" if fault == "no contents" else "may hide") in (
        judgement.sentence
    )


def no_loaders(inputs: Callable[[int, int], str]) -> FakeScript:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord | PassRecord):
            return None
        if isinstance(record, ProbeRecord):
            return msgspec.structs.replace(record, inputs_digest=inputs(rank, record.step))
        return record

    return FakeScript(change=change)


def test_without_loaders_the_same_inputs_fail(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, no_loaders(lambda rank, step: f"step {step}")))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0: ranks 0 and 1 trained on the same inputs at 3 of 3 probed steps; nothing "
        "divides them."
    )


def test_without_loaders_other_inputs_pass_and_unknown_ones_are_undecided(tmp_path: Path) -> None:
    other = no_loaders(lambda rank, step: f"rank {rank}, step {step}")
    unknown = no_loaders(lambda rank, step: "")

    assert judge(build_observed(tmp_path / "other", other)).outcome is Outcome.PASS
    assert judge(build_observed(tmp_path / "unknown", unknown)).outcome is Outcome.UNDECIDED


def test_a_pass_broken_off_still_shows_what_ranks_share(tmp_path: Path) -> None:
    def broken_off(rank: int, record: PassRecord) -> PassRecord:
        return msgspec.structs.replace(record, is_whole=False)

    script = FakeScript(
        num_samples=96,
        fed=lambda script, rank, epoch: everything(script, rank, epoch)[:40],
        change=changing_passes(sampler("RandomSampler"), broken_off),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "each rank draws from the whole data set" in judgement.sentence


def test_one_rank_has_nobody_to_share_with(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_ranks=1, parallelism="none"))
    finding = run_check(OverlappingSamples(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def test_a_loader_of_rank_0_alone_does_not_shift_the_others(tmp_path: Path) -> None:
    """Rank 0 evaluates before training: its loaders are numbered one later."""

    def change(rank: int, record: Any) -> Any:
        if rank == 0 and isinstance(record, LoaderRecord | PassRecord):
            return msgspec.structs.replace(record, loader=record.loader + 1)
        return record

    script = FakeScript(fed=own_seed, change=change)

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL
