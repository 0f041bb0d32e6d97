"""The check ``identical-dropout``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import msgspec

from scaleproof.checks.check import AbstractCheck, Family, Judgement, Need, Outcome, Question
from scaleproof.checks.needs import CANDIDATE_RUN, PROBES, SCRIPT, TWO_RANKS
from scaleproof.checks.wording import counted, listed
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.observations import ProbeRecord
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.study import Run, Study


@final
class SharedMasks(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks that drew the same at every probed step: they began ``forward`` in the same random
    state, or drew the same numbers for their ``items``."""

    by: Literal["forward", "items"]
    run: str
    ranks: tuple[int, ...]
    num_steps: int
    first_step: int


@final
class IdenticalDropoutMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """``num_steps``: probed steps in whose forward two ranks, with inputs of their own, drew
    random numbers; ``num_seen``: those whose random states were seen at all. ``num_item_steps``:
    steps at which two ranks, with inputs of their own, drew as many rows as a batch has items."""

    num_seen: int
    num_steps: int
    num_item_steps: int
    shared: tuple[SharedMasks, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IdenticalDropout(AbstractCheck[IdenticalDropoutMeasurement]):
    """All ranks draw the same dropout masks, or the same noise.

    What it looks for
        Forward passes that draw random numbers - dropout, stochastic depth, noise - from a
        generator that is in the same state on several data-parallel ranks. Under `check` also the
        noise, time steps or latent variables that the loop itself draws for the items of a batch.

    Why it matters
        Dropout averages over masks. With one seed for all ranks, and with torch's default one, the
        k-th sample of every rank gets the same mask: the batch holds N times fewer different ones,
        and the gradient is noisier than its size promises. For diffusion models, noise and
        time steps repeat as well. No error tells.

    How it decides
        At probed steps, the state of torch's generator is taken before and after the first
        forward. Where both differ, random numbers were drawn; where the states before are equal on
        two ranks at every such step that both have, their masks are the same: it fails.
        `check` keeps digests of the tensors that torch's functions draw between the handing out
        of a batch and the end of the step: those with as many rows as the batch has items, or a
        multiple, and permutations left out. Where they are equal on two ranks at every step that
        both have, it fails as well.

        Ranks with the same inputs are left out: they hold parts of one model, whose masks must be
        the same, or overlapping-samples tells. States that are equal now and then pass.

    What it can't see
        Forwards that draw from a generator of their own. Steps that were not probed. Under
        `observe`, what the loop draws outside of forward: there the state alone tells, which one
        number that all ranks share on purpose (an image size) changes as well.

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
        items = {run.name: list(_item_steps(run)) for run in runs}
        return IdenticalDropoutMeasurement(
            num_seen=len(seen),
            num_steps=sum(map(len, steps.values())),
            num_item_steps=sum(map(len, items.values())),
            shared=(
                *(one for name, found in steps.items() for one in _shared(name, found, "forward")),
                *(one for name, found in items.items() for one in _shared(name, found, "items")),
            ),
        )

    def judge(self, measurement: IdenticalDropoutMeasurement) -> Judgement:
        if measurement.shared:
            found = measurement.shared[0]
            how = (
                "began forward with the same random state, so their dropout masks are the same"
                if found.by == "forward"
                else "drew the same random numbers for the items of their batches, noise for one"
            )
            return Judgement(
                outcome=Outcome.FAIL,
                sentence=f"{found.run}, step {found.first_step:,}: ranks "
                f"{listed(found.ranks, most=8)} {how} (in each of "
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
        if measurement.num_steps == 0 and measurement.num_item_steps:
            return Judgement(
                outcome=Outcome.PASS,
                sentence="The random numbers drawn for the items of a batch differ between ranks "
                f"({counted(measurement.num_item_steps, 'probed step')}).",
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
    """A probed step; ``states``: by rank, of ranks that drew in it: that before its forward, or a
    digest of what was drawn."""

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
        own = _with_own_inputs(by_rank)
        if len(own) > 1:
            yield _DrawingStep(
                step=step,
                states={rank: by_rank[rank].forward_random_states[0] for rank in own},
            )


def _item_steps(run: Run) -> Iterator[_DrawingStep]:
    """Steps at which two ranks or more, with inputs of their own, drew for the items of a batch."""
    probes: dict[int, dict[int, ProbeRecord]] = {}
    drawn: dict[int, dict[int, str]] = {}
    for rank in run.ranks:
        probe_at = {probe.step: probe for probe in rank.of(ProbeRecord)}
        for look in rank.of(CloseUpRecord):
            digest = _drawn_for_items(rank, look)
            if digest and look.step in probe_at:
                probes.setdefault(look.step, {})[rank.rank] = probe_at[look.step]
                drawn.setdefault(look.step, {})[rank.rank] = digest
    for step, by_rank in sorted(probes.items()):
        own = _with_own_inputs(by_rank)
        if len(own) > 1:
            yield _DrawingStep(step=step, states={rank: drawn[step][rank] for rank in own})


def _drawn_for_items(rank: Rank, look: CloseUpRecord) -> str:
    """A digest of what was drawn with as many rows as a batch of the step has items, or a multiple
    of it; empty when nothing was. Without loaders, every tensor of two rows or more counts."""
    table = rank.observed_steps
    if not 1 <= look.step <= len(table):
        return ""
    row = table[look.step - 1]
    num_items, num_batches = int(row["num_samples"]), int(row["num_batches"])
    if num_items >= 0 and (num_batches < 1 or num_items % num_batches):
        return ""
    size = max(num_items // num_batches, 1) if num_items >= 0 else 1
    if num_items >= 0 and size == 1:  # one number for all, or for the only item
        return ""
    return " ".join(digest for rows, digest in look.drawn_rows if rows % size == 0)


def _with_own_inputs(by_rank: Mapping[int, ProbeRecord]) -> list[int]:
    """One rank of each set of ranks with the same inputs."""
    own: dict[str, int] = {}
    for rank, probe in by_rank.items():
        own.setdefault(probe.inputs_digest or f"rank {rank}", rank)
    return list(own.values())


def _shared(
    run: str, steps: list[_DrawingStep], by: Literal["forward", "items"]
) -> Iterator[SharedMasks]:
    """Ranks whose states were the same at every step that they drew in."""
    by_history: dict[tuple[tuple[int, str], ...], list[int]] = {}
    for rank in sorted({rank for step in steps for rank in step.states}):
        history = tuple((s.step, s.states[rank]) for s in steps if rank in s.states)
        by_history.setdefault(history, []).append(rank)
    for history, ranks in by_history.items():
        if len(ranks) > 1:
            yield SharedMasks(
                by=by,
                run=run,
                ranks=tuple(ranks),
                num_steps=len(history),
                first_step=history[0][0],
            )
