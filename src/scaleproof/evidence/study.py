"""A study as the judge sees it: its request, its runs, and the pairs that can be compared."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import EvidenceError
from scaleproof.evidence.consistency import (
    COMPARABLE_KEYS,
    COMPARABLE_KEYS_OF_SCRIPTS,
    SAME_ARM_KEYS,
    refuse_incomparable,
    refuse_odd_records,
    refuse_other_classes,
    refuse_other_manifest,
)
from scaleproof.evidence.hangs import HangRecord
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.rank import Rank
from scaleproof.evidence.reader import read_json, read_records
from scaleproof.evidence.records import (
    EVALUATION_TABLE,
    STEP_TABLE,
    Arm,
    Manifest,
    RankOutcome,
    StudyRequest,
)

RunStatus = Literal["complete", "diverged", "failed", "unfinished", "missing"]

_END_OF_TIME_UNIX_S = 2.5e11
"""The end of the year 9892: the calendar of Python ends with 9999."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


@final
@dataclass(frozen=True)
class Run:
    """The evidence of one run: one arm, one seed."""

    arm: Arm
    seed: int
    paths: RunPaths
    manifest: Manifest | None
    ranks: tuple[Rank, ...]
    is_script: bool = False
    """Somebody's own command: how often and when it evaluates is its own affair."""

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"

    @cached_property
    def hang(self) -> HangRecord | None:
        """Who waited for whom, when it stood still and had to be ended."""
        if not self.paths.hang.exists():
            return None
        return read_json(self.paths.hang, HangRecord, what="the record of a hang")

    @cached_property
    def status(self) -> RunStatus:
        if self.hang is not None:
            return "failed"
        if self.manifest is None and not self.ranks:
            return "missing"
        outcomes = [rank.outcome.status for rank in self.ranks if rank.outcome is not None]
        if "error" in outcomes:
            return "failed"
        if self.manifest is None or len(outcomes) < self.manifest.num_ranks:
            return "unfinished"
        return "diverged" if "diverged" in outcomes else "complete"

    @cached_property
    def first_failure(self) -> tuple[int, RankOutcome] | None:
        """The rank that failed first and how; None when none failed.

        A rank that only lost its peer did not fail first, even when it says so earlier.
        """
        failures = [
            (rank.rank, rank.outcome)
            for rank in self.ranks
            if rank.outcome is not None and rank.outcome.status == "error"
        ]
        return min(
            failures,
            key=lambda failure: (failure[1].is_lost_peer, failure[1].ended_at_unix_s),
            default=None,
        )

    @property
    def is_usable(self) -> bool:
        """It ran to its end, or to a loss that is not finite: its records are whole."""
        return self.status in ("complete", "diverged")

    @cached_property
    def epoch_times_s(self) -> NDArray[np.float64]:
        """Training time of each epoch that all ranks finished, shape ``(num_epochs_done,)``:
        the slowest rank's."""
        per_rank = [[epoch.train_time_s for epoch in rank.epochs] for rank in self.ranks]
        num_done = min((len(times) for times in per_rank), default=0)
        if num_done == 0:
            return np.zeros(0)
        return np.max(np.array([times[:num_done] for times in per_rank]), axis=0)

    @cached_property
    def step_losses(self) -> NDArray[np.float64]:
        """Training loss of every step, shape ``(num_steps,)``: the mean over the global batch."""
        if not self.ranks:
            return np.zeros(0)
        tables = [
            np.concatenate(
                [rank.steps(epoch) for epoch in rank.epochs] or [np.zeros(0, STEP_TABLE)]
            )
            for rank in self.ranks
        ]
        num_steps = min(len(table) for table in tables)
        losses = np.array([table["loss"][:num_steps] for table in tables], dtype=np.float64)
        counts = np.array([table["num_samples"][:num_steps] for table in tables], dtype=np.float64)
        return (losses * counts).sum(axis=0) / np.maximum(counts.sum(axis=0), 1)

    @cached_property
    def evaluated_epochs(self) -> tuple[int, ...]:
        """Values of ``epochs_done`` at which every rank has scored its share, ascending.

        A script may gather on some ranks what all of them scored: those count that reported any.
        """
        per_rank = [{record.epochs_done for record in rank.evaluations} for rank in self.ranks]
        if self.is_script:
            per_rank = [epochs for epochs in per_rank if epochs]
        return tuple(sorted(set[int].intersection(*per_rank))) if per_rank else ()

    def evaluation(self, epochs_done: int) -> NDArray[Any]:
        """All ranks' ``EVALUATION_TABLE`` rows after ``epochs_done`` epochs, by sample id.

        A sample that was scored twice is there twice. Raises ``EvidenceError`` when there are none
        and, where the manifest names classes, for a target or a prediction that is none of them.
        """
        tables = [
            rank.evaluation_table(record)
            for rank in self.ranks
            for record in rank.evaluations
            if record.epochs_done == epochs_done
        ]
        if not tables:
            raise EvidenceError(
                f"{self.paths.root} has no evaluation after {epochs_done} epochs, only after "
                f"{list(self.evaluated_epochs)}. Choose one of these."
            )
        table = np.concatenate(tables)
        if self.manifest is not None and self.manifest.class_names:
            refuse_other_classes(self.paths.root, table, len(self.manifest.class_names))
        return table[np.argsort(table["sample_id"], kind="stable")]

    @property
    def final_epochs_done(self) -> int:
        """Epochs done at the final evaluation; 0 when there is none.

        That of a complete run is the one at its end, no earlier one; the one before training never
        counts. Of a script it is the last there is: some count their epochs from 1, some evaluate
        in the middle of one.
        """
        last = self.evaluated_epochs[-1] if self.evaluated_epochs else 0
        if self.is_script:
            return last
        is_early = self.manifest is not None and last != self.manifest.num_epochs
        return 0 if self.status == "complete" and is_early else last

    @cached_property
    def final_evaluation(self) -> NDArray[Any]:
        """``evaluation`` after ``final_epochs_done``; the empty table when there is none."""
        if self.final_epochs_done == 0:
            return np.zeros(0, EVALUATION_TABLE)
        return self.evaluation(self.final_epochs_done)


@final
@dataclass(frozen=True)
class Pair:
    """The baseline and the candidate run of one seed."""

    seed: int
    baseline: Run
    candidate: Run


@final
@dataclass(frozen=True)
class Study:
    """All evidence of one study."""

    paths: StudyPaths
    request: StudyRequest
    runs: Mapping[tuple[str, int], Run]

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.request.arms if arm.role == "baseline"), None)

    @property
    def candidate(self) -> Arm:
        return next(arm for arm in self.request.arms if arm.role == "candidate")

    @property
    def is_script(self) -> bool:
        """Somebody's own command was observed; otherwise a recipe was trained."""
        return self.request.kind == "script"

    @cached_property
    def usable_runs(self) -> Mapping[tuple[str, int], Run]:
        """The runs that ran to their end, after checking that they are what was asked for, do not
        contradict themselves and are comparable.

        Raises ``EvidenceError`` otherwise.
        """
        usable = {key: run for key, run in self.runs.items() if run.is_usable}
        first: tuple[Path, Manifest] | None = None
        first_of_arm: dict[str, tuple[Path, Manifest]] = {}
        for run in usable.values():
            assert run.manifest is not None  # it is usable
            numbers = [rank.rank for rank in run.ranks]
            refuse_other_manifest(run.paths.root, run.manifest, run.arm, self.request, numbers)
            for rank in run.ranks:
                path = run.paths.records(rank.rank)
                refuse_odd_records(path, rank.records, is_torn=rank.is_torn)
            this = (run.paths.root, run.manifest)
            first = first or this
            if self.is_script:
                refuse_incomparable(first, this, COMPARABLE_KEYS_OF_SCRIPTS)
                continue
            refuse_incomparable(first, this, COMPARABLE_KEYS)
            refuse_incomparable(first_of_arm.setdefault(run.arm.name, this), this, SAME_ARM_KEYS)
        return usable

    def runs_of(self, arm: Arm) -> tuple[Run, ...]:
        """The arm's usable runs, by seed."""
        keys = ((arm.name, seed) for seed in self.request.seeds)
        return tuple(self.usable_runs[key] for key in keys if key in self.usable_runs)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The seeds for which both arms have a usable run."""
        if self.baseline is None:
            return ()
        baselines = {run.seed: run for run in self.runs_of(self.baseline)}
        return tuple(
            Pair(seed=run.seed, baseline=baselines[run.seed], candidate=run)
            for run in self.runs_of(self.candidate)
            if run.seed in baselines
        )

    @property
    def unusable_runs(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs.values() if not run.is_usable)


def load_study(root: Path) -> Study:
    """Read a study from its folder. Arrays are read when they are asked for.

    Raises ``EvidenceError`` when it is no study, was written by a newer version, or is damaged.
    """
    paths = StudyPaths(root)
    if not root.is_dir():
        raise EvidenceError(
            f"{root} is not a folder. Name the folder of a study, the one that holds study.json."
        )
    request = read_json(paths.study, StudyRequest, what="the request of a study")
    _check_request(paths, request)
    runs = {
        (arm.name, seed): load_run(paths.run(arm.name, seed), arm, seed)
        for seed in request.seeds
        for arm in request.arms
    }
    if request.kind == "script":
        request = _as_it_ran(request, runs)
        arms = {arm.name: arm for arm in request.arms}
        runs = {key: replace(run, arm=arms[key[0]], is_script=True) for key, run in runs.items()}
    return Study(paths=paths, request=request, runs=runs)


def _as_it_ran(request: StudyRequest, runs: Mapping[tuple[str, int], Run]) -> StudyRequest:
    """The request of a script's study, completed by what only the runs could tell."""
    manifests = [run.manifest for run in runs.values() if run.manifest is not None]
    ranks = {manifest.arm: manifest.num_ranks for manifest in manifests}
    arms = tuple(
        msgspec.structs.replace(arm, num_devices=ranks.get(arm.name, arm.num_devices))
        for arm in request.arms
    )
    num_epochs = max((manifest.num_epochs for manifest in manifests), default=request.num_epochs)
    return msgspec.structs.replace(request, arms=arms, num_epochs=num_epochs)


def _check_request(paths: StudyPaths, request: StudyRequest) -> None:
    roles = sorted(arm.role for arm in request.arms)
    if roles not in (["candidate"], ["baseline", "candidate"]):
        raise EvidenceError(
            f"{paths.study} has arms with the roles {roles}, expected one candidate and at most "
            "one baseline. Restore the file from where the study was made."
        )
    names = [arm.name for arm in request.arms]
    for name in names:
        if not _FOLDER_NAME.fullmatch(name):
            raise EvidenceError(
                f"{paths.study} names an arm {name!r}, which is no folder name. "
                "Restore the file from where the study was made."
            )
    for arm in request.arms:
        if arm.num_devices < (0 if request.kind == "script" else 1):
            raise EvidenceError(
                f"{paths.study} has an arm {arm.name} of {arm.num_devices} devices, expected one "
                "or more. Restore the file from where the study was made."
            )
    if not 0 <= request.created_at_unix_s < _END_OF_TIME_UNIX_S:
        raise EvidenceError(
            f"{paths.study} was made {request.created_at_unix_s:g} s after 1970, expected a time. "
            "Restore the file from where the study was made."
        )
    if len(set(names)) != len(names) or len(set(request.seeds)) != len(request.seeds):
        raise EvidenceError(
            f"{paths.study} names an arm or a seed twice: arms {names}, seeds "
            f"{list(request.seeds)}. Restore the file from where the study was made."
        )


def load_run(paths: RunPaths, arm: Arm, seed: int) -> Run:
    """Read one run from its folder, whatever state it is in."""
    manifest = None
    if paths.manifest.exists():
        manifest = read_json(paths.manifest, Manifest, what="the manifest of a run")
        if (manifest.arm, manifest.seed) != (arm.name, seed):
            raise EvidenceError(
                f"{paths.manifest} is of arm {manifest.arm} with seed {manifest.seed}, expected "
                f"arm {arm.name} with seed {seed}. Put every run back into its own folder."
            )
    return Run(
        arm=arm,
        seed=seed,
        paths=paths,
        manifest=manifest,
        ranks=tuple(_load_rank(paths, rank) for rank in paths.ranks_seen()),
    )


def _load_rank(paths: RunPaths, rank: int) -> Rank:
    records, is_torn = read_records(paths.records(rank))
    outcome = None
    if paths.outcome(rank).exists():
        outcome = read_json(paths.outcome(rank), RankOutcome, what="the outcome of a rank")
    return Rank(
        rank=rank,
        folder=paths.arrays(rank),
        records=records,
        is_torn=is_torn,
        outcome=outcome,
    )
