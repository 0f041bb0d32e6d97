"""What one rank writes down, in the order in which it happens."""

from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from pyroaring import BitMap
from torch import Tensor

from scaleproof.evidence.records import (
    EVALUATION_TABLE,
    STEP_TABLE,
    EpochRecord,
    EvaluationRecord,
    SamplesRecord,
    StateRecord,
    TensorState,
)
from scaleproof.evidence.writer import RankWriter, digest_of


@final
class Recorder:
    """Turns what the loop saw into records."""

    def __init__(self, writer: RankWriter) -> None:
        self._writer = writer

    def epoch(
        self,
        epoch: int,
        *,
        started_at_unix_s: float,
        train_time_s: float,
        losses: Tensor,
        num_samples: NDArray[np.int32],
        learning_rates: NDArray[np.float32],
    ) -> None:
        """One training epoch: ``losses``, shape ``(num_steps,)``, is this rank's mean per step."""
        table = np.zeros(len(num_samples), STEP_TABLE)
        table["loss"] = losses.cpu().numpy()
        table["num_samples"] = num_samples
        table["learning_rate"] = learning_rates
        self._writer.record(
            EpochRecord(
                epoch=epoch,
                num_steps=len(table),
                num_samples=int(num_samples.sum()),
                train_time_s=train_time_s,
                started_at_unix_s=started_at_unix_s,
                steps=self._writer.array(f"steps-{epoch:04d}", table),
            )
        )

    def samples(self, epoch: int, sample_ids: Tensor) -> None:
        """The ids that were fed, in order, shape ``(num_fed,)``."""
        fed = sample_ids.numpy()
        ids, counts = np.unique(fed, return_counts=True)
        name = f"{epoch:04d}.roaring"
        self._writer.record(
            SamplesRecord(
                epoch=epoch,
                num_fed=len(fed),
                order_digest=digest_of(fed.tobytes()),
                seen=self._writer.blob(f"seen-{name}", BitMap(ids).serialize()),
                repeated=self._writer.blob(f"repeated-{name}", BitMap(ids[counts > 1]).serialize()),
            )
        )

    def evaluation(
        self,
        epochs_done: int,
        *,
        sample_ids: Tensor,
        targets: Tensor,
        outputs: Tensor,
        losses: Tensor,
        keep_scores: bool,
    ) -> None:
        """What this rank scored: ids, targets and losses of shape ``(num_scored,)``, outputs of
        shape ``(num_scored, num_classes)``."""
        table = np.zeros(len(sample_ids), EVALUATION_TABLE)
        table["sample_id"] = sample_ids.cpu().numpy()
        table["target"] = targets.cpu().numpy()
        table["prediction"] = outputs.argmax(dim=-1).cpu().numpy()
        table["loss"] = losses.cpu().numpy()
        scores = None
        if keep_scores:
            values = outputs.to(torch.float32).cpu().numpy()
            scores = self._writer.array(f"scores-{epochs_done:04d}", values)
        self._writer.record(
            EvaluationRecord(
                epochs_done=epochs_done,
                table=self._writer.array(f"evaluation-{epochs_done:04d}", table),
                scores=scores,
            )
        )

    def state(
        self,
        epochs_done: int,
        tensors: tuple[TensorState, ...],
        sketches: NDArray[Any],
        *,
        replicated: bool,
    ) -> None:
        """The fingerprint of the training state."""
        self._writer.record(
            StateRecord(
                epochs_done=epochs_done,
                replicated=replicated,
                tensors=tensors,
                sketches=self._writer.array(f"state-{epochs_done:04d}", sketches),
            )
        )
