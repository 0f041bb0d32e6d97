"""Fingerprints of the training state: equal bytes give equal digests, and sketches tell how far
unequal tensors are apart without ever bringing two ranks' tensors together."""

import math
from collections.abc import Iterable
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, randint  # randint itself: a check keeps what torch.randint draws

from scaleproof.evidence.records import SKETCH_SIZE, TensorKind, TensorState
from scaleproof.evidence.writer import digest_of


@final
class StateFingerprint:
    """Takes fingerprints of one rank's tensors."""

    def __init__(self) -> None:
        self._signs: dict[tuple[int, torch.device], Tensor] = {}

    def take(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        buffers: Iterable[tuple[str, Tensor]],
        optimizer: torch.optim.Optimizer,
    ) -> tuple[tuple[TensorState, ...], NDArray[np.float64]]:
        """One ``TensorState`` per tensor, and the sketches, ``(num_tensors, SKETCH_SIZE)``."""
        owned = list(parameters)
        tensors = [(TensorKind.PARAMETER, name, parameter.detach()) for name, parameter in owned]
        tensors += [(TensorKind.BUFFER, name, buffer) for name, buffer in buffers]
        tensors += [
            (TensorKind.OPTIMIZER, f"{name}/{key}", value)
            for name, parameter in owned
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        ]
        return self.of_tensors(tensors)

    def of_tensors(
        self, tensors: list[tuple[TensorKind, str, Tensor]]
    ) -> tuple[tuple[TensorState, ...], NDArray[np.float64]]:
        """The same, of whatever tensors there are."""
        sketches = np.zeros((len(tensors), SKETCH_SIZE))
        found: list[TensorState] = []
        for index, (kind, name, tensor) in enumerate(tensors):
            values = tensor.detach().reshape(-1)
            norm = float(torch.linalg.vector_norm(values.double()))
            sketches[index] = self._sketch(values).cpu().numpy()
            raw = values.contiguous().view(torch.uint8).cpu().numpy()
            found.append(
                TensorState(
                    name=name,
                    kind=kind,
                    numel=values.numel(),
                    digest=digest_of(raw.data),
                    norm=norm if math.isfinite(norm) else None,
                )
            )
        return tuple(found), sketches

    def _sketch(self, values: Tensor) -> Tensor:
        """Signed sums over ``SKETCH_SIZE`` interleaved buckets, float64."""
        signed = values.double() * self._signs_for(values)
        padding = -len(signed) % SKETCH_SIZE
        padded = torch.nn.functional.pad(signed, (0, padding))
        return padded.view(-1, SKETCH_SIZE).sum(dim=0)

    def _signs_for(self, values: Tensor) -> Tensor:
        """Fixed pseudo-random signs, the same on all ranks, drawn once per tensor size."""
        key = (values.numel(), values.device)
        if key not in self._signs:
            generator = torch.Generator().manual_seed(values.numel())
            signs = randint(0, 2, (values.numel(),), generator=generator, dtype=torch.int8)
            self._signs[key] = (signs * 2 - 1).to(values.device)
        return self._signs[key]
