"""All of the fault corpus: the faults, and the scripts that are sound."""

from faults import planted, planted_data, planted_frameworks, planted_gradients, planted_state
from faults.scripts import ARGUMENTS, Planted
from faults.twins import TWINS

FAULTS: tuple[Planted, ...] = (
    *planted.FAULTS,
    *planted_data.FAULTS,
    *planted_gradients.FAULTS,
    *planted_state.FAULTS,
    *planted_frameworks.FAULTS,
)

SOUND: tuple[Planted, ...] = (
    *(Planted(name=script.removesuffix(".py"), script=script) for script in ARGUMENTS),
    *TWINS,
    *planted_data.TWINS,
    *(
        Planted(name=script.removesuffix(".py"), script=script)
        for part in (planted_data, planted_gradients, planted_frameworks)
        for script in part.SOUND
    ),
)
"""Each is the sound twin of the faults that are planted in it; some have none."""

BEYOND: tuple[Planted, ...] = (
    *planted_data.OPEN,
    *planted_gradients.OPEN,
    *planted_frameworks.OPEN,
)
"""What can't be judged with certainty, or is not found: docs/faults.md says so."""
