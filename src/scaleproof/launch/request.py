"""What the processes of one run are told to do: the file between the command and its ranks."""

from typing import Literal, final

import msgspec


@final
class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run. ``learning_rate_rule`` and ``num_epochs`` None: as the recipe says."""

    target: str
    data_dir: str | None
    arm: str
    seed: int
    strategy: str
    num_devices: int
    num_ranks: int
    device_kind: Literal["cpu", "cuda"]
    share_device: bool
    num_epochs: int
    learning_rate_rule: Literal["none", "linear", "sqrt"] | None
    warmup_epochs: float
    collective_timeout_s: float
