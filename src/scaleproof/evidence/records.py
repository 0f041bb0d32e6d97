"""What a rank writes down while it trains, and what a run and a study say about themselves.

All structures are frozen; JSON is their wire format; large tables are ``.npy`` files that a record
points to. Units are part of the names.

Schema history (a reader accepts its own version and older ones):

* 1 - first.
* 2 - observed scripts: their records (``observations.py``), ``StudyRequest.kind``.
* 3 - checked scripts: close-ups and replays (``close_ups.py``).
"""

from enum import StrEnum
from typing import Any, Literal, final

import msgspec
import numpy as np

SCHEMA_VERSION = 3

SKETCH_SIZE = 64
"""Numbers kept per tensor, enough to estimate how far two replicas are apart."""

STEP_TABLE = np.dtype([("loss", "<f4"), ("num_samples", "<i4"), ("learning_rate", "<f4")])
"""One row per optimizer step of this rank: its own mean loss, its samples, the rate it used."""

EVALUATION_TABLE = np.dtype(
    [("sample_id", "<i8"), ("target", "<i4"), ("prediction", "<i4"), ("loss", "<f4")]
)
"""One row per evaluation sample this rank scored."""


@final
class ArrayRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file in the rank's folder, with the BLAKE2b-128 digest (hex) of its bytes."""

    file: str
    digest: str


@final
class EpochRecord(msgspec.Struct, frozen=True, kw_only=True, tag="epoch"):
    """One training epoch of one rank.

    ``train_time_s`` runs from a barrier before the first step until the device has finished the
    last one: loading and evaluation are outside. ``steps`` points to a ``STEP_TABLE`` of
    shape ``(num_steps,)``.
    """

    epoch: int
    num_steps: int
    num_samples: int
    train_time_s: float
    started_at_unix_s: float
    steps: ArrayRef


@final
class SamplesRecord(msgspec.Struct, frozen=True, kw_only=True, tag="samples"):
    """Which training samples this rank was fed in one epoch, and in what order.

    ``seen`` and ``repeated`` are serialised roaring bitmaps: ids fed at least once, and at least
    twice. ``order_digest`` is the BLAKE2b-128 of the ids in the order they were fed.
    """

    epoch: int
    num_fed: int
    order_digest: str
    seen: ArrayRef
    repeated: ArrayRef


@final
class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True, tag="evaluation"):
    """What this rank scored after ``epochs_done`` epochs (0: before training).

    ``table`` is an ``EVALUATION_TABLE``; ``scores``, kept for the last evaluation only, has shape
    ``(num_samples, num_classes)`` in the same row order.
    """

    epochs_done: int
    table: ArrayRef
    scores: ArrayRef | None = None


LOST_PEER_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "remote process exited",
    "Socket Timeout",
)
"""What gloo, NCCL and the store say when another rank is gone or late (torch 2.13)."""


class TensorKind(StrEnum):
    PARAMETER = "parameter"
    BUFFER = "buffer"
    OPTIMIZER = "optimizer"


@final
class TensorState(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the training state: digest of its bytes and its Euclidean norm."""

    name: str
    kind: TensorKind
    numel: int
    digest: str
    norm: float | None
    """None when the norm is not finite: JSON has no NaN."""


@final
class StateRecord(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """Parameters, buffers and optimizer state of this rank after ``epochs_done`` epochs.

    ``replicated`` says that every rank must hold the same bytes. ``sketches`` has shape
    ``(num_tensors, SKETCH_SIZE)``, float64: signed bucket sums, so that the squared distance of
    two sketches is an unbiased estimate of the squared distance of the tensors
    (Charikar, Chen and Farach-Colton 2002, count sketch).
    """

    epochs_done: int
    replicated: bool
    tensors: tuple[TensorState, ...]
    sketches: ArrayRef


Record = EpochRecord | SamplesRecord | EvaluationRecord | StateRecord


@final
class RankOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a rank ended. ``ok``: it did all epochs. ``diverged``: it stopped at a loss or score
    that is not finite. ``error``: it raised; the traceback is the user's or ours."""

    status: Literal["ok", "diverged", "error"]
    epoch: int
    step: int
    phase: str
    error_type: str = ""
    message: str = ""
    traceback: str = ""
    ended_at_unix_s: float = 0.0

    @property
    def is_lost_peer(self) -> bool:
        """The error says that another rank went away or never came: a consequence, not a cause."""
        return self.status == "error" and any(text in self.message for text in LOST_PEER_MESSAGES)


@final
class LearningRate(msgspec.Struct, frozen=True, kw_only=True):
    """The peak rate the recipe gives for one device, and the one this run used."""

    rule: Literal["none", "linear", "sqrt"]
    base: float
    scaled: float
    warmup_epochs: float


@final
class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is. Written by rank 0 before the first step."""

    schema_version: int
    arm: str
    seed: int
    # what is trained
    target: str
    target_digest: str
    data_digest: str
    num_train_samples: int
    num_evaluation_samples: int
    class_names: tuple[str, ...]
    num_parameters: int
    optimizer: str
    precision: Literal["bf16", "fp32"]
    # how
    strategy: str
    num_devices: int
    num_ranks: int
    batch_per_device: int
    global_batch_size: int
    num_epochs: int
    learning_rate: LearningRate
    strategy_settings: dict[str, str | int | float | bool]
    # on what
    device_kind: Literal["cpu", "cuda"]
    device_names: tuple[str, ...]
    share_device: bool
    backend: Literal["none", "gloo", "nccl"]
    threads_per_rank: int
    host: str
    platform: str
    python_version: str
    torch_version: str
    scaleproof_version: str
    started_at_unix_s: float


@final
class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train. Its name is the folder prefix of its runs."""

    name: str
    role: Literal["baseline", "candidate"]
    strategy: str
    num_devices: int


@final
class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What ``scaleproof check`` was asked besides. ``num_steps``: a run is ended after so many; 0:
    it runs to its own end. ``forces_cpu``: CUDA and NCCL were mapped to the CPU and gloo."""

    num_steps: int
    num_devices: int
    forces_cpu: bool


@final
class StudyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked. ``profile`` holds the margins and floors as given, decoded by the judge."""

    schema_version: int
    target: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    num_epochs: int
    device_kind: Literal["cpu", "cuda"]
    share_device: bool
    profile: dict[str, Any]
    command: tuple[str, ...]
    created_at_unix_s: float
    scaleproof_version: str
    kind: Literal["recipe", "script"] = "recipe"
    """``script``: somebody's own command was observed; the arms' numbers of devices are what was
    asked for, or 0 when only the run could tell."""
    check: CheckRequest | None = None
    """Set when a script was checked: it was looked at more closely, and replayed."""
