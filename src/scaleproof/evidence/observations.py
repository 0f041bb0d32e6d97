"""What a rank of somebody's own script was seen to do: the records of ``scaleproof observe``.

A *step* is a call of ``Optimizer.step`` that did its work, whichever optimizer it was of, counted
from 1 in each process. A *pass* is one iteration over one loader, from ``iter`` to its end or to
where the script left it.
"""

from enum import IntFlag, StrEnum
from typing import Literal, final

import msgspec
import numpy as np

from scaleproof.evidence.records import ArrayRef, TensorState

NUM_COORDINATES = 64
"""Numbers probed per tensor: fixed positions, the same on all ranks; tensors with fewer have
their probes padded with NaN."""


class StepFlag(IntFlag):
    """What was true of a step."""

    TRAIN_MODE = 1
    """A forward with gradients ran in training mode."""
    EVALUATION_MODE = 2
    """A forward with gradients ran in evaluation mode."""
    CLIPPED = 4
    """``torch.nn.utils.clip_grad_*`` was called since the optimizer's last step."""
    REDUCED_AFTER_CLIPPING = 8
    """A collective ran between that call and the step."""
    CLOSURE = 16
    """The step was given a closure: its gradients were computed inside."""
    SCALED = 32
    """The step came through a ``GradScaler``."""


OBSERVED_STEP_TABLE = np.dtype(
    [
        ("optimizer", "<i2"),  # number of the optimizer, as in its OptimizerRecord
        ("epoch", "<i4"),  # passes over the first training loader begun before, less one; from 0
        ("num_backwards", "<i2"),  # since the last step of any optimizer
        ("num_batches", "<i2"),  # taken from training loaders since the last step
        ("num_samples", "<i4"),  # in those batches; -1 when no loader was seen
        ("num_collectives", "<i4"),  # started in the default group since the last step
        ("flags", "<u2"),  # StepFlag
        ("loss", "<f4"),  # mean of what backward was called on, unscaled; NaN unknown
        ("learning_rate", "<f4"),  # of the first parameter group
        ("clip_norm", "<f4"),  # what clipping measured; NaN when it was not called
        ("clip_max", "<f4"),  # what it was allowed; NaN when it was not called
        # Phases since the last step ended; they add up to the time between the two.
        ("input_wait_s", "<f4"),
        ("forward_s", "<f4"),
        ("backward_s", "<f4"),
        ("sync_wait_s", "<f4"),  # from the rank's own last gradient to the end of backward
        ("optimizer_s", "<f4"),
        ("other_s", "<f4"),
    ]
)
"""One row per step."""


@final
class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True, tag="process"):
    """Who this process is. ``rank_source``: where ``rank`` and ``num_ranks`` come from -
    ``none`` means that nothing said there was more than one process.

    ``parallelism`` is what was seen at the first step; ``script`` may be empty (``python -c``).
    """

    pid: int
    rank: int
    num_ranks: int
    rank_source: Literal["process-group", "environment", "none"]
    parallelism: Literal["ddp", "fsdp2", "fsdp1", "data-parallel", "none"]
    backend: str
    """Of the default process group; empty when there is none."""
    script: str
    arguments: tuple[str, ...]
    num_threads: int
    broadcasts_buffers: bool | None = None
    """Whether the DDP wrapper sends rank 0's buffers along with each forward; None: no wrapper was
    seen, or it did not say."""
    model_peers: tuple[int, ...] = ()
    """Ranks, its own included, that hold other parts of the same copy of the model (tensor
    parallelism), as DTensor parameters tell; empty: none known."""


@final
class LoaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="loader"):
    """A loader, written when its first pass begins. Loaders and data sets are numbered in the
    order in which a process first used them.

    ``data_set`` is the one at the root of ``Subset`` chains, ``num_root`` its length,
    ``num_items`` that of what the loader was given (both -1: it has none). ``shards`` is what the
    sampler says of itself: (its rank, its number of replicas), when it does.
    """

    loader: int
    data_set: int
    data_set_type: str
    num_items: int
    num_root: int
    sampler: str
    shards: tuple[int, int] | None
    batch_size: int | None
    drop_last: bool
    num_workers: int
    where: str
    """``train.py:37``, the script's line that made it; empty when unknown."""


class RandomSource(StrEnum):
    """A global random-number generator of a process."""

    TORCH = "torch"
    NUMPY = "numpy"
    PYTHON = "python"


@final
class PassRecord(msgspec.Struct, frozen=True, kw_only=True, tag="pass"):
    """One pass over one loader, written when it ended.

    ``use``: a pass during which backward ran is ``training``, any other ``evaluation``.
    ``seen`` and ``repeated`` are roaring bitmaps of root data set ids, by index; for data sets
    without indices (``has_ids`` False) both are empty bitmaps. ``batch_sizes``: int32, shape
    ``(num_batches,)``, in the order they were handed out.

    ``contents``: uint64, sorted, each once: digests of the items handed out, those up to and
    including ``content_limit`` (the largest uint64: all of them). ``num_content_repeats`` counts
    the items whose digest was there before. Augmented items have no stable content; None when no
    tensor was found in a batch.

    ``random_states``: digest of each global generator's state in the main process when the pass
    began. ``drawn``: what fetching an item was seen to draw from, in the process that fetches (a
    worker, or the main process); empty when it drew nothing or was not seen (``is_fetch_seen``).
    ``base_seed`` is what the workers' seeds are made from; None without workers.
    """

    loader: int
    number: int
    """Passes over this loader before this one."""
    use: Literal["training", "evaluation"]
    epoch: int
    """As in ``OBSERVED_STEP_TABLE``, when the pass began; -1 before training."""
    first_step: int
    """Steps done when it began."""
    last_step: int
    """Steps done when it ended."""
    is_whole: bool
    """It ran to its end; the script did not break off."""
    has_ids: bool
    num_batches: int
    num_fed: int
    order_digest: str
    seen: ArrayRef
    repeated: ArrayRef
    batch_sizes: ArrayRef
    contents: ArrayRef | None
    content_limit: int
    num_content_repeats: int
    sampler_epoch: int | None
    """The sampler's own ``epoch`` attribute when the pass began."""
    base_seed: int | None
    random_states: dict[RandomSource, str]
    drawn: tuple[RandomSource, ...]
    is_fetch_seen: bool
    drops_padding: bool = False
    """What was computed on its batches went through Accelerate's ``gather_for_metrics``, which
    drops the items that the loader repeated to fill up the last batch."""


@final
class OwnedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of an optimizer, or one of the model's that none owns."""

    name: str
    numel: int
    requires_grad: bool
    is_sharded: bool
    """Each rank holds a part of it (FSDP2): probes join the parts."""
    has_gradient: bool
    """It has a gradient now."""
    learning_rate: float | None = None
    """Of its parameter group now; None when no optimizer owns it."""


@final
class OptimizerRecord(msgspec.Struct, frozen=True, kw_only=True, tag="optimizer"):
    """What an optimizer owns: written at its first step and at the end of training.

    ``owned`` is in the row order of its probes. ``unowned``: trainable parameters of modules that
    hold at least one parameter of this optimizer, which belong to no optimizer at all.
    ``num_strangers``: owned parameters that are in no module that ran forward.
    """

    optimizer: int
    steps_done: int
    moment: Literal["first-step", "end"]
    kind: str
    where: str
    owned: tuple[OwnedTensor, ...]
    unowned: tuple[OwnedTensor, ...]
    num_strangers: int


@final
class StepsRecord(msgspec.Struct, frozen=True, kw_only=True, tag="steps"):
    """Some steps in a row: ``table`` is an ``OBSERVED_STEP_TABLE``, its first row step number
    ``first_step``."""

    first_step: int
    table: ArrayRef


@final
class ProbeRecord(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Gradients of one step, at fixed coordinates.

    ``values``: float64, shape ``(num_owned, 2, NUM_COORDINATES)``; [:, 0] is what this rank's own
    backwards produced, summed, before any reduction; [:, 1] is what the optimizer used. NaN where
    unknown: no gradient, not on this rank's shard, no such coordinate. ``norms``: float64, shape
    ``(num_owned, 2)``, Euclidean norms of the same two gradients, whole tensors (of the final
    one, this rank's shard); NaN where unknown - the first after more than one backward.

    ``grad_scale``: what a ``GradScaler`` multiplied the loss with: the local gradient is that much
    larger, the final one is not. 1 without a scaler.

    ``inputs_digest``: of the tensors of the first forward since the last step; empty: none seen.
    ``loss_reduction``: how the loss that backward began at was reduced, where autograd's graph
    says: then nothing was multiplied or divided after it.
    ``forward_random_states``: digests of torch's generator before and after that first forward of
    the step; equal: no random numbers were drawn; empty: not seen.
    """

    step: int
    optimizer: int
    values: ArrayRef
    norms: ArrayRef
    num_backwards: int
    grad_scale: float
    inputs_digest: str
    loss_reduction: Literal["mean", "sum", "unknown"]
    forward_random_states: tuple[str, ...]
    memory_bytes: int
    """Resident memory of the process; on CUDA, allocated on its device."""


class Moment(StrEnum):
    """When a snapshot was taken."""

    START = "start"
    """Before the first step."""
    STEP = "step"
    EVALUATION = "evaluation"
    """At the first forward without gradients after a training step."""
    END = "end"


@final
class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """Digests and sketches of parameters, buffers and optimizer state after ``steps_done`` steps.

    ``sketches`` as in ``StateRecord``. Shards are left out; ``num_sharded`` says how many.
    ``beside``: what the names of parameters begin with that belong to modules which no optimizer
    trains and which ran forward, of each module one, in the order in which they first ran:
    teachers, feature extractors. Of these, evenly spaced numbers of each tensor stand for all.
    Buffers may differ between ranks in the middle of training (DDP sends rank 0's along with the
    next forward): compare them at ``EVALUATION`` and ``END``.
    """

    steps_done: int
    moment: Moment
    tensors: tuple[TensorState, ...]
    num_sharded: int
    sketches: ArrayRef
    through_wrapper: bool | None = None
    """At ``EVALUATION``: whether that forward went through the DDP wrapper; None: unknown."""
    beside: tuple[str, ...] = ()


@final
class MetricRecord(msgspec.Struct, frozen=True, kw_only=True, tag="metric"):
    """A figure the script reported, or a library computed for it.

    ``num_collectives``: collectives this rank started in the default group since its last
    evaluation pass began; -1 without a process group. ``evaluation_loader``: whose pass that was;
    -1: none yet.
    """

    source: Literal["report", "torchmetrics", "lightning", "transformers"]
    name: str
    value: float | None
    """None when it is not finite."""
    epoch: int | None
    """As reported; None when it was not said."""
    steps_done: int
    num_collectives: int
    evaluation_loader: int


@final
class ResumeRecord(msgspec.Struct, frozen=True, kw_only=True, tag="resume"):
    """State was loaded into an optimizer or a scheduler: the script goes on from a checkpoint.

    ``steps_before``: steps that the loaded state counts; None when it does not say.
    """

    what: Literal["optimizer", "scheduler"]
    steps_done: int
    """Steps of this process when it was loaded."""
    steps_before: int | None


@final
class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Something that could not be observed, and why. ``what``: a record tag, or ``process``."""

    what: str
    why: str


@final
class EndRecord(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """The end of observing, at the latest when the process exits.

    ``observed_s`` is the time since the first optimizer was made; ``observer_s`` of it was spent
    here.
    """

    steps_done: int
    epochs_begun: int
    num_skipped_steps: int
    """Steps that a ``GradScaler`` left out."""
    observed_s: float
    observer_s: float
    observer_memory_bytes: int
    missing: tuple[Missing, ...]
    was_ended: bool = False
    """It was ended after the steps that were asked for; the script had not come to its end."""


Observation = (
    ProcessRecord
    | LoaderRecord
    | PassRecord
    | OptimizerRecord
    | StepsRecord
    | ProbeRecord
    | SnapshotRecord
    | MetricRecord
    | ResumeRecord
    | EndRecord
)
