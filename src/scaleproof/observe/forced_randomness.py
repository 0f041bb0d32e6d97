"""The generators of the devices of a script that asks for CUDA."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch.optim import Optimizer

from scaleproof.observe.forced import asked, called_by_torch, replace


@final
class DeviceRandomness:
    """On the CPU, what the device would have drawn comes from the CPU's generator, so a seed of its
    own for the device must reach that one: ranks that differ in it alone would draw the same
    dropout masks. It does so when training begins, for initial weights come from the CPU's
    generator on a GPU too.
    """

    def __init__(self, num_devices: int) -> None:
        self._generators = [torch.Generator() for _ in range(num_devices)]
        self._pending: int | None = None
        self._is_training = False

    def listen(self) -> None:
        """Training begins with the first optimizer."""

        def making(original: Any) -> Any:
            def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
                original(optimizer, *args, **kwargs)
                self._training_begins()

            return __init__

        replace(Optimizer, "__init__", making)

    def fakes(self) -> dict[str, Callable[..., Any]]:
        return {
            "seed": self.seed,
            "seed_all": self.seed,
            "initial_seed": lambda: self._generators[0].initial_seed(),
            "get_rng_state": lambda *_: self._generators[0].get_state(),
            "get_rng_state_all": lambda: [each.get_state() for each in self._generators],
            "set_rng_state": lambda state, *_: self._generators[0].set_state(state),
            "set_rng_state_all": self._set_all,
        }

    def _set_all(self, states: Sequence[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=False):
            generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        by_torch = called_by_torch()  # torch.manual_seed, which seeds the CPU's generator next
        self._seed(int(seed), is_own=not by_torch and int(seed) != torch.initial_seed())

    def seed(self) -> None:
        self._seed(self._generators[0].seed(), is_own=True)

    def _seed(self, seed: int, is_own: bool) -> None:
        for generator in self._generators:
            generator.manual_seed(seed)
        self._pending = seed if is_own else None
        if self._is_training:
            self._training_begins()

    def _training_begins(self) -> None:
        self._is_training = True
        if self._pending is not None:
            asked("a seed of its own for the device")
            torch.default_generator.manual_seed(self._pending)
            self._pending = None
