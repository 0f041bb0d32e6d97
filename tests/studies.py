"""Builds small studies on disk through the real writer, so that judge tests need no torch.

Every number has a plain default; a test overrides what it is about::

    study = build_study(tmp_path, candidate=FakeArm(num_ranks=2, epoch_time_s=0.5))
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.records import (
    EVALUATION_TABLE,
    SCHEMA_VERSION,
    SKETCH_SIZE,
    STEP_TABLE,
    Arm,
    EpochRecord,
    EvaluationRecord,
    LearningRate,
    Manifest,
    RankOutcome,
    SamplesRecord,
    StateRecord,
    StudyRequest,
    TensorKind,
    TensorState,
)
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter, digest_of, write_json

CLASS_NAMES = ("cat", "dog", "ship")


@dataclass(frozen=True, kw_only=True)
class FakeArm:
    """How the runs of one arm look. Callables get what they vary over."""

    num_ranks: int = 1
    num_devices: int | None = None  # default: num_ranks
    strategy: str | None = None
    num_epochs: int = 5
    num_train_samples: int = 48
    batch_per_device: int = 4
    epoch_time_s: float = 1.0
    epoch_time_noise: float = 0.01  # relative standard deviation
    # targets and predictions of the evaluation samples, shape (num_evaluation_samples,)
    targets: Callable[[], NDArray[np.int32]] = lambda: np.repeat(np.arange(3, dtype=np.int32), 100)
    predictions: Callable[[int, NDArray[np.int32]], NDArray[np.int32]] = lambda seed, targets: (
        flip_share(targets, share=0.1, seed=seed)
    )
    # mean training loss of each step, given (seed, num_steps)
    step_losses: Callable[[int, int], NDArray[np.float64]] = lambda seed, num_steps: (
        2.0 * np.exp(-np.arange(num_steps) / 20) + 0.2
    )
    evaluation_loss: Callable[[int, int], float] = lambda seed, epochs_done: (
        2.0 * float(np.exp(-epochs_done)) + 0.3
    )
    # ids fed to a rank in an epoch, given (arm, seed, rank, epoch)
    fed: Callable[["FakeArm", int, int, int], NDArray[np.int64]] = lambda arm, seed, rank, epoch: (
        np.random.default_rng([seed, epoch])
        .permutation(arm.num_train_samples)[rank :: arm.num_ranks]
        .astype(np.int64)
    )
    # flattened training state of a rank, given (seed, rank, epochs_done): name -> values
    state: Callable[[int, int, int], dict[tuple[TensorKind, str], NDArray[np.float64]]] = (
        lambda seed, rank, epochs_done: {
            (TensorKind.PARAMETER, "conv.weight"): np.arange(1.0, 9.0) * (seed + 1 + epochs_done),
            (TensorKind.BUFFER, "norm.running_mean"): np.ones(4) * epochs_done,
            (TensorKind.OPTIMIZER, "conv.weight/exp_avg"): np.ones(8) * epochs_done,
        }
    )
    outcome: Callable[[int, int], RankOutcome | None] = lambda seed, rank: RankOutcome(
        status="ok", epoch=4, step=0, phase="ended"
    )
    manifest: dict[str, Any] = field(default_factory=dict)  # fields to override

    def with_(self, **changes: Any) -> "FakeArm":
        return replace(self, **changes)


def flip_share(
    targets: NDArray[np.int32], *, share: float, seed: int, num_classes: int = 3
) -> NDArray[np.int32]:
    """Predictions that are wrong for exactly ``round(share * n)`` randomly chosen samples."""
    predictions = targets.copy()
    wrong = np.random.default_rng(seed).permutation(len(targets))[: round(share * len(targets))]
    predictions[wrong] = (predictions[wrong] + 1) % num_classes
    return predictions


def build_study(
    root: Path,
    *,
    baseline: FakeArm | None = None,
    candidate: FakeArm | None = None,
    has_baseline: bool = True,
    seeds: tuple[int, ...] = (0, 1, 2),
    share_device: bool = False,
    profile: dict[str, Any] | None = None,
    class_names: tuple[str, ...] = CLASS_NAMES,
) -> Study:
    """Write a study under ``root`` and load it. Default: 2 ranks, twice as fast, as good."""
    baseline = baseline or FakeArm()
    candidate = candidate or FakeArm(num_ranks=2, epoch_time_s=0.55)
    paths = StudyPaths(root)
    sides: list[tuple[Arm, FakeArm]] = [(_arm(candidate, "candidate"), candidate)]
    if has_baseline:
        sides.insert(0, (_arm(baseline, "baseline"), baseline))
    write_json(
        paths.study,
        StudyRequest(
            schema_version=SCHEMA_VERSION,
            target="fake",
            arms=tuple(arm for arm, _ in sides),
            seeds=seeds,
            num_epochs=candidate.manifest.get("num_epochs", candidate.num_epochs),
            device_kind="cpu",
            share_device=share_device,
            profile=profile or {},
            command=("scaleproof", "compare", "fake"),
            created_at_unix_s=1.7e9,
            scaleproof_version="0.0.0",
        ),
    )
    for arm, fake in sides:
        for seed in seeds:
            write_run(paths.run(arm.name, seed), arm, fake, seed, class_names, share_device)
    return load_study(root)


def _arm(fake: FakeArm, role: Any) -> Arm:
    num_devices = fake.num_devices or fake.num_ranks
    strategy = fake.strategy or ("single" if num_devices == 1 else "ddp")
    name = f"{strategy}-{num_devices}"
    return Arm(
        name=name if role == "candidate" or num_devices == 1 else f"{name}-baseline",
        role=role,
        strategy=strategy,
        num_devices=num_devices,
    )


def write_run(
    paths: RunPaths,
    arm: Arm,
    fake: FakeArm,
    seed: int,
    class_names: tuple[str, ...],
    share_device: bool = False,
) -> None:
    """Write one run through the real writer."""
    targets = fake.targets()
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        arm=arm.name,
        seed=seed,
        target="fake",
        target_digest="t" * 32,
        data_digest="d" * 32,
        num_train_samples=fake.num_train_samples,
        num_evaluation_samples=len(targets),
        class_names=class_names,
        num_parameters=8,
        optimizer="Adam",
        precision="fp32",
        strategy=arm.strategy,
        num_devices=arm.num_devices,
        num_ranks=fake.num_ranks,
        batch_per_device=fake.batch_per_device,
        global_batch_size=fake.batch_per_device * arm.num_devices,
        num_epochs=fake.num_epochs,
        learning_rate=LearningRate(
            rule="sqrt",
            base=1e-3,
            scaled=1e-3 * arm.num_devices**0.5,
            warmup_epochs=1.0,
        ),
        strategy_settings={},
        device_kind="cpu",
        device_names=("Some CPU",),
        share_device=share_device,
        backend="none" if fake.num_ranks == 1 else "gloo",
        threads_per_rank=1,
        host="host",
        platform="Linux",
        python_version="3.11.7",
        torch_version="2.13.0",
        scaleproof_version="0.0.0",
        started_at_unix_s=1.7e9,
    )
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    write_json(paths.manifest, Manifest(**{**fields, **fake.manifest}))
    times = np.random.default_rng([seed, arm.num_devices]).normal(
        fake.epoch_time_s, fake.epoch_time_s * fake.epoch_time_noise, fake.num_epochs
    )
    for rank in range(fake.num_ranks):
        _write_rank(paths, arm, fake, seed, rank, targets, times)


def _write_rank(
    paths: RunPaths,
    arm: Arm,
    fake: FakeArm,
    seed: int,
    rank: int,
    targets: NDArray[np.int32],
    times_s: NDArray[np.float64],
) -> None:
    writer = RankWriter(paths, rank)
    batch_per_rank = fake.batch_per_device * arm.num_devices // fake.num_ranks
    predictions = fake.predictions(seed, targets)
    _write_evaluation(writer, fake, seed, rank, 0, targets, np.zeros_like(targets))
    _write_state(writer, fake, seed, rank, 0)
    for epoch in range(fake.num_epochs):
        fed = fake.fed(fake, seed, rank, epoch)
        num_steps = max(1, -(-len(fed) // batch_per_rank))
        all_losses = fake.step_losses(seed, num_steps * fake.num_epochs)
        table = np.zeros(num_steps, STEP_TABLE)
        table["loss"] = all_losses[epoch * num_steps : (epoch + 1) * num_steps]
        table["num_samples"] = batch_per_rank
        table["learning_rate"] = 1e-3
        writer.record(
            EpochRecord(
                epoch=epoch,
                num_steps=num_steps,
                num_samples=len(fed),
                train_time_s=float(times_s[epoch]),
                started_at_unix_s=1.7e9 + epoch,
                steps=writer.array(f"steps-{epoch:04d}", table),
            )
        )
        ids, counts = np.unique(fed, return_counts=True)
        writer.record(
            SamplesRecord(
                epoch=epoch,
                num_fed=len(fed),
                order_digest=digest_of(fed.tobytes()),
                seen=writer.blob(f"seen-{epoch:04d}.roaring", BitMap(ids).serialize()),
                repeated=writer.blob(
                    f"repeated-{epoch:04d}.roaring", BitMap(ids[counts > 1]).serialize()
                ),
            )
        )
        _write_evaluation(writer, fake, seed, rank, epoch + 1, targets, predictions)
        _write_state(writer, fake, seed, rank, epoch + 1)
    writer.close()
    outcome = fake.outcome(seed, rank)
    if outcome is not None:
        write_json(paths.outcome(rank), outcome)


def _write_evaluation(
    writer: RankWriter,
    fake: FakeArm,
    seed: int,
    rank: int,
    epochs_done: int,
    targets: NDArray[np.int32],
    predictions: NDArray[np.int32],
) -> None:
    mine = np.arange(rank, len(targets), fake.num_ranks)
    table = np.zeros(len(mine), EVALUATION_TABLE)
    table["sample_id"] = mine
    table["target"] = targets[mine]
    table["prediction"] = predictions[mine]
    table["loss"] = fake.evaluation_loss(seed, epochs_done)
    writer.record(
        EvaluationRecord(
            epochs_done=epochs_done, table=writer.array(f"evaluation-{epochs_done:04d}", table)
        )
    )


def _write_state(writer: RankWriter, fake: FakeArm, seed: int, rank: int, epochs_done: int) -> None:
    state = fake.state(seed, rank, epochs_done)
    sketches = np.zeros((len(state), SKETCH_SIZE))
    tensors: list[TensorState] = []
    for index, ((kind, name), values) in enumerate(state.items()):
        sketches[index, : len(values)] = values  # exact for fewer than SKETCH_SIZE numbers
        norm = float(np.linalg.norm(values))
        tensors.append(
            TensorState(
                name=name,
                kind=kind,
                numel=len(values),
                digest=digest_of(values.tobytes()),
                norm=norm if np.isfinite(norm) else None,
            )
        )
    writer.record(
        StateRecord(
            epochs_done=epochs_done,
            replicated=True,
            tensors=tuple(tensors),
            sketches=writer.array(f"state-{epochs_done:04d}", sketches),
        )
    )
