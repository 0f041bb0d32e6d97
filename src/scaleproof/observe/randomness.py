"""States of the global random-number generators, looked at without drawing from them."""

import random

import numpy as np
import torch

from scaleproof.evidence.observations import RandomSource
from scaleproof.evidence.writer import digest_of


def random_states() -> dict[RandomSource, str]:
    """Digest of each global generator's state in this process."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)  # of the legacy state
    numpy_state = keys.tobytes() + repr((name, position, has_gauss, gauss)).encode()
    return {
        RandomSource.TORCH: torch_state(),
        RandomSource.NUMPY: digest_of(numpy_state),
        RandomSource.PYTHON: digest_of(repr(random.getstate()).encode()),
    }


def torch_state() -> str:
    """Digest of torch's default generators: the CPU's, and the current device's."""
    states = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state().numpy().tobytes())
    return digest_of(b"".join(states))
