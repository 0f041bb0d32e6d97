"""The check ``unlike-model-parallel-inputs``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.model_parallel import model_groups
from scaleproof.checks.needs import CANDIDATE_RUN, PROBES, SCRIPT, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import LoaderRecord, PassRecord, ProbeRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study

MODEL_PARALLEL = Need(
    text="ranks that hold parts of one copy of the model (DTensor parameters tell)",
    kind="structure",
    is_met=lambda study: any(model_groups(run) for run in study.runs_of(study.candidate)),
)


@final
class GroupInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one group were given. ``num_steps``: probed steps whose inputs are known on
    all of them; at ``num_unlike``, from ``first_unlike`` on, they were not the same.

    ``items``: of the training passes that two or more of them made, whether they were handed the
    same items, ``like``, or not, ``unlike``; or the same ids with other contents, ``remade``;
    ``unknown`` when nothing tells. ``where``: the line of the loader.
    """

    run: str
    ranks: tuple[int, ...]
    num_steps: int
    num_unlike: int
    first_unlike: int
    items: str
    where: str


@final
class UnlikeInputsMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per group of ranks that hold one copy of the model."""

    groups: tuple[GroupInputs, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnlikeModelParallelInputs(AbstractCheck[UnlikeInputsMeasurement]):
    """Ranks that hold parts of one model are fed different samples.

    What it looks for
        Tensor-parallel ranks whose forwards are given different inputs: a `DistributedSampler` over
        all ranks instead of the data-parallel ones, loaders that shuffle by a seed of their own,
        augmentation that each rank draws for itself.

    Why it matters
        Each of these ranks computes a part of every activation, and the parts are added or joined.
        When they come from different samples, the sum belongs to none: the loss compares a mixture
        with one rank's labels. No error tells, and the loss falls a little all the same.

    How it decides
        Such groups of ranks are known from DTensor parameters that are split along an axis of the
        device mesh that is not one of FSDP's or DDP's. At probed steps, digests of all tensors that
        the first forward was given must be the same on all ranks of a group. Where they are not, it
        fails when the group's loaders handed out other ids in the same pass, or the same ids with
        contents that have nothing in common (each rank augmented for itself). When the items were
        the same, the script divides them after loading, as for sequence parallelism: it passes.
        Where nothing tells which items they were, it is undecided.

    What it can't see
        Model parallelism that is written by hand, without DTensor: overlapping-samples and
        unsynced-gradients then see ranks that share data and not gradients. Experts that are spread
        over ranks in one tensor are not taken for it. Labels that differ while inputs are the same.
        Steps that were not probed.

    How to fix it
        `DistributedSampler(data, num_replicas=mesh["dp"].size(), rank=mesh["dp"].get_local_rank())`
        and the same seeds, for shuffling and augmentation, on all ranks of a group; or load on its
        first rank and broadcast the batch.

    References
        facebookresearch/metaseq PR#753. torch.distributed.tensor.parallel, tutorial "Large Scale
        Transformer model training with Tensor Parallel".
    """

    name: ClassVar[str] = "unlike-model-parallel-inputs"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.DATA
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, MODEL_PARALLEL, PROBES)

    def measure(self, study: Study) -> UnlikeInputsMeasurement:
        runs = study.runs_of(study.candidate)
        return UnlikeInputsMeasurement(groups=tuple(g for run in runs for g in _groups(run)))

    def judge(self, measurement: UnlikeInputsMeasurement) -> Judgement:
        unlike = [group for group in measurement.groups if group.num_unlike]
        for group in unlike:
            if group.items in ("unlike", "remade"):
                return _fail(group)
        for group in unlike:
            if group.items == "unknown":
                return Judgement(
                    outcome=Outcome.UNDECIDED,
                    sentence=f"{_words(group)}, and nothing tells whether they are parts of the "
                    "same samples.",
                    remedy="Feed them the same batch; if the script divides it on purpose, name "
                    "this check in the profile's advisory list.",
                )
        num_steps = sum(group.num_steps for group in measurement.groups)
        if num_steps == 0:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="What forward was given is known at no probed step on all ranks of a "
                "copy of the model.",
                remedy="Call the model itself (model(x)), with tensors, not its forward method.",
            )
        how = "parts of the same samples" if unlike else "the same inputs"
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"Ranks that hold parts of one model were given {how}, at "
            f"{counted(num_steps, 'probed step')}.",
        )


def _fail(group: GroupInputs) -> Judgement:
    where = f" of {group.where}" if group.where else ""
    if group.items == "unlike":
        return Judgement(
            outcome=Outcome.FAIL,
            sentence=f"{_words(group)}: the loader{where} hands them different samples.",
            remedy="Divide the data by the data-parallel axis alone: DistributedSampler(data, "
            'num_replicas=mesh["dp"].size(), rank=mesh["dp"].get_local_rank()).',
        )
    return Judgement(
        outcome=Outcome.FAIL,
        sentence=f"{_words(group)}: the loader{where} hands them the same samples, which each rank "
        "augments for itself.",
        remedy="Seed augmentation alike on these ranks, or load on one and broadcast the batch.",
    )


def _words(group: GroupInputs) -> str:
    return (
        f"{group.run}, from step {group.first_unlike} on: ranks {listed(group.ranks, most=8)} hold "
        f"parts of one model and were given different inputs at {group.num_unlike:,} of "
        f"{counted(group.num_steps, 'probed step')}"
    )


def _groups(run: Run) -> Iterator[GroupInputs]:
    for numbers in model_groups(run):
        ranks = [rank for rank in run.ranks if rank.rank in numbers]
        inputs = [
            {probe.step: probe.inputs_digest for probe in rank.of(ProbeRecord)} for rank in ranks
        ]
        steps = [s for s in sorted(inputs[0]) if all(of_rank.get(s) for of_rank in inputs)]
        unlike = [s for s in steps if len({of_rank[s] for of_rank in inputs}) > 1]
        items, where = _items(ranks) if unlike else ("like", "")
        yield GroupInputs(
            run=run.name,
            ranks=numbers,
            num_steps=len(steps),
            num_unlike=len(unlike),
            first_unlike=unlike[0] if unlike else 0,
            items=items,
            where=where,
        )


def _items(ranks: list[Rank]) -> tuple[str, str]:
    """``GroupInputs.items`` and ``.where``: by the first pass that says that they differ."""
    is_known = False
    by_pass: dict[tuple[int, int], list[tuple[Rank, PassRecord]]] = {}
    for rank in ranks:
        for this in rank.of(PassRecord):
            if this.use == "training" and this.has_ids and this.num_fed:
                by_pass.setdefault((this.loader, this.number), []).append((rank, this))
    for of_pass in by_pass.values():
        (rank, first), *others = of_pass
        for other, this in others:
            if this.num_fed != first.num_fed:  # broken off earlier
                continue
            is_known = True
            if this.order_digest != first.order_digest:
                return "unlike", _where(rank, first)
            if not _share_contents((rank, first), (other, this)):
                return "remade", _where(rank, first)
    return ("like" if is_known else "unknown"), ""


def _share_contents(one: tuple[Rank, PassRecord], other: tuple[Rank, PassRecord]) -> bool:
    """Some item had the same content on both; True as well where contents are not known."""
    limit = np.uint64(min(this.content_limit for _, this in (one, other)))
    first, second = _contents(*one), _contents(*other)
    first, second = first[first <= limit], second[second <= limit]
    return not len(first) or not len(second) or len(np.intersect1d(first, second)) > 0


def _contents(rank: Rank, this: PassRecord) -> NDArray[np.uint64]:
    dtype = np.dtype("<u8")
    return np.zeros(0, dtype) if this.contents is None else rank.array(this.contents, dtype)


def _where(rank: Rank, this: PassRecord) -> str:
    return next((r.where for r in rank.of(LoaderRecord) if r.loader == this.loader), "")
