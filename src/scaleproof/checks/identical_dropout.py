"""The check ``identical-dropout``."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, PROBES, SCRIPT, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.observations import ProbeRecord
from scaleproof.evidence.study import Run, Study


@final
class SharedMasks(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks that began the forward of every probed step with the same random state."""

    run: str
    ranks: tuple[int, ...]
    num_steps: int
    first_step: int


@final
class IdenticalDropoutMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_steps``: probed steps in whose forward two ranks, with inputs of their own, drew
    random numbers; ``num_seen``: those whose random states were seen at all."""

    num_seen: int
    num_steps: int
    shared: tuple[SharedMasks, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IdenticalDropout(AbstractCheck[IdenticalDropoutMeasurement]):
    """All ranks draw the same dropout masks.

    What it looks for
        Forward passes that draw random numbers - dropout, stochastic depth, noise, sampled time
        steps - from a generator that is in the same state on several data-parallel ranks.

    Why it matters
        Dropout averages over masks. With one seed for all ranks, and with torch's default one, the
        k-th sample of every rank gets the same mask: the batch holds N times fewer different ones,
        and the gradient is noisier than its size promises. For diffusion models, noise and
        time steps repeat as well. No error tells.

    How it decides
        At probed steps, the state of torch's generator is taken before and after the first
        forward. Where both differ, random numbers were drawn; where the states before are equal on
        two ranks at every such step that both have, their masks are the same: it fails.
        Ranks with the same inputs are left out: they hold parts of one model, whose masks must be
        the same, or overlapping-samples tells. States that are equal now and then pass.

    What it can't see
        Forwards that draw from a generator of their own. Steps that were not probed.

    How to fix it
        Seed with `seed + rank` after the model was made or wrapped in DDP (which sends rank 0's
        weights): `torch.manual_seed(seed + rank)`.

    References
        huggingface/transformers#31412, huggingface/accelerate#114.
    """

    name: ClassVar[str] = "identical-dropout"
    question: ClassVar[Question] = Question.SOUND
    family: ClassVar[Family] = Family.GRADIENTS
    needs: ClassVar[tuple[Need, ...]] = (CANDIDATE_RUN, SCRIPT, TWO_RANKS, PROBES)
    consequence_of: ClassVar[tuple[str, ...]] = ("overlapping-samples",)

    def measure(self, study: Study) -> IdenticalDropoutMeasurement:
        runs = study.runs_of(study.candidate)
        steps = {run.name: list(_drawing_steps(run)) for run in runs}
        seen = {
            (run.name, probe.step)
            for run in runs
            for rank in run.ranks
            for probe in rank.of(ProbeRecord)
            if len(probe.forward_random_states) > 1
        }
        return IdenticalDropoutMeasurement(
            num_seen=len(seen),
            num_steps=sum(len(of_run) for of_run in steps.values()),
            shared=tuple(
                shared for name, of_run in steps.items() for shared in _shared(name, of_run)
            ),
        )

    def judge(self, measurement: IdenticalDropoutMeasurement) -> Judgement:
        if measurement.shared:
            found = measurement.shared[0]
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{found.run}, step {found.first_step:,}: ranks "
                f"{listed(found.ranks, most=8)} began forward with the same random state, so their "
                f"dropout masks are the same (in each of "
                f"{counted(found.num_steps, 'probed step')}).",
                remedy="Call torch.manual_seed(seed + rank) after the model was made: DDP sends "
                "rank 0's weights.",
            )
        if measurement.num_seen == 0:
            return Judgement(
                outcome=Outcome.UNDECIDED,
                sentence="No probed step had a forward whose random state was seen.",
                remedy="Call the model itself (model(x)), not its forward method.",
            )
        if measurement.num_steps == 0:
            return Judgement(
                outcome=Outcome.PASS,
                sentence="Forward draws no random numbers on ranks with inputs of their own.",
            )
        return Judgement(
            outcome=Outcome.PASS,
            sentence="Forward draws random numbers from states that differ between ranks "
            f"({counted(measurement.num_steps, 'probed step')}).",
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _DrawingStep:
    """A probed step; ``states``: by rank, before its forward, of ranks that drew in it."""

    step: int
    states: dict[int, str]


def _drawing_steps(run: Run) -> Iterator[_DrawingStep]:
    """Steps in whose forward two ranks or more, with inputs of their own, drew random numbers."""
    probes: dict[int, dict[int, ProbeRecord]] = {}
    for rank in run.ranks:
        for probe in rank.of(ProbeRecord):
            states = probe.forward_random_states
            if len(states) > 1 and states[0] != states[-1]:
                probes.setdefault(probe.step, {})[rank.rank] = probe
    for step, by_rank in sorted(probes.items()):
        own: dict[str, int] = {}
        for rank, probe in by_rank.items():
            own.setdefault(probe.inputs_digest or f"rank {rank}", rank)
        if len(own) > 1:
            yield _DrawingStep(
                step=step,
                states={rank: by_rank[rank].forward_random_states[0] for rank in own.values()},
            )


def _shared(run: str, steps: list[_DrawingStep]) -> Iterator[SharedMasks]:
    """Ranks whose states were the same at every step that they drew in."""
    by_history: dict[tuple[tuple[int, str], ...], list[int]] = {}
    for rank in sorted({rank for step in steps for rank in step.states}):
        history = tuple((s.step, s.states[rank]) for s in steps if rank in s.states)
        by_history.setdefault(history, []).append(rank)
    for history, ranks in by_history.items():
        if len(ranks) > 1:
            yield SharedMasks(
                run=run, ranks=tuple(ranks), num_steps=len(history), first_step=history[0][0]
            )
