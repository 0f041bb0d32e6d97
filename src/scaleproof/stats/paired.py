"""The same evaluation samples as scored by both arms, seed by seed.

A comparison of two arms is a comparison sample by sample only where both scored the same ones, as
the same class, after the same number of epochs. This is where that is made sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from scaleproof.errors import EvidenceError
from scaleproof.evidence.records import EVALUATION_TABLE
from scaleproof.evidence.study import Pair, Run
from scaleproof.stats.classification import unique_samples


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairedEvaluations:
    """Final evaluations of the seeds that can be compared.

    ``baseline`` and ``candidate`` are ``EVALUATION_TABLE`` rows of shape
    ``(num_seeds, num_samples)``, in the same sample order everywhere. ``num_unmatched`` samples
    were scored by some of the runs only and are left out. ``diverged_seeds``: the candidate
    diverged before an evaluation that the baseline lived to see. ``left_out_seeds``: there is
    nothing to compare, because the arms have no evaluation after the same last epoch.
    """

    seeds: tuple[int, ...]
    baseline: NDArray[Any]
    candidate: NDArray[Any]
    num_unmatched: int
    diverged_seeds: tuple[int, ...]
    left_out_seeds: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        return self.baseline.shape[1]


def pair_final_evaluations(pairs: Sequence[Pair]) -> PairedEvaluations:
    """Align the final evaluations of all pairs by sample id, each sample once.

    Raises ``EvidenceError`` when the arms disagree on what class a sample is.
    """
    compared: list[Pair] = []
    diverged: list[int] = []
    left_out: list[int] = []
    for pair in pairs:
        baseline_epoch, candidate_epoch = (
            pair.baseline.final_epochs_done,
            pair.candidate.final_epochs_done,
        )
        if pair.candidate.status == "diverged" and candidate_epoch < baseline_epoch:
            diverged.append(pair.seed)
        elif baseline_epoch == candidate_epoch > 0:
            compared.append(pair)
        else:
            left_out.append(pair.seed)
    baseline = [unique_samples(pair.baseline.final_evaluation) for pair in compared]
    candidate = [unique_samples(pair.candidate.final_evaluation) for pair in compared]
    rows, num_unmatched = _align([*baseline, *candidate])
    _refuse_other_targets(rows, [pair.baseline for pair in compared])
    return PairedEvaluations(
        seeds=tuple(pair.seed for pair in compared),
        baseline=rows[: len(compared)],
        candidate=rows[len(compared) :],
        num_unmatched=num_unmatched,
        diverged_seeds=tuple(diverged),
        left_out_seeds=tuple(left_out),
    )


def align_with(samples: PairedEvaluations, tables: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """Rows of other evaluations, one table by sample id per seed, in the order of ``samples``.

    Shape ``(num_seeds, num_samples)``; None when one of them lacks a sample.
    """
    ids = samples.baseline["sample_id"]
    rows = [unique_samples(table) for table in tables]
    rows = [row[np.isin(row["sample_id"], wanted)] for row, wanted in zip(rows, ids, strict=True)]
    if any(len(row) < samples.num_samples for row in rows):
        return None
    return np.stack(rows)


def _align(tables: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], int]:
    """The rows that all tables share, shape ``(num_tables, num_samples)``; how many they don't."""
    if not tables:
        return np.zeros((0, 0), EVALUATION_TABLE), 0
    ids, counts = np.unique(
        np.concatenate([table["sample_id"] for table in tables]), return_counts=True
    )
    shared = ids[counts == len(tables)]
    rows = np.stack([table[np.isin(table["sample_id"], shared)] for table in tables])
    return rows, len(ids) - len(shared)


def _refuse_other_targets(rows: NDArray[Any], runs: Sequence[Run]) -> None:
    if not len(rows):
        return
    wrong = np.argwhere(rows["target"] != rows["target"][0])
    if len(wrong):
        run, sample = wrong[0]
        first, other = rows[0, sample], rows[run, sample]
        raise EvidenceError(
            f"evaluation sample {first['sample_id']} has class {first['target']} in "
            f"{runs[0].paths.root} and class {other['target']} in another run of the study. "
            "Runs can be compared only on the same labels: run both arms again on the same data."
        )
