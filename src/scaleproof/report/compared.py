"""Which runs the numbers of a report are taken over."""

from scaleproof.evidence.records import Arm
from scaleproof.evidence.study import Run, Study


def compared_runs(study: Study, arm: Arm) -> tuple[Run, ...]:
    """The arm's runs of the seeds that both arms finished; all its usable runs when no seed was
    finished by both, so that what there is can be seen."""
    seeds = {pair.seed for pair in study.pairs}
    runs = study.runs_of(arm)
    return tuple(run for run in runs if run.seed in seeds) if seeds else runs
