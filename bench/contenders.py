"""The processes of the benchmark, and their turns. They are started once and live to the end."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from scaleproof.launch.environment import ALLOCATOR_TUNABLES

_SCRIPTS = Path(__file__).with_name("comparators")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """What takes a turn: one training on ``num_devices``, or ``num_trainings`` of them at once
    that know nothing of each other, each on devices of its own."""

    loop: str
    num_devices: int
    num_trainings: int = 1

    @property
    def name(self) -> str:
        """Such as ``scaleproof-2``, or ``2x-hand_tuned-1``."""
        several = f"{self.num_trainings}x-" if self.num_trainings > 1 else ""
        return f"{several}{self.loop}-{self.num_devices}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """How much is trained in one turn, and how many turns there will be."""

    data_dir: Path
    num_steps: int
    num_stretches: int


@final
class RunningContender:
    """The started processes of a contender. Not ready before ``wait_until_ready`` returns."""

    def __init__(self, contender: Contender, stretch: Stretch, log: Path) -> None:
        self.contender = contender
        self._log = log
        # Scaleproof starts its own ranks; every other loop is one process per device.
        num_ranks = 1 if contender.loop == "scaleproof" else contender.num_devices
        self._processes: list[subprocess.Popen[str]] = []
        with log.open("wb") as log_file:
            for training in range(contender.num_trainings):
                port = _free_port()
                for rank in range(num_ranks):
                    core = training * contender.num_devices + rank
                    process = subprocess.Popen(
                        _command(contender, stretch, rank=rank, core=core),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log_file,
                        text=True,
                        bufsize=1,
                        env=_environment(contender, rank=rank, num_ranks=num_ranks, port=port),
                    )
                    self._processes.append(process)

    def wait_until_ready(self) -> None:
        """Return when every process waits for a turn."""
        for process in self._processes:
            self._answer(process, "ready")

    def take_turn(self) -> list[float]:
        """Train one stretch; the seconds each process took."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
        times_s = [float(self._answer(process, "time_s")) for process in self._processes]
        self.wait_until_ready()
        return times_s

    def stop(self) -> None:
        """End every process: no more turns, then no more patience."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _answer(self, process: subprocess.Popen[str], key: str) -> Any:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            last_lines = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.contender.name} ended early:\n{last_lines}")
        return json.loads(line)[key]


def _command(contender: Contender, stretch: Stretch, *, rank: int, core: int) -> list[str]:
    return [
        sys.executable,
        str(_SCRIPTS / f"{contender.loop}_loop.py"),
        f"--rank={rank}",
        f"--devices={contender.num_devices}",
        f"--core={core}",
        f"--data-dir={stretch.data_dir}",
        f"--steps={stretch.num_steps}",
        f"--stretches={stretch.num_stretches}",
    ]


def _environment(contender: Contender, *, rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """One intra-op thread, and what torch, Lightning and Accelerate read to find their rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # By default glibc may give large freed blocks back to the kernel and fault them in again.
    # Whoever tunes a loop for a CPU finds that, so all but the tutorial, which is run as it comes,
    # get the settings that Scaleproof gives its own ranks.
    if contender.loop not in ("tutorial", "scaleproof"):
        environment["GLIBC_TUNABLES"] = ALLOCATOR_TUNABLES
    if num_ranks > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
