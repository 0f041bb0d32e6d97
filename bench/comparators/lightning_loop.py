"""Lightning's Trainer with everything optional off (``barebones``), given the fast batches."""

from collections.abc import Iterator
from typing import Any, final

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from fast_batches import build_model, fast_batches, load_recipe
from scaleproof.recipes.recipe import Recipe, Split
from turns import LEARNING_RATE, Task, Turns, become_device, leave_group, parse_task


@final
class Stretches(IterableDataset[tuple[Tensor, Tensor]]):
    """Every epoch of the trainer is one stretch of ready batches."""

    def __init__(self, cifar10: Recipe, train: Split, task: Task) -> None:
        self._cifar10 = cifar10
        self._train = train
        self._task = task
        self._stretch = 0

    @override
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._stretch += 1
        return fast_batches(self._cifar10, self._train, self._task, stretch=self._stretch)


@final
class Module(lightning.LightningModule):
    """The least a module can be, plus the driver's turns around each epoch."""

    def __init__(self, model: nn.Module, turns: Turns) -> None:
        super().__init__()
        self._model = model
        self._turns = turns

    @override
    def on_train_epoch_start(self) -> None:
        self._turns.start_clock()

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self._model(inputs), targets)

    @override
    def on_train_epoch_end(self) -> None:
        self._turns.stop_clock()
        self.trainer.should_stop = not self._turns.wait()

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)


def main() -> None:
    task = parse_task()
    become_device(task)
    turns = Turns()
    cifar10, train = load_recipe(task)
    module = Module(build_model(cifar10), turns)
    ddp = DDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True, static_graph=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=task.num_devices,
        strategy=ddp if task.num_devices > 1 else "auto",
        precision="bf16-mixed",
        max_epochs=-1,
        barebones=True,
    )
    if turns.wait():
        trainer.fit(module, DataLoader(Stretches(cifar10, train, task), batch_size=None))
    leave_group()


if __name__ == "__main__":
    main()
