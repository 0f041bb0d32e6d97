"""What a process of a checked command was asked to do."""

from typing import final

import msgspec

from scaleproof.evidence.close_ups import ReplayName


@final
class CheckFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``replay``: None for a rank of the run that is checked; otherwise this is the only process of
    that replay of it. ``material``: the folder that holds what is replayed.

    ``num_steps``: the process is ended after so many; 0: it runs to its own end. ``num_kept``: so
    many steps are kept for replays. ``forced_devices``: CUDA is mapped to the CPU, and shows so
    many devices; 0: it is left alone.
    """

    replay: ReplayName | None
    material: str
    num_steps: int
    num_kept: int
    forced_devices: int
