import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made_checks import judge_made, made

from scaleproof.checks.check import Outcome, Question
from scaleproof.errors import EvidenceError, UsageError
from scaleproof.evidence.records import RankOutcome, TensorKind
from scaleproof.evidence.study import Study, load_study
from scaleproof.verdict.answers import Answer, Decision, Verdict
from scaleproof.verdict.profile import profile_from_dict
from scaleproof.verdict.verdict import exit_code, judge_study
from studies import FakeArm, build_study, flip_share

TWO = FakeArm(num_ranks=2, epoch_time_s=0.55)


def judge(study: Study, **profile: Any) -> Verdict:
    verdict = judge_study(study, profile_from_dict(profile))
    msgspec.json.encode(verdict)  # every report format needs it
    assert verdict.headline.endswith(".")
    assert verdict.headline.isprintable()
    assert all(finding.sentence.endswith(".") for finding in verdict.findings)
    return verdict


def answers_of(verdict: Verdict) -> dict[Question, Answer]:
    return {answer.question: answer.answer for answer in verdict.answers}


def wrong(share: float) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda seed, targets: flip_share(targets, share=share, seed=seed)


def blind_to_ships(_seed: int, targets: np.ndarray) -> np.ndarray:
    return np.where(targets == 2, 0, targets).astype(np.int32)


def failing_at(
    *, first_rank: int, phase: str = "training", message: str = "bad batch\nmore"
) -> Callable[[int, int], RankOutcome]:
    """Seed 1 fails: ``first_rank`` with its own error, the other a second later because of it."""

    def outcome(seed: int, rank: int) -> RankOutcome:
        if seed != 1:
            return RankOutcome(status="ok", epoch=4, step=0, phase="ended")
        is_first = rank == first_rank
        return RankOutcome(
            status="error",
            epoch=2,
            step=16,
            phase=phase,
            error_type="ValueError" if is_first else "RuntimeError",
            message=message if is_first else "Connection closed by peer",
            ended_at_unix_s=100.0 if is_first else 101.0,
        )

    return outcome


# --- adopt


def test_faster_as_good_sound_and_fit_is_adopted_with_its_numbers(tmp_path: Path) -> None:
    verdict = judge(build_study(tmp_path))

    assert verdict.decision is Decision.ADOPT
    assert set(answers_of(verdict).values()) == {Answer.YES}
    assert verdict.headline == (
        "Adopt 2 devices (ddp): 45 % less time per epoch, accuracy 90.0 % against 90.0 %, "
        "no fault found."
    )
    assert len(verdict.next_steps) == 1
    assert exit_code(verdict) == 0


def test_the_four_answers_come_in_their_order_with_numbers(tmp_path: Path) -> None:
    verdict = judge(build_study(tmp_path))

    assert [answer.question for answer in verdict.answers] == list(Question)
    assert "less time per epoch" in verdict.answers[0].sentence
    assert "90.00 %" in verdict.answers[1].sentence
    assert "No fault found by 4 checks" in verdict.answers[2].sentence
    assert "always guessing" in verdict.answers[3].sentence


def test_an_advisory_fail_is_told_but_does_not_reject(tmp_path: Path) -> None:
    study = build_study(tmp_path)
    strict = {"low-efficiency": {"min_efficiency": 0.99}}
    verdict = judge(study, checks=strict)

    assert verdict.decision is Decision.ADOPT
    assert [f.check for f in verdict.findings if f.outcome is Outcome.FAIL] == ["low-efficiency"]
    assert len(verdict.next_steps) == 2
    assert judge(study, checks=strict, advisory=[]).decision is Decision.REJECT


# --- reject


def drifting(_seed: int, rank: int, epochs_done: int) -> dict[tuple[TensorKind, str], np.ndarray]:
    drift = 0.1 * rank * (epochs_done > 1)
    return {(TensorKind.PARAMETER, "fc.weight"): np.full(8, 1.0 + drift)}


def nan_at_the_end(_seed: int, num_steps: int) -> np.ndarray:
    losses = np.full(num_steps, 1.0)
    losses[-1] = np.nan
    return losses


def rising_at_the_end(_seed: int, num_steps: int) -> np.ndarray:
    losses = np.linspace(2, 1, num_steps)
    losses[-num_steps // 5 :] += 1
    return losses


REJECTED: dict[str, tuple[FakeArm, dict[str, Any], str, str]] = {
    "slower": (TWO.with_(epoch_time_s=1.5), {}, "no-speed-up", "more time per epoch"),
    "not fast enough": (
        TWO,
        {"no-speed-up": {"min_speed_up": 1.95}},
        "no-speed-up",
        "wanted at least 1.95×",
    ),
    "less accurate": (TWO.with_(predictions=wrong(0.3)), {}, "accuracy-drop", "70.00 %"),
    "a class lost": (
        TWO.with_(predictions=blind_to_ships),
        {},
        "accuracy-paradox",
        "0 % recall on 'ship'",
    ),
    "below the floor": (
        TWO,
        {"accuracy-below-floor": {"min_accuracy": 0.95}},
        "accuracy-below-floor",
        "is below the floor of 95.0 %",
    ),
    "loss too high": (
        TWO.with_(evaluation_loss=lambda _seed, done: 2.0 if done == 0 else 0.9),
        {},
        "loss-mismatch",
        "loss",
    ),
    "loss rises again": (
        TWO.with_(step_losses=rising_at_the_end),
        {},
        "unstable-loss",
        "rose again",
    ),
    "a loss is NaN": (TWO.with_(step_losses=nan_at_the_end), {}, "non-finite", "epoch 5, step 6"),
    "replicas drift": (TWO.with_(state=drifting), {}, "replica-drift", "'fc.weight'"),
    "data not shared out": (
        TWO.with_(
            fed=lambda arm, seed, _rank, epoch: np.random.default_rng([seed, epoch]).permutation(
                arm.num_train_samples
            )
        ),
        {},
        "sample-coverage",
        "fed to more than one rank (by ranks 0 and 1)",
    ),
    "never shuffled": (
        TWO.with_(fed=lambda arm, _seed, rank, _epoch: np.arange(rank, arm.num_train_samples, 2)),
        {},
        "same-order-every-epoch",
        "same order in all 5 epochs",
    ),
}


@pytest.mark.parametrize("fault", REJECTED)
def test_each_kind_of_fault_rejects_and_is_the_headline(tmp_path: Path, fault: str) -> None:
    candidate, checks, culprit, words = REJECTED[fault]
    verdict = judge(build_study(tmp_path, candidate=candidate), checks=checks)
    finding = next(f for f in verdict.findings if f.check == culprit)

    assert finding.outcome is Outcome.FAIL
    assert verdict.decision is Decision.REJECT
    assert answers_of(verdict)[finding.question] is Answer.NO
    assert verdict.headline == f"Reject: {finding.sentence}"
    assert words in verdict.headline
    assert verdict.next_steps[0] == finding.remedy
    assert len(set(verdict.next_steps)) == len(verdict.next_steps)
    assert exit_code(verdict) == 1


def test_three_times_faster_does_not_make_up_for_a_lost_class(tmp_path: Path) -> None:
    def targets() -> np.ndarray:
        return (np.arange(5000) >= 4950).astype(np.int32)

    def predictions(_seed: int, targets: np.ndarray) -> np.ndarray:
        found = np.zeros_like(targets)
        found[4950:4956] = 1
        return found

    candidate = TWO.with_(epoch_time_s=1 / 3, targets=targets, predictions=predictions)
    baseline = FakeArm(targets=targets, predictions=predictions)
    study = build_study(
        tmp_path,
        candidate=candidate,
        baseline=baseline,
        class_names=("legitimate", "fraud"),
    )
    verdict = judge(study)

    assert answers_of(verdict)[Question.FASTER] is Answer.YES
    assert verdict.decision is Decision.REJECT
    assert verdict.headline.startswith("Reject: 12 % recall on 'fraud'")


def test_soundness_is_told_before_what_follows_from_it_and_speed_last(tmp_path: Path) -> None:
    candidate = TWO.with_(state=drifting, predictions=wrong(0.3), epoch_time_s=2.0)
    verdict = judge(build_study(tmp_path, candidate=candidate))
    remedies = [
        next(f.remedy for f in verdict.findings if f.check == name)
        for name in ("replica-drift", "accuracy-drop", "no-speed-up")
    ]

    assert "'fc.weight'" in verdict.headline
    assert [step for step in verdict.next_steps if step in remedies] == remedies


# --- undecided


def test_one_seed_is_undecided_unless_the_profile_allows_it(tmp_path: Path) -> None:
    study = build_study(tmp_path, seeds=(0,))
    verdict = judge(study)

    assert verdict.decision is Decision.UNDECIDED
    assert answers_of(verdict)[Question.AS_GOOD] is Answer.UNDECIDED
    assert "one" in verdict.headline.lower()
    assert any("--seeds" in step for step in verdict.next_steps)
    assert exit_code(verdict) == 3
    allowed = judge(study, allow_single_seed=True)
    assert answers_of(allowed)[Question.AS_GOOD] is not Answer.NO


def test_sharing_a_device_says_nothing_about_speed_and_never_adopts(tmp_path: Path) -> None:
    verdict = judge(build_study(tmp_path, share_device=True))

    assert answers_of(verdict)[Question.FASTER] is Answer.NOT_APPLICABLE
    assert verdict.decision is Decision.UNDECIDED
    assert "--share-device" in verdict.headline
    assert any("without --share-device" in step for step in verdict.next_steps)


def test_a_single_arm_is_never_adopted_however_sound(tmp_path: Path) -> None:
    verdict = judge(build_study(tmp_path, has_baseline=False))

    assert answers_of(verdict) == {
        Question.FASTER: Answer.NOT_APPLICABLE,
        Question.AS_GOOD: Answer.NOT_APPLICABLE,  # although its loss is stable
        Question.SOUND: Answer.YES,
        Question.FIT: Answer.YES,
    }
    assert verdict.decision is Decision.UNDECIDED
    assert "baseline" in verdict.headline
    assert any("--devices 1,N" in step for step in verdict.next_steps)


def test_a_single_arm_is_still_rejected_for_a_fault(tmp_path: Path) -> None:
    verdict = judge(build_study(tmp_path, has_baseline=False, candidate=TWO.with_(state=drifting)))

    assert verdict.decision is Decision.REJECT


@pytest.mark.parametrize("kind", ["samples", "state", "evaluation"])
def test_records_that_nobody_wrote_are_not_taken_for_all_is_well(tmp_path: Path, kind: str) -> None:
    build_study(tmp_path)
    for records in tmp_path.glob("*/rank-*.jsonl"):
        lines = records.read_text().splitlines(keepends=True)
        records.write_text("".join(line for line in lines if f'"type":"{kind}"' not in line))
    verdict = judge(load_study(tmp_path))

    assert verdict.decision is Decision.UNDECIDED
    assert verdict.next_steps


def test_a_failed_run_is_told_once_by_the_rank_that_failed_first(tmp_path: Path) -> None:
    candidate = TWO.with_(outcome=failing_at(first_rank=1))
    verdict = judge(build_study(tmp_path, candidate=candidate))

    (sentence,) = verdict.failed_runs
    assert verdict.decision is Decision.UNDECIDED
    assert sentence.startswith("ddp-2-seed1: rank 1 failed in epoch 3, step 17: ")
    assert "ValueError: bad batch" in sentence
    assert "Connection closed" not in sentence
    assert verdict.headline == f"Undecided: {verdict.failed_runs[0]}"
    assert verdict.unfinished_runs == ()
    assert "scaleproof compare fake" in verdict.next_steps[0]
    assert exit_code(verdict) == 4


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("starting", "rank 0 failed while starting: "),
        ("evaluating", "rank 0 failed while evaluating in epoch 3: "),
    ],
)
def test_a_failed_run_says_what_it_was_doing(tmp_path: Path, phase: str, words: str) -> None:
    outcome = failing_at(first_rank=0, phase=phase)
    verdict = judge(build_study(tmp_path, candidate=TWO.with_(outcome=outcome)))

    assert words in verdict.failed_runs[0]


def test_a_message_from_a_failed_rank_can_not_write_on_the_terminal(tmp_path: Path) -> None:
    outcome = failing_at(first_rank=0, message="\x1b[2Jgone" + "x" * 1000)
    verdict = judge(build_study(tmp_path, candidate=TWO.with_(outcome=outcome)))

    assert verdict.failed_runs[0].isprintable()
    assert len(verdict.failed_runs[0]) < 600


def test_a_failed_run_keeps_from_adopting_what_the_others_show(tmp_path: Path) -> None:
    seeds = (0, 1, 2, 3, 4)
    candidate = TWO.with_(outcome=failing_at(first_rank=0))
    verdict = judge(build_study(tmp_path, candidate=candidate, seeds=seeds))

    assert set(answers_of(verdict).values()) == {Answer.YES}
    assert verdict.decision is Decision.UNDECIDED


def test_a_reject_stands_although_a_run_failed(tmp_path: Path) -> None:
    candidate = TWO.with_(outcome=failing_at(first_rank=1), state=drifting)
    verdict = judge(build_study(tmp_path, candidate=candidate))

    assert verdict.decision is Decision.REJECT
    assert "'fc.weight'" in verdict.headline
    assert len(verdict.failed_runs) == 1
    assert exit_code(verdict) == 1


def test_a_run_that_never_ended_is_undecided_and_named(tmp_path: Path) -> None:
    build_study(tmp_path)
    (tmp_path / "ddp-2-seed1" / "rank-00001.outcome.json").unlink()
    shutil.rmtree(tmp_path / "single-1-seed2")
    verdict = judge(load_study(tmp_path))

    assert verdict.decision is Decision.UNDECIDED
    assert verdict.unfinished_runs == ("ddp-2-seed1", "single-1-seed2")
    assert verdict.headline == (
        "Undecided: 2 of 6 runs did not finish (ddp-2-seed1 and single-1-seed2)."
    )
    assert "scaleproof compare fake" in verdict.next_steps[0]
    assert exit_code(verdict) == 3


def test_nothing_finished_is_undecided(tmp_path: Path) -> None:
    build_study(tmp_path)
    for outcome in tmp_path.glob("*/*.outcome.json"):
        outcome.unlink()
    verdict = judge(load_study(tmp_path))

    assert verdict.decision is Decision.UNDECIDED
    assert len(verdict.unfinished_runs) == 6


# --- refused


@pytest.mark.parametrize(
    ("key", "value"), [("host", "another"), ("precision", "bf16"), ("data_digest", "x" * 32)]
)
def test_arms_that_can_not_be_compared_are_refused_with_key_and_values(
    tmp_path: Path, key: str, value: str
) -> None:
    study = build_study(tmp_path, candidate=TWO.with_(manifest={key: value}))

    with pytest.raises(EvidenceError, match=rf"{key} is '.*' in the first and '{value}'"):
        judge(study)


def test_incomparable_arms_are_refused_whatever_the_checks_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = build_study(tmp_path, candidate=TWO.with_(manifest={"host": "another"}))

    with pytest.raises(EvidenceError, match="host is"):
        judge_made(monkeypatch, study, made(Outcome.PASS, name="looks-at-nothing"))


def test_a_profile_that_names_a_class_the_study_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'frog'"):
        judge(
            build_study(tmp_path),
            checks={"accuracy-paradox": {"min_recall_by_class": {"frog": 0.5}}},
        )


# --- how findings become answers: with checks made up for it


@pytest.fixture(scope="module")
def plain_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return build_study(tmp_path_factory.mktemp("study"), seeds=(0,))


def test_one_borderline_fail_among_many_statistical_checks_is_undecided(
    monkeypatch: pytest.MonkeyPatch, plain_study: Study
) -> None:
    borderline = made(Outcome.FAIL, name="a", p_value=0.03)
    alone = judge_made(monkeypatch, plain_study, borderline)
    others = [made(Outcome.PASS, name=name) for name in "bcd"]
    among = judge_made(monkeypatch, plain_study, borderline, *others)

    assert alone.decision is Decision.REJECT
    assert among.decision is Decision.UNDECIDED
    assert among.findings[0].outcome is Outcome.UNDECIDED
    assert "Of 4 statistical checks" in among.findings[0].sentence
    assert "corrected p = 0.12" in among.findings[0].sentence


def test_the_correction_is_holms(monkeypatch: pytest.MonkeyPatch, plain_study: Study) -> None:
    verdict = judge_made(
        monkeypatch,
        plain_study,
        made(Outcome.FAIL, name="a", p_value=0.012),  # x 4: 0.048
        made(Outcome.FAIL, name="b", p_value=0.016),  # x 3: 0.048
        made(Outcome.FAIL, name="c", p_value=0.026),  # x 2: 0.052
        made(Outcome.PASS, name="d"),
    )

    assert [f.outcome for f in verdict.findings] == [
        Outcome.FAIL,
        Outcome.FAIL,
        Outcome.UNDECIDED,
        Outcome.PASS,
    ]


def test_a_fail_without_p_value_is_a_fact_and_stays(
    monkeypatch: pytest.MonkeyPatch, plain_study: Study
) -> None:
    others = [made(Outcome.PASS, name=str(i)) for i in range(20)]
    verdict = judge_made(monkeypatch, plain_study, made(Outcome.FAIL, name="a"), *others)

    assert verdict.findings[0].outcome is Outcome.FAIL


def test_checks_that_did_not_look_are_not_counted(
    monkeypatch: pytest.MonkeyPatch, plain_study: Study
) -> None:
    others = [made(Outcome.NOT_APPLICABLE, name=str(i)) for i in range(20)]
    borderline = made(Outcome.FAIL, name="a", p_value=0.03)

    assert judge_made(monkeypatch, plain_study, borderline, *others).decision is Decision.REJECT


@pytest.mark.parametrize("advisory", [(), ("broken",)])
def test_a_broken_check_keeps_from_a_yes_even_where_it_only_advises(
    monkeypatch: pytest.MonkeyPatch, plain_study: Study, advisory: tuple[str, ...]
) -> None:
    broken, sound = made(Outcome.PASS, name="broken"), made(Outcome.PASS, name="sound")
    object.__setattr__(broken, "judge", lambda _measurement: 1 / 0)
    verdict = judge_made(monkeypatch, plain_study, broken, sound, advisory=advisory)

    assert answers_of(verdict)[Question.SOUND] is Answer.UNDECIDED
    assert "ZeroDivisionError" in verdict.headline
    assert any("bug of ours" in step for step in verdict.next_steps)


def test_an_advisory_undecided_check_does_not_keep_from_a_yes(
    monkeypatch: pytest.MonkeyPatch, plain_study: Study
) -> None:
    checks = (made(Outcome.UNDECIDED, name="a"), made(Outcome.PASS, name="b"))

    for advisory, answer in (((), Answer.UNDECIDED), (("a",), Answer.YES)):
        verdict = judge_made(monkeypatch, plain_study, *checks, advisory=advisory)
        assert answers_of(verdict)[Question.SOUND] is answer


def test_only_the_deciding_check_makes_a_yes_and_not_when_it_only_advises(
    monkeypatch: pytest.MonkeyPatch, plain_study: Study
) -> None:
    other = made(Outcome.PASS, name="unstable-loss", question=Question.AS_GOOD)
    decider = made(Outcome.PASS, name="accuracy-drop", question=Question.AS_GOOD)

    alone = judge_made(monkeypatch, plain_study, other)
    both = judge_made(monkeypatch, plain_study, other, decider)
    advising = judge_made(monkeypatch, plain_study, other, decider, advisory=("accuracy-drop",))
    assert answers_of(alone)[Question.AS_GOOD] is Answer.NOT_APPLICABLE
    assert answers_of(both)[Question.AS_GOOD] is Answer.YES
    assert answers_of(advising)[Question.AS_GOOD] is Answer.NOT_APPLICABLE
