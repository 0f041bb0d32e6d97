"""Every check there is, in the order of a report: by question, the deciding check first."""

import difflib
import inspect
from typing import Any

from scaleproof.checks.accuracy_below_floor import AccuracyBelowFloor
from scaleproof.checks.accuracy_drop import AccuracyDrop
from scaleproof.checks.accuracy_paradox import AccuracyParadox
from scaleproof.checks.batch_coupled_operation import BatchCoupledOperation
from scaleproof.checks.batch_size_unscaled import BatchSizeUnscaled
from scaleproof.checks.buffer_drift import BufferDrift
from scaleproof.checks.check import AbstractCheck
from scaleproof.checks.clipped_at_the_wrong_norm import ClippedAtTheWrongNorm
from scaleproof.checks.clipped_before_reduction import ClippedBeforeReduction
from scaleproof.checks.discarded_microbatches import DiscardedMicrobatches
from scaleproof.checks.early_stop_differs import EarlyStopDiffers
from scaleproof.checks.frozen_parameters import FrozenParameters
from scaleproof.checks.identical_augmentation import IdenticalAugmentation
from scaleproof.checks.identical_dropout import IdenticalDropout
from scaleproof.checks.loss_mismatch import LossMismatch
from scaleproof.checks.low_efficiency import LowEfficiency
from scaleproof.checks.metric_drop import MetricDrop
from scaleproof.checks.metric_from_one_shard import MetricFromOneShard
from scaleproof.checks.metric_over_padding import MetricOverPadding
from scaleproof.checks.misscaled_gradients import MisscaledGradients
from scaleproof.checks.missing_samples import MissingSamples
from scaleproof.checks.misweighted_gradients import MisweightedGradients
from scaleproof.checks.no_speed_up import NoSpeedUp
from scaleproof.checks.non_finite import NonFinite
from scaleproof.checks.overlapping_samples import OverlappingSamples
from scaleproof.checks.padded_evaluation import PaddedEvaluation
from scaleproof.checks.rank_dependent_gradients import RankDependentGradients
from scaleproof.checks.recall_drop import RecallDrop
from scaleproof.checks.repeated_samples import RepeatedSamples
from scaleproof.checks.replica_drift import ReplicaDrift
from scaleproof.checks.resume_repeats_samples import ResumeRepeatsSamples
from scaleproof.checks.same_order_every_epoch import SameOrderEveryEpoch
from scaleproof.checks.sample_coverage import SampleCoverage
from scaleproof.checks.schedule_drift import ScheduleDrift
from scaleproof.checks.train_validation_overlap import TrainValidationOverlap
from scaleproof.checks.undivided_accumulation import UndividedAccumulation
from scaleproof.checks.uneven_batches import UnevenBatches
from scaleproof.checks.unfinished_schedule import UnfinishedSchedule
from scaleproof.checks.unlike_model_parallel_inputs import UnlikeModelParallelInputs
from scaleproof.checks.unrestored_state import UnrestoredState
from scaleproof.checks.unscaled_clipping import UnscaledClipping
from scaleproof.checks.unstable_loss import UnstableLoss
from scaleproof.checks.unsynced_gradients import UnsyncedGradients
from scaleproof.errors import UsageError

ALL_CHECKS: tuple[type[AbstractCheck[Any]], ...] = (
    NoSpeedUp,
    LowEfficiency,
    AccuracyDrop,
    MetricDrop,
    RecallDrop,
    LossMismatch,
    UnstableLoss,
    UnsyncedGradients,
    ClippedBeforeReduction,
    UnscaledClipping,
    ClippedAtTheWrongNorm,
    MisweightedGradients,
    UndividedAccumulation,
    DiscardedMicrobatches,
    MisscaledGradients,
    RankDependentGradients,
    BatchCoupledOperation,
    FrozenParameters,
    NonFinite,
    ReplicaDrift,
    BufferDrift,
    SampleCoverage,
    OverlappingSamples,
    UnlikeModelParallelInputs,
    RepeatedSamples,
    MissingSamples,
    UnevenBatches,
    TrainValidationOverlap,
    PaddedEvaluation,
    SameOrderEveryEpoch,
    IdenticalAugmentation,
    IdenticalDropout,
    ResumeRepeatsSamples,
    UnrestoredState,
    ScheduleDrift,
    UnfinishedSchedule,
    EarlyStopDiffers,
    BatchSizeUnscaled,
    MetricFromOneShard,
    MetricOverPadding,
    AccuracyParadox,
    AccuracyBelowFloor,
)


def check_named(name: str) -> type[AbstractCheck[Any]]:
    """The check called ``name``. Raises ``UsageError`` with the names that come close."""
    for check in ALL_CHECKS:
        if check.name == name:
            return check
    names = [check.name for check in ALL_CHECKS]
    close = difflib.get_close_matches(name, names)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(names)}."
    raise UsageError(f"there is no check called {name!r}. {hint}")


def page_of(name: str) -> str:
    """What ``scaleproof explain`` prints: the check's docstring, without its indentation."""
    page = inspect.getdoc(check_named(name))
    assert page is not None  # a test sees to it that every check has one
    return page
