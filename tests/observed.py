"""Builds studies of observed scripts on disk through the real writer, for tests without torch.

The default is sound: two DDP ranks, three epochs over 48 samples by a distributed sampler, an
evaluation after each epoch. A test changes what it is about::

    study = build_observed(tmp_path, FakeScript(fed=lambda script, rank, epoch: np.arange(48)))

With ``is_checked`` it leaves the close-ups of ``scaleproof check`` too, and with ``replays`` the
runs of one process: ``FakeScript(is_checked=True, replays=REPLAYS)`` is sound.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.evidence.any_record import AnyRecord
from scaleproof.evidence.close_ups import (
    CloseUpRecord,
    CouplingRecord,
    LossArrival,
    ReplayEnd,
    ReplayName,
)
from scaleproof.evidence.observations import (
    NUM_COORDINATES,
    OBSERVED_STEP_TABLE,
    EndRecord,
    LoaderRecord,
    Moment,
    OptimizerRecord,
    OwnedTensor,
    PassRecord,
    ProbeRecord,
    ProcessRecord,
    RandomSource,
    SnapshotRecord,
    StepFlag,
    StepsRecord,
)
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.records import (
    SCHEMA_VERSION,
    SKETCH_SIZE,
    STEP_TABLE,
    Arm,
    EpochRecord,
    LearningRate,
    Manifest,
    RankOutcome,
    StudyRequest,
    TensorKind,
    TensorState,
)
from scaleproof.evidence.study import Study, load_study
from scaleproof.evidence.writer import RankWriter, digest_of, write_json

TRAINING, EVALUATION = 0, 1
"""Numbers of the two loaders, and of their data sets."""

ALL_CONTENTS = 2**64 - 1

NAMES = ("body.weight", "body.bias", "head.weight")


def _fed(script: "FakeScript", rank: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([script.seed, epoch]).permutation(script.num_samples)
    return order[rank :: script.num_ranks].astype(np.int64)


def _local(script: "FakeScript", rank: int, step: int) -> NDArray[np.float64]:
    shape = (len(script.names), NUM_COORDINATES)
    return np.random.default_rng([script.seed, rank, step]).normal(size=shape)


def _final(
    script: "FakeScript", rank: int, step: int, locals_: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    return np.mean(locals_, axis=0)


def _state(
    script: "FakeScript", rank: int, steps_done: int, moment: Moment
) -> dict[tuple[TensorKind, str], NDArray[np.float64]]:
    values = {
        (TensorKind.PARAMETER, name): np.arange(1.0, 9.0) * (index + 1)
        + script.seed
        + steps_done / 100
        for index, name in enumerate(script.names)
    }
    values[TensorKind.BUFFER, "norm.running_mean"] = np.ones(4) * steps_done
    values[TensorKind.OPTIMIZER, "body.weight/exp_avg"] = np.ones(8) * steps_done
    return values


def _size(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.std()) if known.size else 0.0


def _backwards(script: "FakeScript", rank: int, step: int) -> NDArray[np.float64]:
    """As many as there are, each with a gradient of its own; together they are ``local``."""
    local = script.local(script, rank, step)
    rng = np.random.default_rng([script.seed, rank, step, 7])
    parts = rng.normal(size=(script.num_backwards, *local.shape)) * _size(local)
    parts[-1] = local - parts[:-1].sum(axis=0)
    return np.where(np.isfinite(local), parts, local)


def _arrivals(script: "FakeScript", rank: int, step: int) -> tuple[LossArrival, ...]:
    return tuple(
        LossArrival(
            backward=backward,
            function="cross_entropy",
            where="train.py:60",
            reduction="mean",
            num_items=script.batch_size,
            weight=1 / script.num_backwards,
        )
        for backward in range(script.num_backwards)
    )


def _mean_gradient(script: "FakeScript", step: int) -> NDArray[np.float64]:
    return np.mean([script.local(script, rank, step) for rank in range(script.num_ranks)], axis=0)


@dataclass(frozen=True, kw_only=True)
class FakeReplay:
    """How a replay of a ``FakeScript`` on one process looks."""

    # the gradient before clipping, shape (num_owned, NUM_COORDINATES), given (script, step)
    gradient: Callable[["FakeScript", int], NDArray[np.float64]] = _mean_gradient
    noise: float = 0.0  # added to it, relative to its size
    # what the optimizer used, given (step, the gradient)
    final: Callable[[int, NDArray[np.float64]], NDArray[np.float64]] = lambda step, gradient: (
        gradient
    )
    is_clipped: bool = False  # leaves the gradient before clipping
    # as of a script; None: those of the replayed one
    arrivals: Callable[["FakeScript", int, int], tuple[LossArrival, ...]] | None = None
    # changes its OBSERVED_STEP_TABLE in place
    steps: Callable[[NDArray[Any]], None] = lambda table: None
    drawn: Callable[[int], tuple[RandomSource, ...]] = lambda step: ()
    num_steps: int | None = None  # all of them
    is_last_another: bool = False  # leaves one step more, which is not that of the script
    why_not: str = ""


REPLAYS: dict[ReplayName, FakeReplay] = {
    "union": FakeReplay(),
    "reordered": FakeReplay(noise=1e-7),
}


@dataclass(frozen=True, kw_only=True)
class FakeScript:
    """How a run of a script looks. Callables get the script itself and what they vary over."""

    num_ranks: int = 2
    num_epochs: int = 3
    num_samples: int = 48
    num_evaluation_samples: int = 16
    batch_size: int = 4
    seed: int = 0
    ignores_seed: bool = False  # every repeat uses ``seed``; otherwise its own is added
    parallelism: str = "ddp"
    names: tuple[str, ...] = NAMES
    step_time_s: float = 0.05
    learning_rate: float = 0.1
    probed_steps: tuple[int, ...] = (1, 2, 3)
    snapshot_steps: tuple[int, ...] = (1, 2, 3)
    # ids a rank is fed, given (script, rank, epoch)
    fed: Callable[["FakeScript", int, int], NDArray[np.int64]] = _fed
    evaluated: Callable[["FakeScript", int, int], NDArray[np.int64]] = lambda script, rank, epoch: (
        np.arange(rank, script.num_evaluation_samples, script.num_ranks)
    )
    # digests of the contents of ids: of the training set, and of the evaluation set
    contents: Callable[[int, NDArray[np.int64]], NDArray[np.uint64]] = lambda loader, ids: (
        (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(2**40) + np.uint64(loader)
    )
    # gradients, shape (num_owned, NUM_COORDINATES), given (script, rank, step)
    local: Callable[["FakeScript", int, int], NDArray[np.float64]] = _local
    # what the optimizer used, given (script, rank, step, the local ones of all ranks)
    final: Callable[["FakeScript", int, int, list[NDArray[np.float64]]], NDArray[np.float64]] = (
        _final
    )
    num_backwards: int = 1  # of each step, each on a batch
    is_checked: bool = False  # leaves a close-up with every probe
    # what each backward produced, shape (num_backwards, num_owned, NUM_COORDINATES)
    backwards: Callable[["FakeScript", int, int], NDArray[np.float64]] = _backwards
    arrivals: Callable[["FakeScript", int, int], tuple[LossArrival, ...]] = _arrivals
    # what clipping was given, as ``final``; None: it was not called
    before_clipping: (
        Callable[["FakeScript", int, int, list[NDArray[np.float64]]], NDArray[np.float64]] | None
    ) = None
    clipped_tensors: tuple[int, ...] = ()
    is_clipped_scaled: bool = False
    # what the script itself drew from in a step, given (rank, step)
    drawn: Callable[[int, int], tuple[RandomSource, ...]] = lambda rank, step: ()
    coupled: tuple[tuple[str, str], ...] = ()  # modules that couple the items of a batch
    replays: Mapping[ReplayName, FakeReplay] = field(default_factory=dict)
    # training state, given (script, rank, steps_done, moment): (kind, name) -> values
    state: Callable[
        ["FakeScript", int, int, Moment], dict[tuple[TensorKind, str], NDArray[np.float64]]
    ] = _state
    # changes the whole OBSERVED_STEP_TABLE of a rank in place, given (rank, table)
    steps: Callable[[int, NDArray[Any]], None] = lambda rank, table: None
    # changes a record, or drops it (None), given (rank, record)
    change: Callable[[int, AnyRecord], AnyRecord | None] = lambda rank, record: record
    # writes more records, given (rank, writer), before the EndRecord
    more: Callable[[int, RankWriter], None] = lambda rank, writer: None
    outcome: Callable[[int], RankOutcome | None] = lambda rank: RankOutcome(
        status="ok", epoch=2, step=0, phase="ended"
    )
    manifest: dict[str, Any] = field(default_factory=dict)


def build_observed(
    root: Path,
    script: FakeScript | None = None,
    *,
    baseline: FakeScript | None = None,
    seeds: tuple[int, ...] = (0,),
    profile: dict[str, Any] | None = None,
) -> Study:
    """Write the study of an observed script under ``root`` and load it. With ``baseline``, it
    compares two: arms ``baseline`` and ``candidate``; alone, the one arm is ``observed``."""
    script = script or FakeScript()
    paths = StudyPaths(root)
    name = "observed" if baseline is None else "candidate"
    sides = [(_arm(name, "candidate", script), script)]
    if baseline is not None:
        sides.insert(0, (_arm("baseline", "baseline", baseline), baseline))
    write_json(
        paths.study,
        StudyRequest(
            schema_version=SCHEMA_VERSION,
            kind="script",
            target="train.py",
            arms=tuple(arm for arm, _ in sides),
            seeds=seeds,
            num_epochs=0,
            device_kind="cpu",
            share_device=False,
            profile=profile or {},
            command=("scaleproof", "observe", "--", "torchrun", "train.py"),
            created_at_unix_s=1.7e9,
            scaleproof_version="0.0.0",
        ),
    )
    for arm, fake in sides:
        for seed in seeds:
            run = paths.run(arm.name, seed)
            write_json(run.manifest, _manifest(arm, fake, seed))
            repeat = fake if fake.ignores_seed else replace(fake, seed=fake.seed + seed)
            for rank in range(fake.num_ranks):
                _Rank(RankWriter(run, rank), repeat, rank).write()
                outcome = fake.outcome(rank)
                if outcome is not None:
                    write_json(run.outcome(rank), outcome)
            for name, replay in fake.replays.items():
                _write_replay(run.replay(name), name, replay, repeat)
    return load_study(root)


def _write_replay(
    paths: RunPaths, name: ReplayName, replay: FakeReplay, script: FakeScript
) -> None:
    def local(one: FakeScript, rank: int, step: int) -> NDArray[np.float64]:
        gradient = replay.gradient(script, step)
        noise = np.random.default_rng([script.seed, step, 11]).normal(size=gradient.shape)
        return gradient + replay.noise * _size(gradient) * noise

    num_wanted = max(script.probed_steps, default=0)
    num_steps = num_wanted if replay.num_steps is None else replay.num_steps
    num_made = num_steps + replay.is_last_another
    one = FakeScript(
        num_ranks=1,
        num_epochs=script.num_epochs,
        num_samples=script.num_samples,
        num_evaluation_samples=script.num_evaluation_samples,
        batch_size=script.batch_size * script.num_ranks,
        seed=script.seed,
        parallelism="none",
        names=script.names,
        learning_rate=script.learning_rate,
        probed_steps=tuple(step for step in script.probed_steps if step <= num_made),
        snapshot_steps=(),
        num_backwards=script.num_backwards,
        arrivals=replay.arrivals or script.arrivals,
        is_checked=True,
        local=local,
        final=lambda one, rank, step, locals_: replay.final(step, locals_[0]),
        before_clipping=(
            (lambda one, rank, step, locals_: locals_[0]) if replay.is_clipped else None
        ),
        clipped_tensors=tuple(range(len(script.names))) if replay.is_clipped else (),
        steps=lambda rank, table: replay.steps(table),
        drawn=lambda rank, step: replay.drawn(step),
    )
    _Rank(RankWriter(paths, 0), one, 0).write()
    write_json(paths.outcome(0), one.outcome(0))
    write_json(
        paths.replay_end,
        ReplayEnd(
            schema_version=SCHEMA_VERSION,
            name=name,
            num_steps=num_steps,
            num_wanted=num_wanted,
            why_not=replay.why_not,
        ),
    )


def _arm(name: str, role: Any, script: FakeScript) -> Arm:
    return Arm(name=name, role=role, strategy="script", num_devices=script.num_ranks)


def _manifest(arm: Arm, script: FakeScript, seed: int) -> Manifest:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        arm=arm.name,
        seed=seed,
        target="train.py",
        target_digest="t" * 32,
        data_digest="",
        num_train_samples=script.num_samples,
        num_evaluation_samples=script.num_evaluation_samples,
        class_names=(),
        num_parameters=24,
        optimizer="SGD",
        precision="fp32",
        strategy=script.parallelism,
        num_devices=script.num_ranks,
        num_ranks=script.num_ranks,
        batch_per_device=script.batch_size,
        global_batch_size=script.batch_size * script.num_ranks,
        num_epochs=script.num_epochs,
        learning_rate=LearningRate(
            rule="none", base=script.learning_rate, scaled=script.learning_rate, warmup_epochs=0.0
        ),
        strategy_settings={},
        device_kind="cpu",
        device_names=("Some CPU",),
        share_device=False,
        backend="none" if script.num_ranks == 1 else "gloo",
        threads_per_rank=1,
        host="host",
        platform="Linux",
        python_version="3.11.7",
        torch_version="2.13.0",
        scaleproof_version="0.0.0",
        started_at_unix_s=1.7e9,
    )
    return msgspec.structs.replace(manifest, **script.manifest)


class _Rank:
    """Writes the records of one rank in the order in which a run makes them."""

    def __init__(self, writer: RankWriter, script: FakeScript, rank: int) -> None:
        self._writer, self._script, self._rank = writer, script, rank
        self._passes = {TRAINING: 0, EVALUATION: 0}

    def write(self) -> None:
        script = self._script
        self._record(self._process())
        self._record(self._loader(TRAINING, script.num_samples))
        self._record(self._loader(EVALUATION, script.num_evaluation_samples))
        fed = [script.fed(script, self._rank, epoch) for epoch in range(script.num_epochs)]
        sizes = [self._batch_sizes(ids) for ids in fed]
        table = self._step_table(sizes)
        self._optimizer(0, "first-step")
        if script.coupled:
            self._record(CouplingRecord(modules=script.coupled))
        self._snapshot(0, Moment.START)
        for step in range(1, len(table) + 1):
            if step in script.snapshot_steps:
                self._snapshot(step, Moment.STEP)
            if step in script.probed_steps:
                self._probe(step, int(table["num_backwards"][step - 1]))
        steps_done = 0
        for epoch, ids in enumerate(fed):
            first, steps_done = steps_done, steps_done + len(sizes[epoch])
            self._pass(TRAINING, "training", epoch, (first, steps_done), ids)
            self._epoch(epoch, table[first:steps_done])
            self._snapshot(steps_done, Moment.EVALUATION)
            evaluated = script.evaluated(script, self._rank, epoch)
            self._pass(EVALUATION, "evaluation", epoch, (steps_done, steps_done), evaluated)
        self._record(StepsRecord(first_step=1, table=self._writer.array("steps-1", table)))
        self._snapshot(steps_done, Moment.END)
        self._optimizer(steps_done, "end")
        script.more(self._rank, self._writer)
        self._record(
            EndRecord(
                steps_done=steps_done,
                epochs_begun=script.num_epochs,
                num_skipped_steps=0,
                observed_s=script.step_time_s * len(table),
                observer_s=script.step_time_s * len(table) * 0.002,
                observer_memory_bytes=20_000_000,
                missing=(),
            )
        )
        self._writer.close()

    def _record(self, record: AnyRecord) -> None:
        changed = self._script.change(self._rank, record)
        if changed is not None:
            self._writer.record(changed)

    def _process(self) -> ProcessRecord:
        script = self._script
        return ProcessRecord(
            pid=1000 + self._rank,
            rank=self._rank,
            num_ranks=script.num_ranks,
            rank_source="process-group" if script.num_ranks > 1 else "none",
            parallelism=script.parallelism,  # type: ignore[arg-type]
            backend="gloo" if script.num_ranks > 1 else "",
            script="train.py",
            arguments=(),
            num_threads=1,
        )

    def _loader(self, loader: int, num_items: int) -> LoaderRecord:
        script = self._script
        return LoaderRecord(
            loader=loader,
            data_set=loader,
            data_set_type="torch.utils.data.dataset.TensorDataset",
            num_items=num_items,
            num_root=num_items,
            sampler="torch.utils.data.distributed.DistributedSampler",
            shards=(self._rank, script.num_ranks) if script.num_ranks > 1 else None,
            batch_size=script.batch_size,
            drop_last=False,
            num_workers=0,
            where=f"train.py:{30 + loader}",
        )

    def _batch_sizes(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        size = self._script.batch_size
        return np.array([len(ids[i : i + size]) for i in range(0, len(ids), size)], np.int32)

    def _step_table(self, sizes: list[NDArray[np.int32]]) -> NDArray[Any]:
        table = np.zeros(sum(map(len, sizes)), OBSERVED_STEP_TABLE)
        table["epoch"] = np.repeat(np.arange(len(sizes)), list(map(len, sizes)))
        table["num_backwards"] = table["num_batches"] = self._script.num_backwards
        table["num_samples"] = np.concatenate(sizes) if sizes else 0
        table["num_collectives"] = 1 if self._script.num_ranks > 1 else 0
        table["flags"] = StepFlag.TRAIN_MODE
        table["loss"] = 2.0 * np.exp(-np.arange(len(table)) / 20) + 0.2
        table["learning_rate"] = self._script.learning_rate
        table["clip_norm"] = table["clip_max"] = np.nan
        phases = ("input_wait_s", "forward_s", "backward_s", "sync_wait_s", "optimizer_s")
        for phase, share in zip(phases, (0.1, 0.3, 0.4, 0.1, 0.1), strict=True):
            table[phase] = share * self._script.step_time_s
        self._script.steps(self._rank, table)
        return table

    def _optimizer(self, steps_done: int, moment: Any) -> None:
        owned = tuple(
            OwnedTensor(name=name, numel=8, requires_grad=True, is_sharded=False, has_gradient=True)
            for name in self._script.names
        )
        self._record(
            OptimizerRecord(
                optimizer=0,
                steps_done=steps_done,
                moment=moment,
                kind="SGD",
                where="train.py:41",
                owned=owned,
                unowned=(),
                num_strangers=0,
            )
        )

    def _probe(self, step: int, num_backwards: int) -> None:
        script = self._script
        locals_ = [script.local(script, rank, step) for rank in range(script.num_ranks)]
        local, final = locals_[self._rank], script.final(script, self._rank, step, locals_)
        values = np.stack([local, final], axis=1)
        self._record(
            ProbeRecord(
                step=step,
                optimizer=0,
                values=self._writer.array(f"probe-{step:06d}", values),
                norms=self._writer.array(f"norms-{step:06d}", np.linalg.norm(values, axis=2)),
                num_backwards=num_backwards,
                grad_scale=1.0,
                inputs_digest=digest_of(f"{self._rank} {step}".encode()),
                loss_reduction="mean",
                forward_random_states=("r" * 32, "r" * 32),
                memory_bytes=300_000_000,
            )
        )
        if script.is_checked:
            self._close_up(step, locals_)

    def _close_up(self, step: int, locals_: list[NDArray[np.float64]]) -> None:
        script = self._script
        given = None
        if script.before_clipping is not None:
            given = script.before_clipping(script, self._rank, step, locals_)
        array = self._writer.array
        norms = None if given is None else np.linalg.norm(np.nan_to_num(given), axis=1)
        self._record(
            CloseUpRecord(
                step=step,
                optimizer=0,
                backwards=array(
                    f"backwards-{step:06d}", script.backwards(script, self._rank, step)
                ),
                before_clipping=None if given is None else array(f"clip-{step:06d}", given),
                before_clipping_norms=None if norms is None else array(f"clip-n-{step:06d}", norms),
                is_clipped_scaled=script.is_clipped_scaled,
                clipped_tensors=script.clipped_tensors,
                arrivals=script.arrivals(script, self._rank, step),
                backward_where="train.py:61",
                clip_where="" if given is None else "train.py:63",
                drawn=script.drawn(self._rank, step),
            )
        )

    def _snapshot(self, steps_done: int, moment: Moment) -> None:
        state = self._script.state(self._script, self._rank, steps_done, moment)
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
        name = f"snapshot-{steps_done:06d}-{moment}"
        self._record(
            SnapshotRecord(
                steps_done=steps_done,
                moment=moment,
                tensors=tuple(tensors),
                num_sharded=0,
                sketches=self._writer.array(name, sketches),
            )
        )

    def _pass(
        self, loader: int, use: Any, epoch: int, steps: tuple[int, int], ids: NDArray[np.int64]
    ) -> None:
        number, self._passes[loader] = self._passes[loader], self._passes[loader] + 1
        unique, counts = np.unique(ids, return_counts=True)
        contents = self._script.contents(loader, ids)
        name = f"{loader}-{number:04d}"
        self._record(
            PassRecord(
                loader=loader,
                number=number,
                use=use,
                epoch=epoch,
                first_step=steps[0],
                last_step=steps[1],
                is_whole=True,
                has_ids=True,
                num_batches=len(self._batch_sizes(ids)),
                num_fed=len(ids),
                order_digest=digest_of(ids.tobytes()),
                seen=self._writer.blob(f"seen-{name}.roaring", BitMap(unique).serialize()),
                repeated=self._writer.blob(
                    f"repeated-{name}.roaring", BitMap(unique[counts > 1]).serialize()
                ),
                batch_sizes=self._writer.array(f"sizes-{name}", self._batch_sizes(ids)),
                contents=self._writer.array(f"contents-{name}", np.unique(contents)),
                content_limit=ALL_CONTENTS,
                num_content_repeats=len(contents) - len(np.unique(contents)),
                sampler_epoch=epoch if loader == TRAINING else 0,
                base_seed=None,
                random_states={
                    source: digest_of(f"{source} {self._rank} {epoch}".encode())
                    for source in RandomSource
                },
                drawn=(),
                is_fetch_seen=True,
            )
        )

    def _epoch(self, epoch: int, steps: NDArray[Any]) -> None:
        table = np.zeros(len(steps), STEP_TABLE)
        for column in ("loss", "num_samples", "learning_rate"):
            table[column] = steps[column]
        self._record(
            EpochRecord(
                epoch=epoch,
                num_steps=len(steps),
                num_samples=int(steps["num_samples"].sum()),
                train_time_s=max(self._script.step_time_s * len(steps), 1e-9),
                started_at_unix_s=1.7e9 + epoch,
                steps=self._writer.array(f"epoch-{epoch:04d}", table),
            )
        )
