"""The one training loop. It cannot tell how many ranks there are: it feeds its data shard, steps
the optimizer, and writes down what happened. Read it from top to bottom.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from scaleproof.evidence.heartbeat import Heartbeat, Phase
from scaleproof.evidence.records import LearningRate
from scaleproof.observe.recorder import Recorder
from scaleproof.observe.state import StateFingerprint
from scaleproof.recipes.learning_rate import warmup_factor
from scaleproof.recipes.recipe import Data, Recipe, Split
from scaleproof.strategies.strategy import AbstractStrategy
from scaleproof.train.batches import ShardEpoch, plan_epoch


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the loop needs to know beyond the recipe."""

    seed: int
    num_epochs: int
    global_batch_size: int
    learning_rate: LearningRate


@final
@dataclass(slots=True, kw_only=True)
class Training:
    """Everything of one rank's training, in one place."""

    recipe: Recipe
    data: Data  # on the device
    strategy: AbstractStrategy
    parameters: list[tuple[str, nn.Parameter]]
    optimizer: torch.optim.Optimizer
    settings: Settings
    recorder: Recorder
    heartbeat: Heartbeat
    fingerprint: StateFingerprint


def train(training: Training, wait_for_turn: Callable[[int], None]) -> Literal["ok", "diverged"]:
    """Run all epochs. ``wait_for_turn(epoch)`` returns when this run may begin the epoch; after
    the last one, when it may end: a process that ends disturbs an arm that still trains.
    """
    status = train_in_turns(training, wait_for_turn)
    training.heartbeat.begin(Phase.WAITING, epoch=training.settings.num_epochs)
    wait_for_turn(training.settings.num_epochs)
    training.heartbeat.begin(Phase.ENDED, epoch=training.settings.num_epochs)
    return status


def train_in_turns(
    training: Training, wait_for_turn: Callable[[int], None]
) -> Literal["ok", "diverged"]:
    """All epochs, or fewer: all ranks stop together at a loss or score that is not finite."""
    settings, strategy = training.settings, training.strategy
    for epoch in range(settings.num_epochs):
        training.heartbeat.begin(Phase.WAITING, epoch=epoch)
        wait_for_turn(epoch)
        if epoch == 0:
            evaluate(training, epochs_done=0)
        plan = plan_epoch(
            num_samples=len(training.data.train),
            global_batch_size=settings.global_batch_size,
            shard=strategy.data_shard,
            seed=settings.seed,
            epoch=epoch,
            num_draws=training.recipe.num_draws,
        )
        losses = train_epoch(training, epoch, plan)
        scores_are_finite = evaluate(training, epochs_done=epoch + 1)
        is_finite = scores_are_finite and bool(torch.isfinite(losses).all())
        if strategy.any_rank(not is_finite):
            return "diverged"
    return "ok"


def train_epoch(training: Training, epoch: int, plan: ShardEpoch) -> Tensor:
    """One pass over the shard, recorded. Returns the loss of every step, shape ``(num_steps,)``."""
    recipe, strategy, optimizer = training.recipe, training.strategy, training.optimizer
    train_split = training.data.train
    device = train_split.targets.device
    num_steps = len(plan.batches)
    sample_ids, draws = plan.sample_ids.to(device), plan.draws.to(device)
    losses = torch.zeros(num_steps, device=device)
    rates = [learning_rate_factor(training, epoch, step, num_steps) for step in range(num_steps)]
    strategy.train_mode()
    training.heartbeat.begin(Phase.TRAINING, epoch=epoch, num_steps=num_steps)
    strategy.synchronize()
    strategy.barrier()
    started_at_unix_s, started_s = time.time(), time.perf_counter()
    for step, batch in enumerate(plan.batches):
        training.heartbeat.beat(step)
        rows = slice(batch.start, batch.stop)
        ids = sample_ids[rows]
        inputs = recipe.prepare(train_split.inputs.index_select(0, ids), draws[rows])
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rates[step]
        losses[step] = strategy.forward_backward(
            inputs,
            train_split.targets.index_select(0, ids),
            recipe.loss,
            num_global_samples=batch.num_global_samples,
        )
        optimizer.step()
        optimizer.zero_grad()
    strategy.synchronize()
    train_time_s = time.perf_counter() - started_s

    training.heartbeat.begin(Phase.RECORDING, epoch=epoch)
    training.recorder.epoch(
        epoch,
        started_at_unix_s=started_at_unix_s,
        train_time_s=train_time_s,
        losses=losses,
        num_samples=np.array([b.stop - b.start for b in plan.batches], np.int32),
        learning_rates=np.array(rates, np.float32) * training.settings.learning_rate.scaled,
    )
    training.recorder.samples(epoch, plan.sample_ids)
    return losses


def evaluate(training: Training, *, epochs_done: int) -> bool:
    """Score this shard's part of the evaluation split, every sample once, and record it with the
    state of training. Returns whether all scores are finite."""
    strategy, recipe = training.strategy, training.recipe
    split, shard = training.data.evaluation, strategy.data_shard
    training.heartbeat.begin(Phase.EVALUATING, epoch=max(0, epochs_done - 1))
    strategy.evaluation_mode()
    tensors, sketches = training.fingerprint.take(
        training.parameters, strategy.named_buffers(), training.optimizer
    )
    training.recorder.state(epochs_done, tensors, sketches, replicated=strategy.has_replicas)
    mine = torch.arange(shard.index, len(split), shard.num_shards)
    # A shard without samples (fewer samples than shards) records that it scored none.
    no_scores = torch.zeros(0, len(training.data.class_names), device=split.targets.device)
    scored = [(mine[:0], no_scores)]
    scored += [
        (ids, outputs)
        for ids in mine.split(recipe.batch_per_device)
        if len(ids) and (outputs := _predict(strategy, recipe, split, ids)) is not None
    ]
    sample_ids = torch.cat([ids for ids, _ in scored])
    outputs = torch.cat([batch_outputs for _, batch_outputs in scored])
    targets = split.targets[sample_ids.to(split.targets.device)]
    losses = recipe.loss(outputs, targets)
    training.recorder.evaluation(
        epochs_done,
        sample_ids=sample_ids,
        targets=targets,
        outputs=outputs,
        losses=losses,
        keep_scores=epochs_done == training.settings.num_epochs,
    )
    return bool(torch.isfinite(losses).all())


def learning_rate_factor(training: Training, epoch: int, step: int, num_steps: int) -> float:
    """What the peak rate is multiplied with at this step."""
    settings, rate = training.settings, training.settings.learning_rate
    progress = (epoch + step / num_steps) / settings.num_epochs
    return training.recipe.schedule(progress) * warmup_factor(
        progress,
        num_epochs=settings.num_epochs,
        warmup_epochs=rate.warmup_epochs,
        scale=rate.scaled / rate.base,
    )


def _predict(
    strategy: AbstractStrategy, recipe: Recipe, split: Split, sample_ids: Tensor
) -> Tensor | None:
    ids = sample_ids.to(split.targets.device)
    return strategy.predict(recipe.prepare(split.inputs.index_select(0, ids), None))
