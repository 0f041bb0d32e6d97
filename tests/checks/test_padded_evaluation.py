from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pyroaring import BitMap

from observed import EVALUATION, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.padded_evaluation import PaddedEvaluation
from scaleproof.evidence.observations import LoaderRecord, MetricRecord, PassRecord
from scaleproof.evidence.study import Study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.run_check import run_check

ELEVEN = np.arange(11)


def judge(study: Study, **thresholds: float) -> Judgement:
    check = PaddedEvaluation(**thresholds)
    return check.judge(check.measure(study))


def changed(loader: dict[str, Any], record_of_pass: dict[str, Any] | None = None) -> Any:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord) and record.loader == EVALUATION:
            return msgspec.structs.replace(record, **loader)
        if isinstance(record, PassRecord) and record.loader == EVALUATION:
            return msgspec.structs.replace(record, **(record_of_pass or {}))
        return record

    return change


def padded(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    return np.append(ELEVEN, 0)[rank::2]


def cut(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
    return ELEVEN[:10][rank::2]


def test_every_item_once_passes(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == "Every item was scored once, by one rank (3 evaluations)."


def test_it_runs_as_a_check(tmp_path: Path) -> None:
    finding = run_check(PaddedEvaluation(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_padding_by_one_item_fails_with_its_numbers(tmp_path: Path) -> None:
    judgement = judge(
        build_observed(tmp_path, FakeScript(num_evaluation_samples=11, evaluated=padded))
    )

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0, evaluation 1 with the loader of train.py:31: 12 items scored, 11 "
        "different (ranks 0 and 1), so that figures may be off by up to 9.1 %."
    )


def test_a_tail_that_is_dropped_fails_with_its_numbers(tmp_path: Path) -> None:
    script = FakeScript(
        num_evaluation_samples=11, evaluated=cut, change=changed({"drop_last": True})
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "10 items scored, 10 different, 1 left out" in judgement.sentence


def test_a_pass_that_was_broken_off_leaves_nothing_out(tmp_path: Path) -> None:
    script = FakeScript(
        num_evaluation_samples=11, evaluated=cut, change=changed({}, {"is_whole": False})
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_every_rank_scoring_everything_passes_with_a_note(tmp_path: Path) -> None:
    script = FakeScript(
        num_evaluation_samples=11,
        evaluated=lambda script, rank, epoch: ELEVEN,
        change=changed({"shards": None}),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert "N times the work" in judgement.sentence


def test_one_rank_that_evaluates_alone_passes(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord | PassRecord) and record.loader == EVALUATION:
            if rank == 1:
                return None
            if isinstance(record, LoaderRecord):
                return msgspec.structs.replace(record, shards=None)
        return record

    script = FakeScript(
        num_evaluation_samples=11,
        evaluated=lambda script, rank, epoch: ELEVEN,
        change=change,
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == "One rank evaluates on its own (3 evaluations)."


def test_rank_0_evaluating_more_often_alone_is_matched_by_its_steps(tmp_path: Path) -> None:
    """Rank 1 leaves out the first evaluation: its first is rank 0's second. Every evaluation
    is divided in another way."""

    def change(rank: int, record: Any) -> Any:
        is_evaluation = isinstance(record, PassRecord) and record.loader == EVALUATION
        if is_evaluation and rank == 1 and record.number == 0:
            return None
        return record

    def evaluated(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(script.num_evaluation_samples)[rank::2]

    study = build_observed(tmp_path, FakeScript(change=change, evaluated=evaluated))
    measurement = PaddedEvaluation().measure(study)

    assert measurement.num_passes == 3
    assert judge(study).outcome is Outcome.PASS


def test_random_draws_for_evaluation_pass(tmp_path: Path) -> None:
    script = FakeScript(
        evaluated=lambda script, rank, epoch: np.random.default_rng(rank).permutation(16)[:10],
        change=changed({"sampler": "torch.utils.data.sampler.RandomSampler", "shards": None}),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def test_accelerates_padding_is_undecided_and_the_trainers_is_dropped(tmp_path: Path) -> None:
    accelerate = changed(
        {
            "sampler": "torch.utils.data.sampler.SequentialSampler",
            "shards": None,
            "batch_size": None,
        }
    )

    def more(rank: int, writer: RankWriter) -> None:
        writer.record(
            MetricRecord(
                source="transformers",
                name="eval_accuracy",
                value=0.9,
                epoch=0,
                steps_done=6,
                num_collectives=1,
                evaluation_loader=EVALUATION,
            )
        )

    script = FakeScript(num_evaluation_samples=11, evaluated=padded, change=accelerate)
    judgement = judge(build_observed(tmp_path / "accelerate", script))
    assert judgement.outcome is Outcome.UNDECIDED
    assert "gather_for_metrics" in judgement.remedy

    script = FakeScript(num_evaluation_samples=11, evaluated=padded, change=accelerate, more=more)
    judgement = judge(build_observed(tmp_path / "trainer", script))
    assert judgement.outcome is Outcome.PASS
    assert "dropped before figures are made" in judgement.sentence


def test_a_share_exactly_as_allowed_passes(tmp_path: Path) -> None:
    study = build_observed(tmp_path, FakeScript(num_evaluation_samples=11, evaluated=padded))

    assert judge(study, max_share=1 / 11).outcome is Outcome.PASS
    assert judge(study, max_share=1 / 11 - 1e-9).outcome is Outcome.FAIL


def test_data_without_indices_is_not_applicable(tmp_path: Path) -> None:
    script = FakeScript(
        evaluated=padded,
        change=changed({"num_items": -1, "num_root": -1}, {"has_ids": False}),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.NOT_APPLICABLE
    assert "no indices" in judgement.sentence


def test_a_script_that_does_not_evaluate_has_nothing_to_pad(tmp_path: Path) -> None:
    def change(rank: int, record: Any) -> Any:
        if isinstance(record, LoaderRecord | PassRecord) and record.loader == EVALUATION:
            return None
        return record

    study = build_observed(tmp_path, FakeScript(change=change))
    finding = run_check(PaddedEvaluation(), study, blocks=True)

    assert finding.outcome is Outcome.NOT_APPLICABLE
    assert not finding.is_evidence_missing


def test_padding_that_gather_for_metrics_drops_again_passes(tmp_path: Path) -> None:
    """On every rank: one that gathers on its own would have waited for ever."""
    script = FakeScript(
        num_evaluation_samples=11, evaluated=padded, change=changed({}, {"drops_padding": True})
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.PASS
    assert "are dropped before figures are made" in judgement.sentence


def own_subsets(
    sizes: tuple[int, int], num_root: int, *, num_scored: int | None = None, shares: bool = False
) -> FakeScript:
    """Rank 0 scores the first items of the data set, rank 1 the next: ``sizes`` of them, or the
    first ``num_scored`` of those. ``shares``: training draws from the data set as well."""

    def change(rank: int, record: Any) -> Any:
        if not isinstance(record, LoaderRecord):
            return record
        if record.loader == EVALUATION:
            return msgspec.structs.replace(
                record,
                num_items=sizes[rank],
                num_root=num_root,
                sampler="torch.utils.data.sampler.SequentialSampler",
                shards=None,
                drop_last=num_scored is not None,
                data_set=0 if shares else record.data_set,
            )
        return record

    def evaluated(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        first = sizes[0] * rank
        return np.arange(first, first + (num_scored or sizes[rank]))

    return FakeScript(evaluated=evaluated, change=change)


@pytest.mark.parametrize("num_scored", [8, 4])
def test_the_tails_of_the_ranks_subsets_that_are_dropped_fail(
    tmp_path: Path, num_scored: int
) -> None:
    """Batches of 4. Of 4 each, all ranks together score no more than one of them holds."""
    script = own_subsets((11, 10), 21, num_scored=num_scored)
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert (
        f"{2 * num_scored} items scored, {2 * num_scored} different, {21 - 2 * num_scored} left out"
    ) in judgement.sentence


def test_subsets_of_all_items_pass(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, own_subsets((11, 10), 21)))

    assert judgement.outcome is Outcome.PASS


def test_what_dividing_into_equal_parts_rounds_off_fails(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, own_subsets((10, 10), 21)))

    assert judgement.outcome is Outcome.FAIL
    assert "20 items scored, 20 different, 1 left out" in judgement.sentence


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(own_subsets((10, 10), 21, shares=True), id="the rest is trained on"),
        pytest.param(own_subsets((10, 10), 22), id="as many as there are ranks"),
        pytest.param(own_subsets((10, 9), 20), id="parts that are not equal"),
    ],
)
def test_a_part_that_was_chosen_passes(tmp_path: Path, script: FakeScript) -> None:
    assert judge(build_observed(tmp_path, script)).outcome is Outcome.PASS


def with_tail(
    ids: tuple[int, ...], *, on: tuple[int, ...] = (0, 1), loader: Any = None, made: Any = None
) -> FakeScript:
    """300 of 301 items are divided; a loader of another line scores ``ids`` after the last epoch.
    ``loader`` and ``made`` change its records."""
    num_items = 301

    def more(rank: int, writer: RankWriter) -> None:
        if rank not in on:
            return
        record = LoaderRecord(
            loader=2,
            data_set=EVALUATION,
            data_set_type="torch.utils.data.dataset.TensorDataset",
            num_items=len(ids),
            num_root=num_items,
            sampler="torch.utils.data.sampler.SequentialSampler",
            shards=None,
            batch_size=4,
            drop_last=False,
            num_workers=0,
            where="train.py:77",
        )
        this = PassRecord(
            loader=2,
            number=0,
            use="evaluation",
            epoch=0,
            first_step=6,
            last_step=6,
            is_whole=True,
            has_ids=True,
            num_batches=1,
            num_fed=len(ids),
            order_digest="x",
            seen=writer.blob("seen-2.roaring", BitMap(ids).serialize()),
            repeated=writer.blob("repeated-2.roaring", BitMap().serialize()),
            batch_sizes=writer.array("sizes-2", np.array([len(ids)], np.int32)),
            contents=None,
            content_limit=2**64 - 1,
            num_content_repeats=0,
            sampler_epoch=None,
            base_seed=None,
            random_states={},
            drawn=(),
            is_fetch_seen=True,
        )
        writer.record(msgspec.structs.replace(record, **(loader or {})))
        writer.record(msgspec.structs.replace(this, **(made or {})))

    return FakeScript(
        num_epochs=1,
        num_samples=48,
        num_evaluation_samples=num_items,
        evaluated=lambda script, rank, epoch: np.arange(num_items - 1)[rank::2],
        change=changed({"drop_last": True}),
        more=more,
    )


@pytest.mark.parametrize("on", [(0, 1), (0,)])
def test_a_tail_that_another_loader_scores_is_not_left_out(
    tmp_path: Path, on: tuple[int, ...]
) -> None:
    """As in PyTorch's ImageNet example: ``Subset(val, range(len(sampler) * world, len(val)))``."""
    judgement = judge(build_observed(tmp_path, with_tail((300,), on=on)))

    assert judgement.outcome is Outcome.PASS
    assert ("a loader that all of them go through whole" in judgement.sentence) is (on == (0, 1))


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(with_tail((300,), on=()), id="no tail"),
        pytest.param(with_tail((299,)), id="an item that was scored before"),
        pytest.param(with_tail((299, 300)), id="begins too early"),
        pytest.param(with_tail(tuple(range(300, 330))), id="another set, larger than the rest"),
        pytest.param(with_tail((300,), loader={"data_set": 7}), id="of another data set"),
        pytest.param(with_tail((300,), loader={"num_items": 30}), id="an item of a larger set"),
        pytest.param(with_tail((300,), made={"first_step": 3}), id="at another step"),
        pytest.param(with_tail((300,), made={"is_whole": False}), id="broken off"),
    ],
)
def test_what_is_not_the_rest_leaves_the_tail_out(tmp_path: Path, script: FakeScript) -> None:
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "300 items scored, 300 different, 1 left out" in judgement.sentence
