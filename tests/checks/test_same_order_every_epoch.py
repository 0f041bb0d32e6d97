from pathlib import Path

import numpy as np

from scaleproof.checks.check import Judgement, Outcome
from scaleproof.checks.same_order_every_epoch import MIN_SAMPLES, SameOrderEveryEpoch
from scaleproof.evidence.study import Study
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
