from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pyroaring import BitMap

from observed import EVALUATION, TRAINING, FakeScript, build_observed
from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.train_validation_overlap import TrainValidationOverlap
from scaleproof.evidence.observations import LoaderRecord, PassRecord, RandomSource
from scaleproof.evidence.study import Study
from scaleproof.evidence.writer import RankWriter
from scaleproof.verdict.run_check import run_check

ALL = 60
"""Items of the one data set that a split is made of: 48 to train on, 12 for validation."""


def judge(study: Study, **thresholds: Any) -> Judgement:
    check = TrainValidationOverlap(**thresholds)
    return check.judge(check.measure(study))


def one_root(rank: int, record: Any) -> Any:
    """Both loaders draw from subsets of one data set."""
    if isinstance(record, LoaderRecord):
        return msgspec.structs.replace(record, data_set=0, num_root=ALL)
    return record


def split(seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(ALL)
    return order[:48], order[48:]


def same_contents(loader: int, ids: np.ndarray) -> np.ndarray:
    return (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(2**40)


def random_split(seed_of: Callable[[int], int], **fields: Any) -> FakeScript:
    """The split of a rank depends on ``seed_of(rank)``."""

    def fed(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        train, _ = split(seed_of(rank))
        return np.random.default_rng(epoch).permutation(train)[rank :: script.num_ranks]

    def evaluated(script: FakeScript, rank: int, epoch: int) -> np.ndarray:
        return np.sort(split(seed_of(rank))[1])[rank :: script.num_ranks]

    values = {"fed": fed, "evaluated": evaluated, "change": one_root, "contents": same_contents}
    return FakeScript(**{"num_evaluation_samples": 12, **values, **fields})


def also(*changes: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
    def change(rank: int, record: Any) -> Any:
        for one in changes:
            record = one(rank, record)
        return record

    return change


def drawn(rank: int, record: Any) -> Any:
    """Training items are augmented at random."""
    if isinstance(record, PassRecord) and record.loader == TRAINING:
        return msgspec.structs.replace(record, drawn=(RandomSource.TORCH,))
    return record


def without_ids(rank: int, record: Any) -> Any:
    if isinstance(record, PassRecord):
        return msgspec.structs.replace(record, has_ids=False)
    return record


def test_other_data_sets_with_other_contents_pass(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == (
        "No rank trained on what the loader of train.py:31 evaluates on (by contents)."
    )


def test_it_runs_as_a_check(tmp_path: Path) -> None:
    finding = run_check(TrainValidationOverlap(), build_observed(tmp_path), blocks=True)

    assert finding.outcome is Outcome.PASS


def test_the_same_split_on_every_rank_passes_by_ids(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, random_split(lambda rank: 5)))

    assert judgement.outcome is Outcome.PASS
    assert "(by ids)" in judgement.sentence


def test_a_split_for_each_rank_fails_and_names_who_trains_on_what(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, random_split(lambda rank: rank)))

    assert judgement.outcome is Outcome.FAIL
    assert "items (" in judgement.sentence
    assert (
        "that the loader of train.py:31 evaluates on were trained on by ranks 0 and 1, from "
        in (judgement.sentence)
    )
    assert "each has a split of its own" in judgement.sentence
    assert "manual_seed" in judgement.remedy


def test_ranks_with_data_of_their_own_each_split_pass(tmp_path: Path) -> None:
    """``data = load(rank)``, then a split of it by the rank's seed: ids mean other items."""
    study = build_observed(tmp_path / "same", random_split(lambda rank: rank))
    assert judge(study).outcome is Outcome.FAIL

    calls = iter(range(1000))

    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        is_second = next(calls) >= 6  # a rank: 3 epochs of 2 loaders
        return same_contents(loader, ids) + np.uint64(is_second)

    study = build_observed(tmp_path / "own", random_split(lambda rank: rank, contents=contents))
    assert judge(study).outcome is Outcome.PASS


def test_augmentation_does_not_hide_a_split_for_each_rank(tmp_path: Path) -> None:
    """One training pass, of contents that never come again, and two evaluations that agree."""
    calls = iter(range(1000))

    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        return same_contents(loader, ids) + np.uint64(next(calls) * (loader == TRAINING))

    def one_epoch(rank: int, record: Any) -> Any:
        is_second = isinstance(record, PassRecord) and record.number == 1
        return None if is_second and record.loader == TRAINING else record

    script = random_split(
        lambda rank: rank,
        contents=contents,
        num_epochs=2,
        change=also(one_root, drawn, one_epoch),
        probed_steps=(),
    )

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.FAIL


@pytest.mark.parametrize("is_hidden", [False, True])
def test_the_training_set_as_the_only_evaluation_is_undecided(
    tmp_path: Path, is_hidden: bool
) -> None:
    script = random_split(
        lambda rank: 5,
        num_evaluation_samples=48,
        evaluated=lambda script, rank, epoch: np.sort(split(5)[0]),
        change=also(one_root, drawn) if is_hidden else one_root,
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "is the training set itself" in judgement.sentence


def with_another_evaluation(ids: np.ndarray) -> Callable[[int, RankWriter], None]:
    """A third loader, over the same data, that evaluates on ``ids`` at the end."""

    def more(rank: int, writer: RankWriter) -> None:
        loader = LoaderRecord(
            loader=2,
            data_set=0,
            data_set_type="torch.utils.data.dataset.TensorDataset",
            num_items=len(ids),
            num_root=ALL,
            sampler="torch.utils.data.sampler.SequentialSampler",
            shards=None,
            batch_size=4,
            drop_last=False,
            num_workers=0,
            where="train.py:77",
        )
        writer.record(loader)
        writer.record(
            PassRecord(
                loader=2,
                number=0,
                use="evaluation",
                epoch=2,
                first_step=18,
                last_step=18,
                is_whole=True,
                has_ids=True,
                num_batches=1,
                num_fed=len(ids),
                order_digest="x",
                seen=writer.blob("seen-2.roaring", BitMap(ids).serialize()),
                repeated=writer.blob("repeated-2.roaring", BitMap().serialize()),
                batch_sizes=writer.array("sizes-2", np.array([len(ids)], np.int32)),
                contents=writer.array("contents-2", np.sort(same_contents(2, ids))),
                content_limit=2**64 - 1,
                num_content_repeats=0,
                sampler_epoch=None,
                base_seed=None,
                random_states={},
                drawn=(),
                is_fetch_seen=True,
            )
        )

    return more


def test_accuracy_on_the_training_set_beside_a_validation_set_passes(tmp_path: Path) -> None:
    more = with_another_evaluation(np.sort(split(5)[0]))
    judgement = judge(build_observed(tmp_path, random_split(lambda rank: 5, more=more)))

    assert judgement.outcome is Outcome.PASS
    assert "the loader of train.py:77 evaluates on training data, on purpose" in judgement.sentence


def test_a_part_of_the_training_set_beside_a_validation_set_is_undecided(tmp_path: Path) -> None:
    more = with_another_evaluation(np.sort(split(5)[0][:10]))
    judgement = judge(build_observed(tmp_path, random_split(lambda rank: 5, more=more)))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "evaluated on purpose" in judgement.sentence


def test_a_part_of_the_training_set_as_the_only_evaluation_fails(tmp_path: Path) -> None:
    script = random_split(
        lambda rank: 5, evaluated=lambda script, rank, epoch: np.sort(split(5)[0])[rank:20:2]
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "20 of the 20 items (100 %)" in judgement.sentence


def test_folds_with_an_optimizer_each_are_kept_apart(tmp_path: Path) -> None:
    """Epoch e is fold e: it evaluates on what the other folds train on."""
    folds = np.random.default_rng(0).permutation(ALL).reshape(3, 20)

    def script(optimizers: list[int]) -> FakeScript:
        def steps(rank: int, table: np.ndarray) -> None:
            table["optimizer"] = np.take(optimizers, table["epoch"])

        return FakeScript(
            fed=lambda script, rank, epoch: np.delete(folds, epoch, axis=0).ravel()[rank::2],
            evaluated=lambda script, rank, epoch: folds[epoch][rank::2],
            contents=same_contents,
            change=one_root,
            steps=steps,
            num_evaluation_samples=20,
        )

    assert judge(build_observed(tmp_path / "own", script([0, 1, 2]))).outcome is Outcome.PASS
    assert judge(build_observed(tmp_path / "one", script([0, 0, 0]))).outcome is not Outcome.PASS


def copies(num_copied: int, num_distinct: int = 2**30) -> FakeScript:
    """Two data sets; the first evaluation items have the contents of training items."""

    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        is_own = (loader == EVALUATION) & (ids >= num_copied)
        return (ids % num_distinct).astype(np.uint64) + np.uint64(1000) * is_own.astype(np.uint64)

    return FakeScript(num_evaluation_samples=40, contents=contents)


def test_copies_in_another_data_set_fail_by_their_contents(tmp_path: Path) -> None:
    judgement = judge(build_observed(tmp_path, copies(10)))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "observed-seed0: 10 of the 40 contents (25 %) that the loader of train.py:31 evaluates on "
        "were trained on by ranks 0 and 1, from the loader of train.py:30."
    )


def test_a_share_exactly_as_allowed_passes(tmp_path: Path) -> None:
    study = build_observed(tmp_path, copies(10))

    assert judge(study, max_share=10 / 40).outcome is Outcome.PASS
    assert judge(study, max_share=10 / 40 - 1e-9).outcome is Outcome.FAIL


def test_rows_copied_before_the_split_fail_by_their_contents(tmp_path: Path) -> None:
    """Other ids of one data set, and the same rows."""
    held_out = split(5)[1]

    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        is_copy = np.isin(ids, held_out) & (loader == EVALUATION)
        return same_contents(TRAINING, np.where(is_copy, split(5)[0][ids % 48], ids))

    judgement = judge(
        build_observed(tmp_path, random_split(lambda rank: 5, contents=contents)), min_contents=5
    )

    assert judgement.outcome is Outcome.FAIL
    assert "contents (" in judgement.sentence


def test_fewer_contents_than_needed_are_undecided(tmp_path: Path) -> None:
    study = build_observed(tmp_path, copies(10))

    assert judge(study, min_contents=40).outcome is Outcome.FAIL
    judgement = judge(study, min_contents=41)
    assert judgement.outcome is Outcome.UNDECIDED
    assert "fewer than 41 are known" in judgement.sentence


def test_data_of_few_distinct_contents_passes(tmp_path: Path) -> None:
    """Both sets are made of the same 12 rows: equal contents are natural."""
    judgement = judge(build_observed(tmp_path, copies(40, num_distinct=12)), min_contents=5)

    assert judgement.outcome is Outcome.PASS
    assert "as many do within each set" in judgement.sentence


def test_another_data_set_hidden_by_augmentation_passes_and_says_so(tmp_path: Path) -> None:
    calls = iter(range(1000))

    def contents(loader: int, ids: np.ndarray) -> np.ndarray:
        return ids.astype(np.uint64) + np.uint64(1000 * next(calls))

    judgement = judge(build_observed(tmp_path, FakeScript(contents=contents, change=drawn)))

    assert judgement.outcome is Outcome.PASS
    assert "is another data set than what is trained on; random augmentation" in judgement.sentence


def test_the_same_stream_with_neither_ids_nor_contents_is_undecided(tmp_path: Path) -> None:
    def no_contents(rank: int, record: Any) -> Any:
        if isinstance(record, PassRecord):
            return msgspec.structs.replace(record, contents=None)
        return record

    script = random_split(lambda rank: 5, change=also(one_root, without_ids, no_contents))
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "neither ids nor contents tell" in judgement.sentence


def test_an_evaluation_before_training_is_none_of_its_business(tmp_path: Path) -> None:
    def early(rank: int, record: Any) -> Any:
        record = one_root(rank, record)
        if isinstance(record, PassRecord) and record.use == "evaluation":
            return msgspec.structs.replace(record, first_step=0, last_step=0)
        return record

    judgement = judge(build_observed(tmp_path, random_split(lambda rank: rank, change=early)))

    assert judgement.outcome is Outcome.NOT_APPLICABLE


def test_one_rank_can_leak_too(tmp_path: Path) -> None:
    script = random_split(
        lambda rank: 5,
        num_ranks=1,
        parallelism="none",
        evaluated=lambda script, rank, epoch: np.append(split(5)[1], split(5)[0][:6]),
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.FAIL
    assert "6 of the 18 items (33.3 %)" in judgement.sentence
    assert "by rank 0" in judgement.sentence


def glance(**fields: Any) -> Callable[[int, RankWriter], None]:
    """A pass over the training loader beside those of training; ``fields`` change its record."""

    def more(rank: int, writer: RankWriter) -> None:
        ids = np.sort(split(5)[0])[:4]
        record = PassRecord(
            loader=TRAINING,
            number=1,
            use="evaluation",
            epoch=0,
            first_step=6,
            last_step=6,
            is_whole=False,
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
        writer.record(msgspec.structs.replace(record, **fields))

    return more


def only_trained(rank: int, record: Any) -> Any:
    """No loader for evaluation; the second training pass comes after the glance."""
    if isinstance(record, LoaderRecord | PassRecord) and record.loader == EVALUATION:
        return None
    if isinstance(record, PassRecord) and record.number:
        return msgspec.structs.replace(record, number=record.number + 1)
    return record


def test_a_look_at_the_shape_of_a_batch_is_no_evaluation(tmp_path: Path) -> None:
    """``len(next(iter(loader))[0])`` in every epoch, as in PyTorch's DDP tutorial."""
    script = random_split(lambda rank: 5, change=also(one_root, only_trained), more=glance())

    assert judge(build_observed(tmp_path, script)).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"number": 9}, id="not trained with afterwards"),
        pytest.param({"num_batches": 2}, id="two batches"),
        pytest.param({"is_whole": True}, id="all there is"),
    ],
)
def test_more_than_a_look_is_an_evaluation_on_training_data(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    script = random_split(
        lambda rank: 5, change=also(one_root, only_trained), more=glance(**fields)
    )
    judgement = judge(build_observed(tmp_path, script))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "is the training set itself" in judgement.sentence
