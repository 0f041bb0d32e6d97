"""The replays of a run: the same script once more, on one process fed what all ranks were fed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final, get_args

from scaleproof.evidence.close_ups import ReplayEnd, ReplayName
from scaleproof.evidence.reader import read_json
from scaleproof.evidence.study import Run, load_run


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One replay. ``run`` is that of its only process: its steps are numbered as the replayed
    run's, and its records are those of ``close_ups.py`` and of any observed script."""

    end: ReplayEnd
    run: Run


def replays_of(run: Run) -> Mapping[ReplayName, Replay]:
    """Those that were made of a run; none of one that was only observed."""
    found: dict[ReplayName, Replay] = {}
    for name in get_args(ReplayName):
        paths = run.paths.replay(name)
        if paths.replay_end.exists():
            end = read_json(paths.replay_end, ReplayEnd, what="the end of a replay")
            found[name] = Replay(end=end, run=load_run(paths, run.arm, run.seed))
    return found
