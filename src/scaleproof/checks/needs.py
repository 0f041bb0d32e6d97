"""The needs that checks share: what must be in a study before a check can look."""

from collections.abc import Callable

from scaleproof.checks.check import Need
from scaleproof.checks.wording import listed
from scaleproof.evidence.close_ups import CloseUpRecord
from scaleproof.evidence.observations import (
    MetricRecord,
    PassRecord,
    ProbeRecord,
    SnapshotRecord,
    StepsRecord,
)
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.replays import replays_of
from scaleproof.evidence.study import Run, Study


def _every_candidate_rank(study: Study, holds: Callable[[Rank], bool]) -> bool:
    runs = study.runs_of(study.candidate)
    return bool(runs) and all(holds(rank) for run in runs for rank in run.ranks)


def _some_pass(study: Study, use: str) -> bool:
    return any(
        record.use == use
        for run in study.runs_of(study.candidate)
        for rank in run.ranks
        for record in rank.of(PassRecord)
    )


def _has_all_epochs(study: Study) -> bool:
    """Of both arms: a run that did all its epochs, as its ranks say, has a record of each. Nobody
    knows how many epochs a script had to do."""
    return study.is_script or all(
        len(rank.epochs) == study.request.num_epochs
        for run in study.usable_runs.values()
        if run.status == "complete"
        for rank in run.ranks
    )


def _has_last_states(study: Study) -> bool:
    """A complete run of the candidate has, on every rank, the state that training ended with."""
    return all(
        any(state.epochs_done == study.request.num_epochs for state in rank.states)
        for run in study.runs_of(study.candidate)
        if run.status == "complete"
        for rank in run.ranks
    )


def has_predictions(study: Study) -> bool:
    """Some rank of the candidate's finished runs recorded what it predicted in an evaluation."""
    return any(rank.evaluations for run in study.runs_of(study.candidate) for rank in run.ranks)


def _has_replay(study: Study) -> bool:
    """Some run of the candidate was replayed, for a step at least."""
    unions = [replays_of(run).get("union") for run in study.runs_of(study.candidate)]
    return any(union is not None and union.end.num_steps > 0 for union in unions)


def _why_no_replay(study: Study) -> str:
    """What the replays say of themselves; empty when none was tried."""
    unions = [replays_of(run).get("union") for run in study.runs_of(study.candidate)]
    reasons = dict.fromkeys(union.end.why_not for union in unions if union is not None)
    return listed([reason.rstrip(".") for reason in reasons if reason])


def _num_ranks(run: Run) -> int:
    return run.manifest.num_ranks if run.manifest is not None else 0


BASELINE = Need(
    text="a baseline arm to compare with",
    kind="structure",
    is_met=lambda study: study.baseline is not None,
)
CANDIDATE_RUN = Need(
    text="a finished run of the candidate arm",
    kind="evidence",
    is_met=lambda study: bool(study.runs_of(study.candidate)),
)
PAIRED_RUN = Need(
    text="a seed for which both arms finished",
    kind="evidence",
    is_met=lambda study: bool(study.pairs),
)
OWN_DEVICES = Need(
    text="a device of its own for every rank (the study was made with --share-device)",
    kind="structure",
    is_met=lambda study: not study.request.share_device,
)
TWO_RANKS = Need(
    text="two or more ranks in the candidate arm",
    kind="structure",
    is_met=lambda study: any(_num_ranks(run) > 1 for run in study.runs_of(study.candidate)),
)
RECIPE = Need(
    text="a recipe, which says what must be fed; scripts have checks of their own for this",
    kind="structure",
    is_met=lambda study: not study.is_script,
)
SCRIPT = Need(
    text="an observed script; recipes are fed and stepped by a loop that rules this out",
    kind="structure",
    is_met=lambda study: study.is_script,
)
TRAINING_LOADER = Need(
    text="a DataLoader that training drew from: the script makes its batches another way",
    kind="structure",
    is_met=lambda study: _some_pass(study, "training"),
)
EVALUATION_LOADER = Need(
    text="a DataLoader that was evaluated with",
    kind="structure",
    is_met=lambda study: _some_pass(study, "evaluation"),
)
STEPS = Need(
    text="records of every rank's optimizer steps",
    kind="evidence",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: bool(rank.of(StepsRecord))),
)
PROBES = Need(
    text="gradient probes of every rank",
    kind="evidence",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: bool(rank.of(ProbeRecord))),
)
CLOSE_UPS = Need(
    text="a closer look (scaleproof check), which observing alone does not take",
    kind="structure",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: bool(rank.of(CloseUpRecord))),
)
REPLAY = Need(
    text="a replay on one process (scaleproof check)",
    kind="structure",
    is_met=_has_replay,
    why=_why_no_replay,
)
SNAPSHOTS = Need(
    text="digests of every rank's parameters",
    kind="evidence",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: bool(rank.of(SnapshotRecord))),
)
TWO_EPOCHS = Need(
    text="two or more epochs: the first one is warm-up",
    kind="evidence",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: len(rank.epochs) >= 2),
)
ALL_EPOCHS = Need(
    text="an epoch record of every rank for every epoch, in both arms",
    kind="evidence",
    is_met=_has_all_epochs,
)
EPOCHS = Need(
    text="epoch records of every rank",
    kind="evidence",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: bool(rank.epochs)),
)
SAMPLES = Need(
    text="sample records of every rank",
    kind="evidence",
    is_met=lambda study: _every_candidate_rank(study, lambda rank: bool(rank.samples)),
)
STATES = Need(
    text="state records of every rank, up to the end of training",
    kind="evidence",
    is_met=lambda study: (
        _every_candidate_rank(study, lambda rank: bool(rank.states)) and _has_last_states(study)
    ),
)
REPLICA_RECORDS = Need(
    text="digests of every rank's parameters, up to the end of training",
    kind="evidence",
    is_met=lambda study: (SNAPSHOTS if study.is_script else STATES).is_met(study),
)
TRAINING_LOSSES = Need(
    text="the training losses of every rank",
    kind="evidence",
    is_met=lambda study: (STEPS if study.is_script else EPOCHS).is_met(study),
)
METRICS = Need(
    text="figures of an evaluation: the script reported none (scaleproof.report_metrics)",
    kind="structure",
    is_met=lambda study: any(
        rank.of(MetricRecord) for run in study.runs_of(study.candidate) for rank in run.ranks
    ),
)
PREDICTIONS = Need(
    text="evaluation predictions: the script reported no predictions "
    "(scaleproof.report_predictions)",
    kind="structure",
    is_met=lambda study: not study.is_script or has_predictions(study),
)
EVALUATIONS = Need(
    text="evaluation records of the candidate's ranks at the end of training",
    kind="evidence",
    is_met=lambda study: all(
        run.final_epochs_done > 0 if run.status == "complete" else bool(run.evaluated_epochs)
        for run in study.runs_of(study.candidate)
    ),
)
