from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pyroaring import BitMap

from observed import TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.missing_samples import MissingSamples
from scaleproof.evidence.observations import LoaderRecord, PassRecord
from scaleproof.evidence.study import Study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.run_check import run_check


def judge(study: Study, **thresholds: float) -> Judgement:
    check = MissingSamples(**thresholds)
    return check.judge(check.measure(study))


def changed(loader: dict[str, Any], record_of_pass: dict[str, Any] | None = None) -> Any:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, **loader)
        if isinstance(record, PassRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, **(record_of_pass or {}))
        return record

    return change


def permuted(script: FakeScript, epoch: int) -> np.ndarray:
    return np.random.default_rng([script.seed, epoch]).permutation(script.num_samples)


def first_of(number: int) -> Callable[[FakeScript, int, int], np.ndarray]:
    """The first ``number`` of each epoch's permutation, shared out."""
    return lambda script, rank, epoch: permuted(script, epoch)[:number][rank :: script.num_ranks]


def sharded_twice(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    return permuted(script, epoch)[rank :: script.num_ranks][rank :: script.num_ranks]


def test_every_item_in_every_pass(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        "Every training item was handed to some rank in each of 3 training passes."
    )


def test_it_runs_as_a_check(tmp_path: Path) -> None:
    finding = run_check(MissingSamples(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_data_sharded_twice_fails_and_says_so(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(fed=sharded_twice)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith(
        "observed-seed0: 24 (50 %) of the 48 items of the loader of train.py:30: handed to no "
        "rank in training pass 1 of 3, "
    )
    assert "each pass held one half of them: sharded twice" in judgement.sentence
    assert "Shard the data once" in judgement.remedy


@pytest.mark.parametrize("num_repeated", [0, 3])
def test_data_sharded_twice_behind_accelerate_fails_too(tmp_path: Path, num_repeated: int) -> None:
    """Accelerate fills up the last batch, with what the rank may have had before."""
    change = changed(
        {
            "sampler": "torch.utils.data.sampler.SequentialSampler",
            "shards": None,
            "batch_size": None,
        }
    )

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        ids = sharded_twice(script, rank, epoch)
        return np.append(ids, ids[:num_repeated])

    judgement = judge(build_observed(tmp_path, FakeScript(fed=fed, change=change)))

    assert judgement.outcome is Outcome.FAIL
    assert "sharded twice" in judgement.sentence


def test_a_subset_counts_its_own_indices_only(tmp_path: Path) -> None:
    script = FakeScript(
        num_samples=40,
        change=changed({"num_root": 48}),
        fed=lambda script, rank, epoch: permuted(script, epoch)[rank::2] + 8,
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_a_subset_for_each_rank_and_then_a_sampler_fails(tmp_path: Path) -> None:
    """Rank r holds half of the data, and hands out half of that, another one every epoch."""
    script = FakeScript(
        fed=lambda script, rank, epoch: (
            np.random.default_rng(epoch).permutation(24)[rank::2] + 24 * rank
        ),
        change=changed({"num_items": 24}),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence.startswith(
        "observed-seed0: 24 (50 %) of the 48 items of the loader of train.py:30: handed to no "
        "rank in training pass 1 of 3, "
    )
    assert "for example" in judgement.sentence
    assert judgement.sentence.endswith("each pass held one half of them: sharded twice.")


def test_subsets_that_overlap_are_counted_by_what_was_ever_handed_out(tmp_path: Path) -> None:
    """Ranks hold 30 items each, 12 of them the same, and hand out half of them in a pass."""
    script = FakeScript(
        fed=lambda script, rank, epoch: (
            np.random.default_rng(epoch).permutation(30)[rank::2] + 18 * rank
        ),
        change=changed({"num_items": 30}),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "items that any pass over the loader of train.py:30 handed out: handed to no rank" in (
        judgement.sentence
    )
    assert "for example" not in judgement.sentence


def test_a_tail_that_changes_passes_with_a_note(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(fed=first_of(44))))

    assert judgement.outcome is Outcome.PASS
    assert "Up to 4 items of 48 left over" in judgement.sentence


def test_a_tail_that_is_always_the_same_fails(tmp_path: Path) -> None:
    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(44)[rank::2]

    judgement = judge(build_observed(tmp_path, FakeScript(fed=fed)))

    assert judgement.outcome is Outcome.FAIL
    assert "4 (8.3 %) of the 48 items" in judgement.sentence
    assert "in any of 3 training passes, the same ones each time, for example 44, 45 and 46" in (
        judgement.sentence
    )
    assert "drop_last" in judgement.remedy


def test_the_tail_of_the_only_pass_passes_with_a_note(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(num_epochs=1, fed=first_of(44))))

    assert judgement.outcome is Outcome.PASS
    assert "another would show" in judgement.sentence


def test_less_than_one_global_batch_may_be_left_over_and_no_more(tmp_path: Path) -> None:
    """2 ranks with batches of 4: up to 7 items."""
    seven = FakeScript(num_epochs=1, fed=first_of(41))
    eight = FakeScript(num_epochs=1, fed=first_of(40))

    assert judge(build_observed(tmp_path / "seven", seven)).outcome is Outcome.PASS
    assert judge(build_observed(tmp_path / "eight", eight)).outcome is Outcome.FAIL


def test_a_share_exactly_as_allowed_passes(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_epochs=1, fed=first_of(36)))

    assert judge(study, max_share=12 / 48).outcome is Outcome.PASS
    assert judge(study, max_share=12 / 48 - 1e-9).outcome is Outcome.FAIL


@pytest.mark.parametrize("sampler", ["SubsetRandomSampler", "RandomSampler"])
def test_a_sampler_that_chooses_is_believed(tmp_path: Path, sampler: str) -> None:
    change = changed({"sampler": f"torch.utils.data.sampler.{sampler}", "shards": None})
    judgement = judge(build_observed(tmp_path, FakeScript(fed=first_of(30), change=change)))

    assert judgement.outcome is Outcome.PASS
    assert "on purpose" in judgement.sentence


def test_draws_with_replacement_leave_out_by_chance(tmp_path: Path) -> None:
    script = FakeScript(
        fed=lambda script, rank, epoch: np.random.default_rng([rank, epoch]).integers(0, 48, 24),
        change=changed({"sampler": "mine.BalancedSampler", "shards": None}),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_somebodys_own_sampler_that_leaves_out_is_undecided(tmp_path: Path) -> None:
    change = changed({"sampler": "mine.CuratedSampler", "shards": None})
    judgement = judge(build_observed(tmp_path, FakeScript(fed=first_of(36), change=change)))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "Whether CuratedSampler means to leave them out can't be seen" in judgement.sentence


def test_passes_that_are_broken_off_say_nothing(tmp_path: Path) -> None:
    change = changed({}, {"is_whole": False})
    judgement = judge(build_observed(tmp_path, FakeScript(fed=first_of(8), change=change)))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "broken off before its end" in judgement.sentence


def test_the_pass_that_training_stops_in_does_not_count(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, PassRecord) and record.number == 2:
            return msgspec.structs.replace(record, is_whole=False)
        return record

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return permuted(script, epoch)[: 8 if epoch == 2 else 48][rank::2]

    judgement = judge(build_observed(tmp_path, FakeScript(fed=fed, change=change)))

    assert judgement.outcome is Outcome.PASS
    assert "each of 2 training passes" in judgement.sentence


def test_data_without_indices_can_not_be_counted(tmp_path: Path) -> None:
    change = changed({"num_items": -1, "num_root": -1}, {"has_ids": False})
    judgement = judge(build_observed(tmp_path, FakeScript(fed=first_of(8), change=change)))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "no indices" in judgement.sentence


def test_a_script_without_loaders_has_nothing_to_count(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        return None if isinstance(record, LoaderRecord | PassRecord) else record

    study = build_observed(tmp_path, FakeScript(change=change))
    finding = run_check(MissingSamples(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def test_one_rank_that_draws_for_all_is_counted_alone(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord | PassRecord):
            if rank == 1:
                return None
            if isinstance(record, LoaderRecord):
                return msgspec.structs.replace(record, shards=None)
        return record

    def everything(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return permuted(script, epoch)

    judgement = judge(build_observed(tmp_path, FakeScript(fed=everything, change=change)))

    assert judgement.outcome is Outcome.PASS


NUM_FOLDS = 3


def folds(*, extra_of_rank_0: str, counts_its_steps: bool = False) -> FakeScript:
    """A loader for each fold of 36 of the 48 items, made in one line; rank 0 makes another one in
    that line after each: ``evaluation`` of the rest, or ``training`` like the fold's, by itself.
    With ``counts_its_steps``, those of that training do count on rank 0."""

    def change(rank: int, record: Any) -> Any:
        return None if isinstance(record, LoaderRecord | PassRecord) else record

    def more(rank: int, writer: RankWriter) -> None:
        number = done = 0
        for fold in range(NUM_FOLDS):
            order = (np.random.default_rng(0).permutation(48) + 12 * fold) % 48
            kept = order[order >= 12]
            _loader_with_pass(writer, rank, number, "training", done, kept[rank::2])
            number, done = number + 1, done + 5
            if rank == 0:
                rest = order[order < 12] if extra_of_rank_0 == "evaluation" else kept[::2]
                _loader_with_pass(writer, rank, number, extra_of_rank_0, done, rest)
                number, done = number + 1, done + 5 * counts_its_steps

    return FakeScript(change=change, more=more)


def _loader_with_pass(
    writer: RankWriter, rank: int, number: int, use: Any, first_step: int, ids: np.ndarray
) -> None:
    is_training = use == "training"
    writer.record(
        LoaderRecord(
            loader=number,
            data_set=0,
            data_set_type="TensorDataset",
            num_items=36 if is_training else 12,
            num_root=48,
            sampler="torch.utils.data.distributed.DistributedSampler"
            if is_training
            else "torch.utils.data.sampler.SequentialSampler",
            shards=(rank, 2) if is_training else None,
            batch_size=4,
            drop_last=False,
            num_workers=0,
            where="train.py:15",
        )
    )
    nothing = writer.blob(f"nothing-{number}.roaring", BitMap().serialize())
    sizes = np.full(-(-len(ids) // 4), 4, np.int32)
    writer.record(
        PassRecord(
            loader=number,
            number=0,
            use=use,
            epoch=0,
            first_step=first_step,
            last_step=first_step + 5 * is_training,
            is_whole=True,
            has_ids=True,
            num_batches=len(sizes),
            num_fed=len(ids),
            order_digest=f"{number}",
            seen=writer.blob(f"seen-of-{number}.roaring", BitMap(ids.tolist()).serialize()),
            repeated=nothing,
            batch_sizes=writer.array(f"sizes-of-{number}", sizes),
            contents=None,
            content_limit=0,
            num_content_repeats=0,
            sampler_epoch=0,
            base_seed=None,
            random_states={},
            drawn=(),
            is_fetch_seen=False,
        )
    )


def test_folds_are_matched_although_rank_0_makes_more_loaders_in_that_line(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, folds(extra_of_rank_0="evaluation")))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        "Every training item was handed to some rank in each of 3 training passes."
    )


def test_loaders_that_can_not_be_matched_are_undecided(tmp_path: Path) -> None:
    script = folds(extra_of_rank_0="training", counts_its_steps=True)
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "can't be told: observed-seed0, the loader of train.py:15" in judgement.sentence


def drawn_for_all(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    """All ranks draw the same with replacement, a few items often; each keeps its part."""
    weights = np.where(np.arange(script.num_samples) < 6, 20.0, 1.0)
    drawn = np.random.default_rng(epoch).choice(
        script.num_samples, script.num_samples, p=weights / weights.sum()
    )
    return drawn[rank :: script.num_ranks]


def test_a_sampler_for_ranks_that_hands_on_weighted_draws_passes(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(fed=drawn_for_all))
    hole = MissingSamples().measure(study).holes[0]

    assert hole.num_missing > 0.2 * hole.num_items
    assert judge(study).outcome is Outcome.PASS


def test_a_sampler_for_ranks_that_repeats_and_always_leaves_out_the_same_is_undecided(
    tmp_path: Path,
) -> None:
    """Each item of the first half twice, of the second half none: chance does otherwise."""
    script = FakeScript(
        fed=lambda script, rank, epoch: np.repeat(
            np.random.default_rng(epoch).permutation(24)[rank::2], 2
        )
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.UNDECIDED
