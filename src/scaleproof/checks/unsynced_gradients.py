"""The check ``unsynced-gradients``."""

from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.gradient_sharing import OptimizerSync, Unshared, gradient_sharing
from scaleproof.checks.needs import CANDIDATE_RUN, PROBES, SCRIPT, STEPS, TWO_RANKS
from scaleproof.checks.probes import parallelism_of, process_of, unlike_tensors
from scaleproof.checks.wording import counted, listed, percent
from scaleproof.evidence.study import Run, Study


@final
class UnsyncedMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``unlike``: tensors that not every rank holds, or not with the same size. ``alone``: runs
    whose processes were told of each other by their environment and never made a group."""

    optimizers: tuple[OptimizerSync, ...]
    unlike: tuple[str, ...]
    alone: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnsyncedGradients(AbstractCheck[UnsyncedMeasurement]):
    """Ranks do not share their gradients: each trains a model of its own.

    What it looks for
        Ranks whose optimizers use different gradients for the same parameter, or that all use
        gradients in which some rank's data does not count at all.

    Why it matters
        A forward past the DDP wrapper (`.module`), a `no_sync` that is off by one, a parameter
        added or unfrozen after wrapping, a process group that was never made: each rank then
        trains on its own part of the data, N devices do the work of one, and what is saved is
        rank 0's model. No error tells, and every rank's loss falls.

    How it decides
        At probed steps each rank keeps its own gradient before any exchange (the local one) and
        the one its optimizer used (the final one), at the same few coordinates of each tensor. Of
        replicated tensors the final ones must be the same on all ranks: a tensor fails when they
        are apart by more than `tolerance` of the larger one. (Gradients that are multiples of each
        other are shared, and then scaled: see misweighted-gradients.) For sharded ones, and where
        all ranks agree, the effective weights tell: solving `final = sum of w_r * local_r`, a rank
        that had samples must count for more than `min_weight` of the average. It is one finding,
        with the number of tensors, the first step, and the weights seen.

        Parameters that the ranks use different gradients for and that agree again later are
        averaged themselves, as in local SGD: undecided. So are tensors of scripts without DDP or
        FSDP that were not the same on all ranks before training: they may be parts of one model
        (pipeline stages, experts). Ranks that hold different tensors are not compared. Ranks that
        together hold one copy of the model, as their DTensor parameters tell, have no gradients
        to average; what each of them holds whole must still have the same gradient on all.

    What it can't see
        Sharing, when all ranks compute the same gradient because they are fed the same samples:
        undecided. Steps that were not probed. A wrong factor on top of what is shared.

    How to fix it
        Call the wrapped module, never `.module`, for every forward that has a backward. Leave
        `no_sync` for the last microbatch of every step, its forward included. Wrap after the last
        parameter is added, unfrozen or converted. Without a wrapper, average the gradient of every
        parameter after the last backward.

    References
        Li et al. (2020), PyTorch distributed: experiences on accelerating data parallel training.
        pytorch/pytorch#104336, Lightning-AI/pytorch-lightning#20340, modelscope/FunASR PR#3472,
        jingyaogong/minimind PR#854.
    """

    name: ClassVar[str] = "unsynced-gradients"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, STEPS, PROBES)

    tolerance: float = 1e-3
    """Reductions leave the same bytes on all ranks; ranks that each average for themselves in
    float32 differ by 1e-6, and gradients nobody shared by 0.1 and more."""
    min_weight: float = 0.01
    """A rank left out counts 0 up to noise; one that was clipped hardest, more."""

    def measure(self, study: Study) -> UnsyncedMeasurement:
        runs = [run for run in study.runs_of(study.candidate) if len(run.ranks) > 1]
        unlike: list[str] = []
        comparable: list[Run] = []
        for run in runs:
            different = unlike_tensors(run)
            # DDP and FSDP2 have made sure that all ranks hold one model.
            if not different or parallelism_of(run) <= {"ddp", "fsdp1", "fsdp2"}:
                comparable.append(run)
            unlike += [f"{run.name}: {name}" for name in different]
        return UnsyncedMeasurement(
            optimizers=tuple(sync for run in comparable for sync in gradient_sharing(run)),
            unlike=tuple(unlike),
            alone=tuple(run.name for run in comparable if _is_alone(run)),
        )

    def judge(self, measurement: UnsyncedMeasurement) -> Judgement:
        doubts: list[Judgement] = []
        for sync in measurement.optimizers:
            judgement = self._judge(sync, is_alone=sync.run in measurement.alone)
            if judgement.outcome is Outcome.FAIL:
                return judgement
            if judgement.outcome is Outcome.UNDECIDED:
                doubts.append(judgement)
        if doubts:
            return doubts[0]
        if measurement.optimizers and all(sync.is_one_model for sync in measurement.optimizers):
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="All ranks hold parts of one copy of the model: there are no gradients "
                "to average.",
            )
        if not measurement.optimizers and measurement.unlike:
            return Judgement(
                outcome=Outcome.NOT_APPLICABLE,
                sentence="The ranks hold different parameters, parts of one model, so that there "
                f"are no gradients to share: {listed(measurement.unlike)} are not on all ranks, or "
                "not of the same size.",
            )
        if not measurement.optimizers:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No step was probed on all ranks, so nothing can be compared.",
                remedy="Train for more steps, the same number on every rank.",
            )
        num_tensors = sum(sync.num_tensors for sync in measurement.optimizers)
        num_steps = sum(sync.num_steps for sync in measurement.optimizers)
        return Judgement(
            outcome=Outcome.PASS,
            sentence=f"All ranks used the same gradients, and every rank's counted in them: "
            f"{counted(num_tensors, 'tensor')}, {counted(num_steps, 'probed step')}.",
        )

    def _judge(self, sync: OptimizerSync, *, is_alone: bool) -> Judgement:
        apart = [tensor for tensor in sync.unshared if tensor.distance > self.tolerance]
        if apart:
            return self._judge_apart(sync, apart, is_alone=is_alone)
        if sync.is_one_model:
            return Judgement(outcome=Outcome.PASS, sentence="")
        least = sync.left_out
        if least is not None and least.weight <= self.min_weight:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{sync.run}, step {least.step}: the gradient that rank {least.user} used "
                f"({sync.where}) leaves out rank {least.rank}, which counts for "
                f"{percent(least.weight)} of what the ranks count on average.",
                remedy=_remedy(sync, sync.num_tensors, is_alone=is_alone),
            )
        if sync.local_distance > self.tolerance:
            return Judgement(outcome=Outcome.PASS, sentence="")
        if is_alone:
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{sync.run}: the environment says that there are {len(sync.ranks)} "
                f"ranks, and no process group was made: each trained alone ({sync.where}), on the "
                "same samples.",
                remedy=_remedy(sync, sync.num_tensors, is_alone=True),
            )
        if sync.num_tensors == 0:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{sync.run}: {sync.where} had no gradient at any of "
                f"{counted(sync.num_steps, 'probed step')}, or zeros only.",
                remedy="See frozen-parameters.",
            )
        return Judgement(
            outcome=Outcome.UNDECIDED,
            sentence=f"{sync.run}: at none of {counted(sync.num_steps, 'probed step')} of "
            f"{sync.where} can the ranks' own gradients be told apart, so nothing says whether "
            "they are shared.",
            remedy="Give every rank samples of its own (see overlapping-samples), then observe "
            "again.",
        )

    def _judge_apart(
        self, sync: OptimizerSync, apart: list[Unshared], *, is_alone: bool
    ) -> Judgement:
        sentence = _sentence(sync, apart, is_alone=is_alone)
        if sync.are_averaged:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{sentence} The parameters agree again later: they are averaged or "
                "sent around themselves, as in local SGD, which is another training than one "
                "device's.",
                remedy="If that is meant, name this check in the profile's advisory list.",
            )
        if sync.begin_unlike and not is_alone and not set(sync.parallelism) - {"none"}:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence=f"{sentence} They were not the same before training either: parts of one "
                "model (pipeline stages, experts), or replicas that nobody made equal.",
                remedy="For data parallelism, broadcast rank 0's parameters first and average the "
                "gradients after the last backward; otherwise name this check in the profile's "
                "advisory list.",
            )
        remedy = _remedy(sync, len(apart), is_alone=is_alone)
        return Judgement(outcome=Outcome.FAIL, sentence=sentence, remedy=remedy)


def _sentence(sync: OptimizerSync, apart: list[Unshared], *, is_alone: bool) -> str:
    names = listed([repr(tensor.tensor) for tensor in apart])
    step = min(tensor.step for tensor in apart)
    worst = max(tensor.distance for tensor in apart)
    sentence = (
        f"{sync.run}, from step {step} on: ranks use different gradients for {len(apart)} of "
        f"{counted(sync.num_tensors, 'tensor')} of {sync.where} ({names}), up to "
        f"{percent(worst, 0)} apart."
    )
    if is_alone:
        sentence += " No process group was made."
    if sync.seen is None:
        return sentence
    if len(sync.seen.groups) < len(sync.ranks):
        groups = [listed(group, most=8) for group in sync.seen.groups]
        sentence += f" Only these share theirs: ranks {'; '.join(groups)}."
    if sync.seen.weights is None:
        return (
            f"{sentence} No weighted sum of the ranks' gradients explains rank {sync.seen.rank}'s."
        )
    weights = [f"{round(weight, 2) + 0.0:.2f}" for weight in sync.seen.weights]
    return (
        f"{sentence} In rank {sync.seen.rank}'s at step {sync.seen.step} the ranks count "
        f"{listed(weights, most=8)} (expected {1 / len(sync.ranks):.2f} each)."
    )


def _remedy(sync: OptimizerSync, num_apart: int, *, is_alone: bool) -> str:
    if is_alone:
        return "Call torch.distributed.init_process_group and wrap the model in DDP."
    if "ddp" not in sync.parallelism and "none" in sync.parallelism:
        return (
            "Average the gradient of every parameter over the ranks after the last backward, or "
            "wrap the model in DDP."
        )
    if num_apart < sync.num_tensors:
        return "Wrap the model after the last parameter is added, unfrozen or converted."
    if sync.num_backwards > 1:
        return (
            "Leave no_sync for the last microbatch of every step, its forward included, and call "
            "the wrapped module, never .module."
        )
    return "Call the wrapped module, never .module, and don't convert it after wrapping."


def _is_alone(run: Run) -> bool:
    processes = [process_of(rank) for rank in run.ranks]
    return all(p is not None and p.rank_source == "environment" for p in processes)
