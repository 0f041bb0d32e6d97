from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from observed import TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.same_order_every_epoch import MIN_SAMPLES, SameOrderEveryEpoch
from scaleproof.evidence.observations import LoaderRecord, PassRecord
from scaleproof.evidence.study import Study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.run_check import run_check
from studies import FakeArm, build_study


def judge(study: Study) -> Judgement:
    check = SameOrderEveryEpoch()
    return check.judge(check.measure(study))


def in_order_of(epoch_of: dict[int, int]):
    """A rank's part, in epoch e shuffled as if it were epoch ``epoch_of[e]``."""

    def feeding(arm: FakeArm, seed: int, rank: int, epoch: int) -> np.ndarray:
        order = np.random.default_rng([seed, epoch_of.get(epoch, epoch)])
        return order.permutation(arm.num_train_samples)[rank :: arm.num_ranks]

    return feeding


def test_a_new_order_every_epoch_passes(tmp_path: Path) -> None:
    judgement = judge(build_study(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert "each of 6 ranks" in judgement.sentence


def test_the_same_order_in_all_epochs_fails_and_names_run_and_rank(tmp_path: Path) -> None:
    candidate = FakeArm(num_ranks=2, fed=in_order_of(dict.fromkeys(range(5), 0)))
    judgement = judge(build_study(tmp_path, candidate=candidate))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "ddp-2-seed0, rank 0: 24 samples came in the same order in all 5 epochs; the same on "
        "5 other ranks over all runs."
    )
    assert "set_epoch" in judgement.remedy


def test_the_same_order_in_some_epochs_fails_and_names_them(tmp_path: Path) -> None:
    candidate = FakeArm(num_ranks=2, fed=in_order_of({3: 1}))
    judgement = judge(build_study(tmp_path, candidate=candidate, seeds=(4,)))

    assert judgement.outcome is Outcome.FAIL
    assert "ddp-2-seed4, rank 0: 24 samples came in the same order in epochs 2 and 4;" in (
        judgement.sentence
    )


def test_one_epoch_is_undecided(tmp_path: Path) -> None:
    arms = {"baseline": FakeArm(num_epochs=1), "candidate": FakeArm(num_ranks=2, num_epochs=1)}
    judgement = judge(build_study(tmp_path, **arms))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "0 of 6 ranks" in judgement.sentence


def test_exactly_enough_samples_are_judged_and_one_fewer_is_undecided(tmp_path: Path) -> None:
    same = in_order_of(dict.fromkeys(range(5), 0))
    enough = FakeArm(num_ranks=2, num_train_samples=2 * MIN_SAMPLES, fed=same)
    too_few = enough.with_(num_train_samples=2 * MIN_SAMPLES - 2)

    assert judge(
        build_study(tmp_path / "enough", candidate=enough, has_baseline=False)
    ).outcome is (Outcome.FAIL)
    assert judge(build_study(tmp_path / "few", candidate=too_few, has_baseline=False)).outcome is (
        Outcome.UNDECIDED
    )


def test_a_baseline_with_the_fault_is_no_measure(tmp_path: Path) -> None:
    baseline = FakeArm(fed=in_order_of(dict.fromkeys(range(5), 0)))
    judgement = judge(build_study(tmp_path, baseline=baseline))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "The baseline is no measure: single-1-seed0, rank 0" in judgement.sentence


def script_with(
    order_of: Callable[[int, int], np.ndarray], *, epochs: bool = False, **fields: Any
) -> FakeScript:
    """Two ranks; ``order_of`` gives a rank's ids of an epoch. ``epochs``: ``set_epoch`` is
    called. ``fields`` change the training loader's record, or, where they have them, its passes."""

    def change(rank: int, record: Any) -> Any:
        if getattr(record, "loader", None) != TRAINING:
            return record
        if isinstance(record, PassRecord):
            epoch = record.number if epochs else 0
            record = msgspec.structs.replace(record, sampler_epoch=epoch)
        known = {key: value for key, value in fields.items() if hasattr(record, key)}
        return msgspec.structs.replace(record, **known)

    return FakeScript(fed=lambda script, rank, epoch: order_of(rank, epoch), change=change)


def shuffled(rank: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(48)[rank::2]


def shuffled_once(rank: int, epoch: int) -> np.ndarray:
    return shuffled(rank, 0)


def ascending(rank: int, epoch: int) -> np.ndarray:
    return np.arange(rank, 48, 2)


def test_a_script_that_shuffles_anew_passes(tmp_path: Path) -> None:
    study = build_observed(tmp_path, script_with(shuffled, epochs=True))
    finding = run_check(SameOrderEveryEpoch(), study, blocks=True)

    assert finding.outcome is Outcome.PASS
    assert "each of 2 ranks" in finding.sentence


def test_a_script_without_set_epoch_fails_and_names_the_loader(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, script_with(shuffled_once)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, rank 0: 24 samples came in the same order in all 3 training passes over "
        "the loader of train.py:30; the same on 1 other rank over all runs."
    )


def test_a_generator_that_is_seeded_anew_every_epoch_fails(tmp_path: Path) -> None:
    script = script_with(
        shuffled_once, sampler="torch.utils.data.sampler.RandomSampler", shards=None
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_a_loader_made_anew_every_epoch_is_compared_with_those_before(tmp_path: Path) -> None:
    base = script_with(shuffled_once)

    def change(rank: int, record: Any) -> Any:
        record = base.change(rank, record)
        if isinstance(record, PassRecord) and record.loader == TRAINING:
            return msgspec.structs.replace(record, loader=10 + record.number, number=0)
        return record

    def more(rank: int, writer: RankWriter) -> None:
        for number in range(3):
            loader = LoaderRecord(
                loader=10 + number,
                data_set=0,
                data_set_type="TensorDataset",
                num_items=48,
                num_root=48,
                sampler="torch.utils.data.distributed.DistributedSampler",
                shards=(rank, 2),
                batch_size=4,
                drop_last=False,
                num_workers=0,
                where="train.py:50",
            )
            writer.record(loader)

    judgement = judge(build_observed(tmp_path, replace(base, change=change, more=more)))

    assert judgement.outcome is Outcome.FAIL
    assert "all 3 training passes over the loader of train.py:50" in judgement.sentence


def ascending_padded(rank: int, epoch: int) -> np.ndarray:
    """47 items: the last rank gets the first one again."""
    return np.append(np.arange(1, 47, 2), 0) if rank else np.arange(0, 47, 2)


@pytest.mark.parametrize(
    "script",
    [
        script_with(ascending),
        script_with(ascending_padded),
        script_with(ascending, sampler="x.SequentialSampler", shards=None),
        script_with(shuffled_once, epochs=True),
        script_with(shuffled_once, sampler="x.SequentialSampler", num_items=40, shards=None),
    ],
    ids=["shuffle=False", "padded", "sequential", "epoch ignored", "sequential subset"],
)
def test_an_order_that_was_chosen_passes_with_a_note(tmp_path: Path, script: FakeScript) -> None:
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert "Its sampler does not shuffle" in judgement.sentence


def test_a_sequential_sampler_that_a_batch_sampler_replaced_is_not_asked(tmp_path: Path) -> None:
    script = script_with(
        shuffled_once, sampler="x.SequentialSampler", num_items=40, batch_size=None, shards=None
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


def test_one_training_pass_can_not_repeat(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, FakeScript(num_epochs=1)))

    assert judgement.outcome is Outcome.NOT_APPLICABLE


def test_nobody_knows_the_order_of_a_stream(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, script_with(shuffled_once, has_ids=False)))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "over data with indices" in judgement.sentence


def test_a_single_batch_has_no_order(tmp_path: Path) -> None:
    script = replace(script_with(shuffled_once), batch_size=24)

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.NOT_APPLICABLE


def test_a_script_without_loaders_is_not_asked(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        return None if isinstance(record, LoaderRecord | PassRecord) else record

    study = build_observed(tmp_path, FakeScript(change=change))
    finding = run_check(SameOrderEveryEpoch(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def with_steps_after(num_after: int, num_epochs: int = 1) -> FakeScript:
    """48 items for each rank, in 12 batches a pass; the last pass ends ``num_after`` steps before
    training does."""

    def change(rank: int, record: Any) -> Any:
        if isinstance(record, PassRecord) and record.loader == TRAINING:
            last = record.last_step - (num_after if record.number == num_epochs - 1 else 0)
            return msgspec.structs.replace(record, last_step=last)
        return record

    return FakeScript(num_samples=96, num_epochs=num_epochs, change=change)


def test_steps_after_the_only_pass_are_undecided(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, with_steps_after(8)))

    assert judgement.outcome is Outcome.UNDECIDED
    assert judgement.sentence == (
        "observed-seed0, rank 0: 8 of 12 steps were made after the only pass over the loader of "
        "train.py:30 had ended: itertools.cycle, for one, hands out the same batches in the same "
        "order again."
    )
    assert "yield from loader" in judgement.remedy


def test_steps_after_the_last_of_several_passes_are_undecided(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, with_steps_after(8, num_epochs=3)))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "the last of 3 training passes, over the loader of train.py:30, had ended" in (
        judgement.sentence
    )


def test_a_step_after_the_end_of_the_pass_is_no_second_pass(tmp_path: Path) -> None:
    one = judge(build_observed(tmp_path / "one", with_steps_after(1)))
    two = judge(build_observed(tmp_path / "two", with_steps_after(2)))

    assert one.outcome is Outcome.NOT_APPLICABLE
    assert two.outcome is Outcome.UNDECIDED
