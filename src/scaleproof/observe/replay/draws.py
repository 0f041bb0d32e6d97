"""Random numbers that the training step itself draws from torch: noise, latent variables, masks.

They are kept on the ranks and given to the replay at the same call of the same step, put together
as the batches are. Draws that don't go by items (a scalar per rank, a fixed size) can't be: those
steps count as random.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from scaleproof.evidence.writer import digest_of
from scaleproof.observe import current

FUNCTIONS = (
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "randint",
    "randint_like",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
)
"""Of ``torch``."""

METHODS = (
    "normal_",
    "uniform_",
    "bernoulli_",
    "bernoulli",
    "multinomial",
    "exponential_",
    "random_",
    "log_normal_",
    "cauchy_",
    "geometric_",
)
"""Of ``torch.Tensor``."""

MAX_DRAWS = 1000
"""Calls of a step that are kept."""


@final
class Draws:
    """The calls of the step that goes on. ``around_call`` is told before and after each, so that
    what it draws is not taken for something unknown."""

    def __init__(self, before_call: Callable[[], None], after_call: Callable[[], None]) -> None:
        self._before_call = before_call
        self._after_call = after_call
        self._is_inside = False
        self.is_open = False
        """A training batch was given: what is drawn now is the training step's."""
        self.backward = 0
        self._num_calls = 0
        self.kept: list[tuple[str, Tensor]] = []
        self.substitute: Callable[[str, Tensor], Tensor | None] | None = None
        """In a replay: what the ranks drew at this call, together; None when it doesn't fit."""
        self.has_missed = False
        """Something was drawn that could not be substituted."""

    def begin_step(self) -> None:
        self.backward = self._num_calls = 0
        self.kept = []
        self.has_missed = False

    def begin_backward(self) -> None:
        """What follows a backward belongs to the next one."""
        self.backward += 1
        self._num_calls = 0

    def around(self, original: Any) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Any:
            if not self.is_open or self._is_inside or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            self._is_inside = True
            self._before_call()
            try:
                drawn = original(*args, **kwargs)
            finally:
                self._is_inside = False
            drawn = self._exchange(drawn, is_in_place=original.__name__.endswith("_"))
            self._after_call()
            return drawn

        return draw

    def _exchange(self, drawn: Any, *, is_in_place: bool) -> Any:
        if not isinstance(drawn, Tensor) or hasattr(drawn, "placements"):
            self.has_missed = True
            return drawn
        name = f"{self.backward}/{self._num_calls}"
        self._num_calls += 1
        if self.substitute is None:
            if len(self.kept) < MAX_DRAWS:
                self.kept.append((name, drawn.detach().clone()))
            return drawn
        given = self.substitute(name, drawn)
        if given is None:
            self.has_missed = True
            return drawn
        given = given.to(drawn.device)
        if not is_in_place:
            return given.requires_grad_(drawn.requires_grad)
        with torch.no_grad():
            drawn.copy_(given)
        return drawn


def patch_draws(draws: Draws) -> None:
    for name in FUNCTIONS:
        current.replace(torch, name, draws.around)
    for name in METHODS:
        current.replace(torch.Tensor, name, draws.around)


def digests_by_rows(kept: Sequence[tuple[str, Tensor]]) -> tuple[tuple[int, str], ...]:
    """``CloseUpRecord.drawn_rows`` of what a step drew."""
    by_rows: dict[int, list[bytes]] = {}
    for _, drawn in kept:
        if drawn.dim() and len(drawn) > 1 and not _are_permutations([drawn]):
            values = drawn.detach().cpu().contiguous().reshape(-1)
            by_rows.setdefault(len(drawn), []).append(values.view(torch.uint8).numpy().tobytes())
    return tuple((rows, digest_of(b"".join(parts))) for rows, parts in sorted(by_rows.items()))


def joined_draws(own: Tensor, parts: Sequence[Tensor]) -> Tensor | None:
    """What the ranks drew, in the order of their items; None when it does not go by items. ``own``
    is what the replay drew at the same call."""
    if not parts or any(part.dtype != own.dtype for part in parts):
        return None
    is_by_item = (
        own.dim() > 0
        and all(part.dim() == own.dim() and part.shape[1:] == own.shape[1:] for part in parts)
        and sum(len(part) for part in parts) == len(own)
    )
    if is_by_item:
        return _permutation(parts) if _are_permutations(parts) else torch.cat(list(parts))
    if all(part.shape == own.shape and torch.equal(part, parts[0]) for part in parts):
        return parts[0]  # the ranks drew the same
    return None


def _are_permutations(parts: Sequence[Tensor]) -> bool:
    return all(
        part.dtype is torch.int64
        and part.dim() == 1
        and len(part) > 1
        and torch.equal(part.sort().values, torch.arange(len(part)))
        for part in parts
    )


def _permutation(parts: Sequence[Tensor]) -> Tensor:
    """Each rank permutes its own items."""
    first, shifted = 0, []
    for part in parts:
        shifted.append(part + first)
        first += len(part)
    return torch.cat(shifted)
