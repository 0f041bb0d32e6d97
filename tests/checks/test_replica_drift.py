from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.needs import TWO_RANKS
from scaleproof.checks.replica_drift import ReplicaDrift
from scaleproof.errors import EvidenceError
from scaleproof.evidence.records import TensorKind
from scaleproof.evidence.study import Study, load_study
from studies import FakeArm, build_study

State = dict[tuple[TensorKind, str], np.ndarray]
PARAMETER, BUFFER, OPTIMIZER = TensorKind.PARAMETER, TensorKind.BUFFER, TensorKind.OPTIMIZER


def judge(study: Study, **thresholds: float) -> Judgement:
    check = ReplicaDrift(**thresholds)
    return check.judge(check.measure(study))


def state_with(change: Callable[[int, int, State], None]) -> Callable[[int, int, int], State]:
    def state(_seed: int, rank: int, epochs_done: int) -> State:
        tensors: State = {
            (PARAMETER, "conv.weight"): np.full(16, 2.0 + epochs_done),
            (BUFFER, "norm.running_mean"): np.full(4, 1.0 + epochs_done),
            (OPTIMIZER, "conv.weight/exp_avg"): np.full(16, 0.5),
        }
        change(rank, epochs_done, tensors)
        return tensors

    return state


def drifting(
    tmp_path: Path,
    key: tuple[TensorKind, str],
    *,
    factor: float,
    on: int = 1,
    since: int = 2,
    num_ranks: int = 2,
) -> Study:
    def change(rank: int, epochs_done: int, tensors: State) -> None:
        if rank == on and epochs_done >= since:
            tensors[key] = tensors[key] * factor

    candidate = FakeArm(num_ranks=num_ranks, state=state_with(change))
    return build_study(tmp_path, candidate=candidate)


def test_equal_replicas_pass(tmp_path: Path) -> None:
    judgement = judge(build_study(tmp_path))

    assert judgement.outcome is Outcome.PASS
    assert judgement.sentence == "Replicas agree byte for byte (54 comparisons of tensors)."


def test_a_drifting_parameter_is_named_with_epoch_rank_and_distance(tmp_path: Path) -> None:
    judgement = judge(drifting(tmp_path, (PARAMETER, "conv.weight"), factor=0.9))

    assert judgement.outcome is Outcome.FAIL
    assert judgement.sentence == (
        "ddp-2-seed0, rank 1, after epoch 2: parameter 'conv.weight' differs from rank 0 by "
        "1.0e-01 of its norm (tolerance 1e-06)."
    )
    assert ".module" in judgement.remedy


@pytest.mark.parametrize(
    ("key", "words", "remedy"),
    [
        ((BUFFER, "norm.running_mean"), "buffer 'norm.running_mean'", "SyncBatchNorm"),
        ((OPTIMIZER, "conv.weight/exp_avg"), "optimizer state 'conv.weight/exp_avg'", "loss scale"),
    ],
)
def test_other_kinds_are_named(
    tmp_path: Path, key: tuple[TensorKind, str], words: str, remedy: str
) -> None:
    judgement = judge(drifting(tmp_path, key, factor=1.1))

    assert judgement.outcome is Outcome.FAIL
    assert words in judgement.sentence
    assert remedy in judgement.remedy


def test_of_three_ranks_the_odd_one_is_named_even_if_it_is_rank_0(tmp_path: Path) -> None:
    study = drifting(tmp_path, (PARAMETER, "conv.weight"), factor=2, on=0, num_ranks=3)
    judgement = judge(study)

    assert "rank 0, after epoch 2" in judgement.sentence
    assert "differs from rank 1" in judgement.sentence


def test_parameters_are_told_before_what_follows_from_them(tmp_path: Path) -> None:
    def change(rank: int, _epochs_done: int, tensors: State) -> None:
        for key in tensors:
            tensors[key] = tensors[key] * (1 + rank * (0.01 if key[0] is PARAMETER else 1))

    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, state=state_with(change)))
    judgement = judge(study)

    assert "before training: parameter 'conv.weight'" in judgement.sentence
    assert "(and buffer and optimizer state too)" in judgement.sentence


def test_rounding_passes_and_says_so(tmp_path: Path) -> None:
    judgement = judge(drifting(tmp_path, (PARAMETER, "conv.weight"), factor=1 + 1e-8))

    assert judgement.outcome is Outcome.PASS
    assert "agree up to rounding: 12 of 54 comparisons are unequal, at most 1.0e-08" in (
        judgement.sentence
    )


def test_exactly_at_the_tolerance_passes(tmp_path: Path) -> None:
    study = drifting(tmp_path, (PARAMETER, "conv.weight"), factor=0.75)

    assert judge(study, tolerance=0.25).outcome is Outcome.PASS
    assert judge(study, tolerance=np.nextafter(0.25, 0)).outcome is Outcome.FAIL


def test_a_missing_tensor_fails_by_name(tmp_path: Path) -> None:
    def change(rank: int, _epochs_done: int, tensors: State) -> None:
        if rank == 1:
            tensors[PARAMETER, "lora.weight"] = np.ones(3)

    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, state=state_with(change)))
    judgement = judge(study)

    assert judgement.outcome is Outcome.FAIL
    assert "'lora.weight' is there, which rank 0 does not have" in judgement.sentence


def test_another_size_fails(tmp_path: Path) -> None:
    def change(rank: int, _epochs_done: int, tensors: State) -> None:
        if rank == 1:
            tensors[PARAMETER, "conv.weight"] = np.ones(17)

    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, state=state_with(change)))
    judgement = judge(study)

    assert judgement.outcome is Outcome.FAIL
    assert "has 17 numbers, on rank 0 it has 16" in judgement.sentence


def test_nan_on_one_rank_fails_and_on_both_is_undecided(tmp_path: Path) -> None:
    def on_one(rank: int, epochs_done: int, tensors: State) -> None:
        if rank == 1 and epochs_done == 3:
            tensors[PARAMETER, "conv.weight"][0] = np.nan

    def on_both(rank: int, epochs_done: int, tensors: State) -> None:
        if epochs_done == 3:
            tensors[PARAMETER, "conv.weight"][rank] = np.nan

    one = judge(
        build_study(tmp_path / "1", candidate=FakeArm(num_ranks=2, state=state_with(on_one)))
    )
    both = judge(
        build_study(tmp_path / "2", candidate=FakeArm(num_ranks=2, state=state_with(on_both)))
    )

    assert one.outcome is Outcome.FAIL
    assert "after epoch 3: parameter 'conv.weight' is not finite, unlike on rank 0" in one.sentence
    assert both.outcome is Outcome.UNDECIDED


def drop_states(study: Study, rank: int, epochs_done: int) -> Study:
    records = study.runs["ddp-2", 1].paths.records(rank)
    lines = records.read_text().splitlines(keepends=True)
    kept = [s for s in lines if f'"type":"state","epochs_done":{epochs_done},' not in s]
    assert len(kept) == len(lines) - 1
    records.write_text("".join(kept))
    return load_study(study.paths.root)


def test_a_state_missing_on_one_rank_is_undecided(tmp_path: Path) -> None:
    judgement = judge(drop_states(build_study(tmp_path), rank=1, epochs_done=4))

    assert judgement.outcome is Outcome.UNDECIDED
    assert "ddp-2-seed1, rank 1, after epoch 4" in judgement.sentence


def test_sharded_state_is_not_compared(tmp_path: Path) -> None:
    study = drifting(tmp_path, (PARAMETER, "conv.weight"), factor=2)
    for records in tmp_path.glob("*/*.jsonl"):
        records.write_text(records.read_text().replace('"replicated":true', '"replicated":false'))

    assert judge(study).outcome is Outcome.FAIL
    assert judge(load_study(tmp_path)).outcome is Outcome.NOT_APPLICABLE


def test_one_rank_has_no_replicas(tmp_path: Path) -> None:
    study = build_study(tmp_path, candidate=FakeArm(num_ranks=1, num_devices=2, strategy="dp"))

    assert not TWO_RANKS.is_met(study)


def test_a_tensor_listed_twice_is_refused(tmp_path: Path) -> None:
    build_study(tmp_path)
    records = tmp_path / "ddp-2-seed0" / "rank-00000.jsonl"
    text = records.read_text().replace("norm.running_mean", "conv.weight")
    records.write_text(text.replace('"kind":"buffer"', '"kind":"parameter"'))

    with pytest.raises(EvidenceError, match="lists a tensor twice"):
        judge(load_study(tmp_path))


def test_the_distance_is_right_to_a_tenth_or_so_for_tensors_larger_than_a_sketch() -> None:
    """The sketch as the recorder makes it: signed sums over 64 interleaved buckets."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=64 * 100)
    gaps = rng.normal(size=(50, 64 * 100))
    sketched = (gaps * signs).reshape(50, 100, 64).sum(axis=1)
    ratios = np.linalg.norm(sketched, axis=1) / np.linalg.norm(gaps, axis=1)

    assert abs(ratios.mean() - 1) < 0.03
    assert ratios.std() < 0.12
