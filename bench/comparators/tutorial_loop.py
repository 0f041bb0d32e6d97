"""The loop of PyTorch's CIFAR-10 tutorial, one process per device for several.

Each image is opened as a PIL image and transformed alone in a ``DataLoader`` with two workers:
random crop with four mirrored pixels, flip, to tensor, normalise. fp32, the default memory layout,
``loss.item()`` at every step. torchvision, which the tutorial uses, has no build for this torch on
a CPU; the transforms below do what its own do, in the same calls.

https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
"""

from typing import final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fast_batches import load_recipe
from turns import (
    BATCH_PER_DEVICE,
    LEARNING_RATE,
    Turns,
    become_device,
    leave_group,
    parse_task,
)

NUM_WORKERS = 2
PADDING = 4
SIZE = 32
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)


@final
class TransformedImages(Dataset[tuple[Tensor, int]]):
    """As ``torchvision.datasets.CIFAR10`` with a transform: uint8 arrays in, tensors out."""

    def __init__(self, images: NDArray[np.uint8], targets: list[int]) -> None:
        self._images = images
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._images[index])
        return _normalise(_to_tensor(_flip(_crop(image)))), self._targets[index]


def _crop(image: Image.Image) -> Image.Image:
    """``RandomCrop(32, padding=4, padding_mode="reflect")``."""
    sides = (PADDING, PADDING)
    padded = Image.fromarray(np.pad(np.asarray(image), (sides, sides, (0, 0)), mode="reflect"))
    top = int(torch.randint(0, 2 * PADDING + 1, size=(1,)).item())
    left = int(torch.randint(0, 2 * PADDING + 1, size=(1,)).item())
    return padded.crop((left, top, left + SIZE, top + SIZE))


def _flip(image: Image.Image) -> Image.Image:
    """``RandomHorizontalFlip()``."""
    if torch.rand(1) < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _to_tensor(image: Image.Image) -> Tensor:
    """``ToTensor()``."""
    pixels = torch.from_numpy(np.array(image, copy=True)).view(SIZE, SIZE, 3)
    return pixels.permute(2, 0, 1).contiguous().to(torch.get_default_dtype()).div(255)


def _normalise(image: Tensor) -> Tensor:
    """``Normalize(MEAN, DEVIATION)``."""
    mean = torch.as_tensor(MEAN, dtype=image.dtype).view(-1, 1, 1)
    deviation = torch.as_tensor(DEVIATION, dtype=image.dtype).view(-1, 1, 1)
    return image.clone().sub_(mean).div_(deviation)


def main() -> None:
    task = parse_task()
    become_device(task)
    turns = Turns()
    cifar10, train = load_recipe(task)
    # A stretch is an epoch over the first images of the data set.
    num_samples = task.num_stretch_samples
    images = TransformedImages(
        train.inputs[:num_samples].numpy(), train.targets[:num_samples].tolist()
    )
    torch.manual_seed(0)
    model = cifar10.build_model()
    sampler: DistributedSampler[tuple[Tensor, int]] | None = None
    if task.num_devices > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
        sampler = DistributedSampler(images)
    loader = DataLoader(
        images,
        batch_size=BATCH_PER_DEVICE,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=NUM_WORKERS,
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    stretch = 0
    while turns.wait():
        turns.start_clock()
        if sampler is not None:
            sampler.set_epoch(stretch)
        running_loss = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        turns.stop_clock()
        stretch += 1
    leave_group()


if __name__ == "__main__":
    main()
