"""The check ``train-validation-overlap``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import msgspec
import numpy as np
from pyroaring import BitMap

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.coincidences import Coincidences, coincidences
from scaleproof.checks.held_out import (
    Evaluated,
    Trained,
    contents_of,
    evaluated_sets,
    trained_sets,
)
from scaleproof.checks.needs import CANDIDATE_RUN, EVALUATION_LOADER, SCRIPT, TRAINING_LOADER
from scaleproof.checks.passes import Sameness, sameness
from scaleproof.checks.wording import listed, short_percent
from scaleproof.evidence.study import Run, Study

_CONTAINED = 0.99
"""Share of the items from which on a set counts as inside another."""


_REMEDY = (
    "Split the data once, the same on every rank: random_split with "
    "generator=torch.Generator().manual_seed(0), or indices from a file."
)
_REMEDY_OF_COPIES = (
    "Split first, and repeat or oversample in the training part only; drop equal items before the "
    "split. If equal rows are different observations, raise max_share for them."
)


@final
class Leak(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation has in common with training, over all ranks.

    ``num_shared`` of ``num_evaluated`` items were trained on: by ids of the same data set, or, for
    others, by contents (``num_evaluated`` are then those whose contents are known).
    ``is_training_set``: the same loader trains, or the evaluation holds all that is trained on.
    ``is_across_ranks``: no rank evaluates what it trained on itself. ``is_same_data``: both are
    of one data set. ``chance``: of contents, what coincidence makes of those that are equal.
    """

    run: str
    where: str
    where_trained: str
    by: Literal["ids", "contents", "nothing"]
    ranks_training: tuple[int, ...]
    ranks_evaluating: tuple[int, ...]
    num_shared: int
    num_evaluated: int
    is_training_set: bool
    is_across_ranks: bool
    is_same_data: bool
    chance: Coincidences | None = None

    @property
    def share(self) -> float:
        return self.num_shared / max(1, self.num_evaluated)


@final
class TrainValidationOverlapMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``evaluations``: one entry for every set that was evaluated on after training on something:
    by ids where it can be, by contents otherwise."""

    evaluations: tuple[Leak, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainValidationOverlap(AbstractCheck[TrainValidationOverlapMeasurement]):
    """The model is evaluated on items that some rank trained on.

    What it looks for
        Items of an evaluation that any rank was handed in training: by id through `Subset` and
        `random_split` down to the same data set, across ranks; by content where the data sets
        differ.

    Why it matters
        `random_split` without a seeded generator, or with one seeded by the rank, makes another
        split on each rank: with 2 ranks and 10 % for validation, 95 % of the validation items are
        trained on by the other rank. The accuracy is then that of remembering, early stopping
        never stops, and the chosen checkpoint is the one that overfits most. One device has no
        such fault, so that N devices look better.

    How it decides
        It fails when the share of an evaluation's items that training was handed, by any rank and
        with the same optimizer, is above `max_share`. By contents, at least `min_contents`
        different ones must be known. Rows of few values are equal by chance, and then within each
        set as often as between the two: where nearly all contents are in both, that is natural;
        otherwise it is undecided, unless they repeat much more than equally likely rows would: then
        some were repeated before the split, and it fails. Evaluating on the whole training set is
        believed to be meant when another set is evaluated on too; when it is the only one, there
        is no validation at all: undecided. So is a part of the training set beside a set that has
        nothing in common with it.

    What it can't see
        Copies that differ in a bit: augmented, resized, paraphrased. Two data set objects that
        read the same files, unless their contents are equal. What was trained on before this run
        (a checkpoint, a pretrained model). Evaluations before the first step. Evaluating a single
        batch of a loader that is trained with again later: that is how a script looks at a shape.

    How to fix it
        `random_split(data, lengths, generator=torch.Generator().manual_seed(0))`: the same seed on
        every rank, before the ranks' own seeds are set; or write the split to a file once.

    References
        TensorAuto/OpenTau#498, Lightning-AI/pytorch-lightning#7728, #18638 (a split for each
        rank). Kapoor and Narayanan (2023), Leakage and the reproducibility crisis in
        machine-learning-based science, Patterns 4.
    """

    name: ClassVar[str] = "train-validation-overlap"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (
        CANDIDATE_RUN,
        SCRIPT,
        TRAINING_LOADER,
        EVALUATION_LOADER,
    )

    max_share: float = 0.01
    min_contents: int = 20

    def measure(self, study: Study) -> TrainValidationOverlapMeasurement:
        runs = study.runs_of(study.candidate)
        return TrainValidationOverlapMeasurement(
            evaluations=tuple(leak for run in runs for leak in _leaks(run))
        )

    def judge(self, measurement: TrainValidationOverlapMeasurement) -> Judgement:
        if not measurement.evaluations:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="Nothing was evaluated after a step of training.",
            )
        others = {one.run for one in measurement.evaluations if not self._is_leak(one)}
        leaks = [one for one in measurement.evaluations if self._is_leak(one)]
        faults = [one for one in leaks if not (one.is_training_set and one.run in others)]
        certain = [one for one in faults if not self._is_doubtful(one, one.run in others)]
        if certain:
            worst = max(certain, key=lambda leak: (leak.share, leak.num_shared))
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=_sentence(worst, len(certain)),
                remedy=_REMEDY_OF_COPIES if _is_of_copies(worst) else _REMEDY,
            )
        if faults:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=_doubtful_sentence(faults[0], self.min_contents),
                remedy=_REMEDY_OF_COPIES
                if _may_be_chance(faults[0])
                else "Hold out a part of the data, the same on every rank, and evaluate on it.",
            )
        unknown = [e for e in measurement.evaluations if e.by == "nothing" and e.is_same_data]
        if unknown:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{unknown[0].run}: {unknown[0].where} evaluates on the data set that is "
                "trained on, and neither ids nor contents tell whether on other items of it.",
                remedy="Give the data set indices (map-style), or observe without augmentation.",
            )
        return Judgement(outcome=Outcome.PASS, sentence=self._passed(measurement.evaluations))

    def _is_leak(self, leak: Leak) -> bool:
        is_natural = leak.chance is not None and leak.chance.is_of_few_kinds
        return leak.by != "nothing" and leak.share > self.max_share and not is_natural

    def _is_doubtful(self, leak: Leak, has_other_set: bool) -> bool:
        if leak.is_training_set or (
            leak.by == "contents" and leak.num_evaluated < self.min_contents
        ):
            return True
        if _may_be_chance(leak):
            return True
        return has_other_set and leak.share >= _CONTAINED and not leak.is_across_ranks

    def _passed(self, evaluations: Sequence[Leak]) -> str:
        meant = [one for one in evaluations if self._is_leak(one)]
        known = [one for one in evaluations if one.by != "nothing" and one not in meant]
        unknown = [one for one in evaluations if one.by == "nothing"]
        parts: list[str] = []
        if known:
            by = listed(sorted({one.by for one in known}, reverse=True))
            parts.append(f"No rank trained on what {_wheres(known)} evaluates on (by {by}).")
        few = [one for one in known if one.by == "contents" and one.share > self.max_share]
        if few:
            parts.append(
                f"Some contents of {_wheres(few)} equal training data, as many do within each set."
            )
        if unknown:
            parts.append(
                f"What {_wheres(unknown)} evaluates on is another data set than what is trained "
                "on; random augmentation, or a lack of tensors, kept their contents from being "
                "compared."
            )
        if meant:
            parts.append(f"Besides, {_wheres(meant)} evaluates on training data, on purpose.")
        return " ".join(parts)


def _wheres(evaluations: Sequence[Leak]) -> str:
    return listed(sorted({one.where for one in evaluations}))


def _is_of_copies(leak: Leak) -> bool:
    chance = leak.chance
    return chance is not None and chance.is_of_copies and not chance.is_ruled_out


def _may_be_chance(leak: Leak) -> bool:
    chance = leak.chance
    return chance is not None and not (chance.is_ruled_out or chance.is_of_copies)


def _doubtful_sentence(leak: Leak, min_contents: int) -> str:
    if leak.is_training_set:
        return (
            f"{leak.run}: the only set that is evaluated on, by {leak.where}, is the training set "
            "itself: nothing says how the model does on data it has not seen."
        )
    if leak.by == "contents" and leak.num_evaluated < min_contents:
        return (
            f"{leak.run}: {leak.num_shared:,} of {leak.num_evaluated:,} contents that {leak.where} "
            f"evaluates on equal training data, and fewer than {min_contents} are known."
        )
    if _may_be_chance(leak):
        return (
            f"{_sentence(leak, 1)} Items of each set equal others of their own about as often, so "
            "that rows of few values may be equal by chance, or some were copied before the split."
        )
    return (
        f"{_sentence(leak, 1)} Another set has nothing in common with training: this one is either "
        "a validation set that leaks, or a part of the training data evaluated on purpose."
    )


def _sentence(worst: Leak, num_faults: int) -> str:
    what = "items" if worst.by == "ids" else "contents"
    who = f"rank{'s' if len(worst.ranks_training) > 1 else ''} "
    who += listed(worst.ranks_training, most=8)
    across = ""
    if worst.is_across_ranks:
        across = (
            f"; no rank of {listed(worst.ranks_evaluating, most=8)} evaluates what it trained on "
            "itself: each has a split of its own"
        )
    if _is_of_copies(worst):
        across = (
            "; most contents come once and these again and again, in either set, as when items are "
            "repeated before the split"
        )
    more = f"; {num_faults - 1} more over all sets and runs" if num_faults > 1 else ""
    return (
        f"{worst.run}: {worst.num_shared:,} of the {worst.num_evaluated:,} {what} "
        f"({short_percent(worst.share)}) that {worst.where} evaluates on were trained on by {who}, "
        f"from {worst.where_trained}{across}{more}."
    )


def _leaks(run: Run) -> list[Leak]:
    trained = trained_sets(run)
    leaks: list[Leak] = []
    for evaluated in evaluated_sets(run):
        sets = trained.get(evaluated.optimizer, {})
        same = sets.get(evaluated.root)
        leak = _by_ids(run, evaluated, same) if same is not None and evaluated.has_ids else None
        if leak is None or leak.num_shared == 0:
            by_contents = _by_contents(run, evaluated, sets.values())
            if leak is None or (by_contents is not None and by_contents.num_shared):
                leak = by_contents
        leaks.append(leak or _nothing(run, evaluated, is_same_data=same is not None))
    return leaks


def _by_ids(run: Run, evaluated: Evaluated, trained: Trained) -> Leak | None:
    """None where an id may not be the same item on all ranks."""
    training = BitMap.union(*trained.ids.values())
    if not training:
        return None
    scored = BitMap.union(*evaluated.ids.values())
    own = BitMap.union(
        BitMap(), *(ids & trained.ids[r] for r, ids in evaluated.ids.items() if r in trained.ids)
    )
    shared = scored & training
    is_across = bool(shared) and not own
    if shared != own:
        match _sameness_across(evaluated, trained):
            case Sameness.DIFFERENT:
                shared, is_across = own, False
            case Sameness.DOUBTFUL:
                return None
            case _:
                pass
    is_all = len(shared) >= _CONTAINED * max(len(scored), len(training))
    return Leak(
        run=run.name,
        where=evaluated.words,
        where_trained=trained.words,
        by="ids",
        ranks_training=tuple(r for r, ids in trained.ids.items() if ids.intersect(shared)),
        ranks_evaluating=tuple(r for r, ids in evaluated.ids.items() if ids.intersect(shared)),
        num_shared=len(shared),
        num_evaluated=len(scored),
        is_training_set=evaluated.is_training_loader or (is_all and not is_across),
        is_across_ranks=is_across,
        is_same_data=True,
    )


def _sameness_across(evaluated: Evaluated, trained: Trained) -> Sameness:
    """Of the first two ranks one of which trained on what the other evaluates."""
    for rank, ids in evaluated.ids.items():
        for other, theirs in trained.ids.items():
            if other != rank and ids.intersect(theirs):
                mine = [one for one in evaluated.passes if one.rank.rank == rank]
                return sameness(mine, trained.passes[other])
    return Sameness.SAME


def _by_contents(run: Run, evaluated: Evaluated, trained: Iterable[Trained]) -> Leak | None:
    """Against all that was trained on; None where nothing can be said."""
    sets = list(trained)
    scored = contents_of(evaluated.passes, evaluated.words)
    passes = [one for each in sets for ones in each.passes.values() for one in ones]
    training = contents_of(passes, sets[0].words if sets else "")
    if scored is None or training is None:
        return None
    limit = np.uint64(min(scored.limit, training.limit))
    ours = scored.digests[scored.digests <= limit]
    theirs = training.digests[training.digests <= limit]
    num_shared = len(np.intersect1d(ours, theirs, assume_unique=True))
    if not num_shared and not (scored.is_stable and training.is_stable):
        return None
    return Leak(
        run=run.name,
        where=evaluated.words,
        where_trained=training.words,
        by="contents",
        ranks_training=training.ranks,
        ranks_evaluating=scored.ranks,
        num_shared=num_shared,
        num_evaluated=len(ours),
        is_training_set=evaluated.is_training_loader
        or num_shared >= _CONTAINED * max(len(ours), len(theirs)),
        is_across_ranks=False,
        is_same_data=False,
        chance=coincidences(training, scored, num_shared / max(1, len(ours))),
    )


def _nothing(run: Run, evaluated: Evaluated, *, is_same_data: bool) -> Leak:
    return Leak(
        run=run.name,
        where=evaluated.words,
        where_trained="",
        by="nothing",
        ranks_training=(),
        ranks_evaluating=tuple(evaluated.ids),
        num_shared=0,
        num_evaluated=0,
        is_training_set=False,
        is_across_ranks=False,
        is_same_data=is_same_data,
    )
