"""The check ``accuracy-paradox``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.final_scores import CLASSES, FinalScores, final_scores
from scaleproof.checks.needs import CANDIDATE_RUN, EVALUATIONS, PREDICTIONS
from scaleproof.checks.wording import counted, listed, percent, short_percent
from scaleproof.errors import UsageError
from scaleproof.evidence.study import Study
from scaleproof.stats.shares import chance_of_at_least, chance_of_at_most, wilson_interval


@final
class ClassRecall(msgspec.Struct, frozen=True, kw_only=True):
    """One class: its evaluation samples and how many each seed's run got right."""

    name: str
    num_samples: tuple[int, ...]
    num_right: tuple[int, ...]
    recall: float | None
    """Over all seeds; None when the class has no evaluation sample."""


@final
class ArmScores(msgspec.Struct, frozen=True, kw_only=True):
    """The final evaluations of one arm; ``num_samples`` and ``num_right`` are per seed."""

    arm: str
    seeds: tuple[int, ...]
    num_samples: tuple[int, ...]
    num_right: tuple[int, ...]
    accuracy: float
    majority_class: str
    no_information_rate: float
    """Accuracy of always guessing the majority class."""
    classes: tuple[ClassRecall, ...]


@final
class AccuracyParadoxMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """An arm is None when none of its runs was evaluated after training."""

    candidate: ArmScores | None
    baseline: ArmScores | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyParadox(AbstractCheck[AccuracyParadoxMeasurement]):
    """Accuracy looks fine while the model is useless for its purpose.

    What it looks for
        A class that the N-device model hardly ever recognises, however good its accuracy looks,
        and an accuracy that always guessing the most frequent class would reach too.

    Why it matters
        With 1 % fraud, a model that never finds any is 99 % accurate. A comparison of accuracies
        calls two such models equally good, and a speed-up of three then only produces a useless
        model three times as fast.

    How it decides
        It uses the last evaluation of every finished seed of the candidate arm. All seeds score
        the same samples, so the rates are over all seeds but count as one run's samples.

        Recall: each class with a floor above 0 (`min_recall`, or its own in
        `min_recall_by_class`) gets a Wilson interval, over all seeds and for each seed alone, with
        `confidence` shared among all these intervals (Bonferroni). It fails when an interval lies
        wholly below the floor. It passes when the interval over all seeds lies at or above the
        floor, or when the recall does and the interval's half-width is at most `max_half_width`.
        Otherwise there are too few samples of the class to tell: undecided.

        Guessing: with `must_beat_guessing`, an accuracy at or below the share of the most frequent
        class fails, once enough samples were scored for a half-width of `max_half_width`: it is
        for the model to show that it beats guessing. Above that share, a one-sided exact binomial
        test has to show it (as in the R package caret); if it can't, undecided.

    What it can't see
        Whether the floors suit the use: 40 % is only a guard against a forgotten class. How sure
        the model is, and what its false alarms cost: precision is in the report.

    How to fix it
        Weight the classes in the loss, sample the rare class more often, move the decision
        threshold, or choose the model by recall instead of accuracy. When the one-device arm has
        it too, N devices did not cause it. Set the floor your use needs under
        `[checks.accuracy-paradox.min_recall_by_class]` in the profile, 0 for a class that does not
        matter. Where a rare class rightly costs accuracy, set `must_beat_guessing = false` and
        rely on the floors.

    References
        Kuhn (2008), Building predictive models in R using the caret package, J. Stat. Software 28.
        Wilson (1927), Probable inference, JASA 22. Valverde-Albacete and Pelaez-Moreno (2014),
        100 % classification accuracy considered harmful, PLoS ONE 9.
    """

    name: ClassVar[str] = "accuracy-paradox"
    question: ClassVar[Question] = Question.FIT
    family: ClassVar[Family] = Family.QUALITY
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, PREDICTIONS, CLASSES, EVALUATIONS)

    min_recall: float = 0.4
    min_recall_by_class: Mapping[str, float] = field(default_factory=dict[str, float])
    must_beat_guessing: bool = True
    max_half_width: float = 0.1
    confidence: float = 0.95

    def measure(self, study: Study) -> AccuracyParadoxMeasurement:
        baseline = study.baseline
        return AccuracyParadoxMeasurement(
            candidate=_arm_scores(study, final_scores(study.runs_of(study.candidate))),
            baseline=(
                None
                if baseline is None
                else _arm_scores(study, final_scores(study.runs_of(baseline)))
            ),
        )

    def judge(self, measurement: AccuracyParadoxMeasurement) -> Judgement:
        arm = measurement.candidate
        if arm is None:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No run of the candidate arm was evaluated after training.",
                remedy="Run the study again to its end.",
            )
        self._refuse_unknown_classes(arm)
        if arm.no_information_rate == 1:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"Every evaluation sample is of the class {arm.majority_class!r}: "
                "accuracy and recall say nothing about the others.",
                remedy="Evaluate on samples of every class.",
            )
        floored = [c for c in arm.classes if self._floor(c) > 0]
        num_seeds = len(arm.seeds)
        num_intervals = len(floored) * (1 if num_seeds == 1 else 1 + num_seeds)
        level = (1 - self.confidence) / max(1, num_intervals)
        failing = [shown for c in floored if (shown := self._shown_below(c, arm, level))]
        beats_guessing = self._beats_guessing(arm)
        if failing or beats_guessing is Outcome.FAIL:
            return self._fail(measurement, failing, num_intervals, beats_guessing is Outcome.FAIL)
        unclear = [c for c in floored if not self._is_above(c, level)]
        if unclear:
            return self._too_few(unclear, level)
        if beats_guessing is Outcome.UNDECIDED:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{percent(arm.accuracy)} accuracy on "
                f"{counted(min(arm.num_samples), 'sample')} is not clearly more than the "
                f"{percent(arm.no_information_rate)} of {_guessing(arm)}.",
                remedy="Evaluate on more samples, or, if the rare classes are what matters, set "
                "their floors and must_beat_guessing = false for accuracy-paradox.",
            )
        return Judgement(outcome=Outcome.PASS, sentence=_pass_sentence(arm, floored))

    def _floor(self, of: ClassRecall) -> float:
        return self.min_recall_by_class.get(of.name, self.min_recall)

    def _refuse_unknown_classes(self, arm: ArmScores) -> None:
        known = [c.name for c in arm.classes]
        unknown = [name for name in self.min_recall_by_class if name not in known]
        if unknown:
            raise UsageError(
                f"accuracy-paradox: min_recall_by_class names {listed([repr(u) for u in unknown])},"
                f" which this study does not have. Use some of its classes: "
                f"{listed([repr(k) for k in known], most=20)}."
            )

    def _shown_below(self, of: ClassRecall, arm: ArmScores, level: float) -> "_Shortfall | None":
        """The class's recall, if shown to be below its floor: over all seeds, or with one."""
        floor = self._floor(of)
        if of.recall is None:
            return None
        if _interval(of.num_right, of.num_samples, level)[1] < floor:
            return _Shortfall(of=of, floor=floor, recall=of.recall, seed=None)
        for seed, right, samples in zip(arm.seeds, of.num_right, of.num_samples, strict=True):
            if samples and _interval((right,), (samples,), level)[1] < floor:
                return _Shortfall(of=of, floor=floor, recall=right / samples, seed=seed)
        return None

    def _is_above(self, of: ClassRecall, level: float) -> bool:
        if of.recall is None:
            return False
        lower, upper = _interval(of.num_right, of.num_samples, level)
        floor = self._floor(of)
        is_precise = (upper - lower) / 2 <= self.max_half_width
        return lower >= floor or (of.recall >= floor and is_precise)

    def _beats_guessing(self, arm: ArmScores) -> Outcome:
        if not self.must_beat_guessing:
            return Outcome.PASS
        if arm.accuracy <= arm.no_information_rate:
            lower, upper = _interval(arm.num_right, arm.num_samples, 1 - self.confidence)
            is_precise = (upper - lower) / 2 <= self.max_half_width
            return Outcome.FAIL if is_precise else Outcome.UNDECIDED
        num_samples = sum(arm.num_samples) // len(arm.seeds)
        num_right = sum(arm.num_right) // len(arm.seeds)
        p_value = chance_of_at_least(num_right, num_samples, arm.no_information_rate)
        return Outcome.PASS if p_value <= 1 - self.confidence else Outcome.UNDECIDED

    def _fail(
        self,
        measurement: AccuracyParadoxMeasurement,
        failing: "list[_Shortfall]",
        num_intervals: int,
        is_no_better_than_guessing: bool,
    ) -> Judgement:
        arm = measurement.candidate
        assert arm is not None  # judge returned otherwise
        remedy = "Weight the classes in the loss or sample the rare ones more often"
        if not failing:
            baseline = measurement.baseline
            cause = ""
            if baseline is not None:
                cause = f"; {baseline.arm} reaches {percent(baseline.accuracy)}"
                if baseline.accuracy <= baseline.no_information_rate:
                    cause += f", so {arm.arm} is not what caused it"
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{percent(arm.accuracy)} accuracy is no better than the "
                f"{percent(arm.no_information_rate)} of {_guessing(arm)}{cause}.",
                remedy=f"{remedy}; train longer or with another learning rate.",
            )
        worst = max(failing, key=lambda shortfall: shortfall.floor - shortfall.recall)
        seed = "" if worst.seed is None else f" with seed {worst.seed}"
        sentence = (
            f"{short_percent(worst.recall)} recall on {worst.of.name!r}{seed}, below its floor of "
            f"{short_percent(worst.floor)}, with {percent(arm.accuracy)} accuracy"
        )
        if arm.no_information_rate >= 0.5:
            sentence += f": {_guessing(arm)} scores {percent(arm.no_information_rate)}"
        others = [repr(s.of.name) for s in failing if s is not worst]
        if others:
            sentence += f"; also below: {listed(others)}"
        p_value = None
        if not is_no_better_than_guessing:
            p_value = min(1.0, num_intervals * min(s.p_value(arm) for s in failing))
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=sentence + self._cause(measurement.baseline, arm, worst.of.name) + ".",
            remedy=f"{remedy} ({worst.of.name!r} first), or choose the model by recall.",
            p_value=p_value,
        )

    def _cause(self, baseline: ArmScores | None, arm: ArmScores, name: str) -> str:
        """Whether the baseline's recall of the class is below the floor as well."""
        if baseline is None:
            return ""
        same = next((c for c in baseline.classes if c.name == name), None)
        if same is None or same.recall is None:
            return ""
        words = f"; {baseline.arm} has {short_percent(same.recall)}"
        if same.recall < self._floor(same):
            words += f", so {arm.arm} is not what caused it"
        return words

    def _too_few(self, unclear: list[ClassRecall], level: float) -> Judgement:
        rarest = min(unclear, key=lambda c: min(c.num_samples))
        num = min(rarest.num_samples)
        name, floor = repr(rarest.name), short_percent(self._floor(rarest))
        if rarest.recall is None:
            seen = f"The class {name} has no evaluation sample"
        else:
            lower, upper = _interval(rarest.num_right, rarest.num_samples, level)
            seen = (
                f"{short_percent(rarest.recall)} recall on {name} rests on "
                f"{counted(num, 'sample')} (interval {percent(lower, 0)} to {percent(upper, 0)})"
            )
        others = [repr(c.name) for c in unclear if c is not rarest]
        also = f"; the same holds for {listed(others)}" if others else ""
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=f"{seen}: the evidence can't tell whether it meets its floor of {floor}"
            f"{also}.",
            remedy=f"Evaluate on more samples of {name}, or set the floor its use needs "
            "(0 when the class does not matter).",
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortfall:
    """A class whose recall is shown to be below its floor, over all seeds (None) or with one."""

    of: ClassRecall
    floor: float
    recall: float
    seed: int | None

    def p_value(self, arm: ArmScores) -> float:
        """One-sided exact binomial: so few right answers if the recall were at its floor."""
        if self.seed is None:
            num_seeds = len(arm.seeds)
            right = ceil(sum(self.of.num_right) / num_seeds)
            samples = sum(self.of.num_samples) // num_seeds
        else:
            index = arm.seeds.index(self.seed)
            right, samples = self.of.num_right[index], self.of.num_samples[index]
        return chance_of_at_most(right, samples, self.floor)


def _arm_scores(study: Study, scores: tuple[FinalScores, ...]) -> ArmScores | None:
    if not scores:
        return None
    run = next(run for run in study.runs.values() if run.name == scores[0].run)
    names = scores[0].class_names
    num_by_class = [sum(s.num_by_class[i] for s in scores) for i in range(len(names))]
    num_all = sum(num_by_class)
    majority = max(range(len(names)), key=lambda i: num_by_class[i])
    return ArmScores(
        arm=run.arm.name,
        seeds=tuple(s.seed for s in scores),
        num_samples=tuple(s.num_samples for s in scores),
        num_right=tuple(s.num_right for s in scores),
        accuracy=sum(s.num_right for s in scores) / num_all,
        majority_class=names[majority],
        no_information_rate=num_by_class[majority] / num_all,
        classes=tuple(
            ClassRecall(
                name=name,
                num_samples=tuple(s.num_by_class[i] for s in scores),
                num_right=tuple(s.num_right_by_class[i] for s in scores),
                recall=(
                    sum(s.num_right_by_class[i] for s in scores) / num_by_class[i]
                    if num_by_class[i]
                    else None
                ),
            )
            for i, name in enumerate(names)
        ),
    )


def _interval(right: Sequence[int], samples: Sequence[int], level: float) -> tuple[float, float]:
    """Wilson interval of the mean rate with the samples of one run: seeds score the same ones."""
    num_runs = len(samples)
    return wilson_interval(sum(right) / num_runs, sum(samples) / num_runs, error=level)


def _guessing(arm: ArmScores) -> str:
    return f"always guessing {arm.majority_class!r}"


def _pass_sentence(arm: ArmScores, floored: list[ClassRecall]) -> str:
    guess = (
        f"{percent(arm.accuracy)} accuracy against {percent(arm.no_information_rate)} for "
        f"{_guessing(arm)}"
    )
    if not floored:
        return f"{guess}; no class has a recall floor."
    worst = min(floored, key=lambda c: c.recall if c.recall is not None else 0.0)
    assert worst.recall is not None  # a class without samples is undecided
    return (
        f"{guess}; every class meets its recall floor, the lowest is "
        f"{short_percent(worst.recall)} on {worst.name!r}."
    )
