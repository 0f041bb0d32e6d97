"""What a check came to besides its findings: how far the script was run, and how well its gradients
agree with those that one process computed on the same items."""

from typing import final

import msgspec
import numpy as np

from scaleproof.checks.replayed import compared_steps
from scaleproof.evidence.close_ups import ForcedRecord, ReplayName
from scaleproof.evidence.observations import EndRecord
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run, Study


@final
class ReplaySummary(msgspec.Struct, frozen=True, kw_only=True):
    """One replay: ``why_not`` is empty when all wanted steps were replayed."""

    name: ReplayName
    num_steps: int
    num_wanted: int
    why_not: str


@final
class CheckedScript(msgspec.Struct, frozen=True, kw_only=True):
    """``num_steps``: what was asked; 0: to the end. ``was_ended``: the script had more to do.

    ``agreement`` and ``noise`` are medians over the steps compared: distance of the gradient that
    was used from the replayed one, relative to that, and the same of two replays that only differ
    in the order of the items; None where nothing could be compared.
    """

    num_ranks: int
    num_devices: int
    """That were asked for; a script that starts its ranks itself may have others."""
    num_steps: int
    was_ended: bool
    forces_cpu: bool
    forced: tuple[str, ...]
    """What was asked of CUDA or NCCL, and given on the CPU."""
    replays: tuple[ReplaySummary, ...]
    num_compared: int
    agreement: float | None
    noise: float | None


def measure_checked(study: Study) -> CheckedScript | None:
    """None for a study that is no check."""
    asked = study.request.check
    if asked is None:
        return None
    runs = study.runs_of(study.candidate) or tuple(study.runs.values())
    run = runs[0]
    ends = [end for rank in run.ranks for end in rank.of(EndRecord)]
    steps = [step for step in compared_steps(run) if not step.why_not]
    noises = [step.noise for step in steps if step.noise is not None]
    return CheckedScript(
        num_ranks=len(run.ranks),
        num_devices=asked.num_devices,
        num_steps=asked.num_steps,
        was_ended=any(end.was_ended for end in ends),
        forces_cpu=asked.forces_cpu,
        forced=tuple(
            dict.fromkeys(w for rank in run.ranks for r in rank.of(ForcedRecord) for w in r.what)
        ),
        replays=_replays(run),
        num_compared=len(steps),
        agreement=_median([step.error for step in steps]),
        noise=_median(noises),
    )


def _replays(run: Run) -> tuple[ReplaySummary, ...]:
    return tuple(
        ReplaySummary(
            name=name,
            num_steps=replay.end.num_steps,
            num_wanted=replay.end.num_wanted,
            why_not=replay.end.why_not,
        )
        for name, replay in replays_of(run).items()
    )


def _median(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else None
