"""An arm as ``scaleproof compare`` runs it: its own agent, ranks, records and all.

This process only passes the turns on. The times are those Scaleproof writes down and judges by.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.reader import read_records
from scaleproof.evidence.records import EpochRecord
from scaleproof.launch.request import RunRequest
from scaleproof.launch.run_process import RunProcess, log_tail
from scaleproof_recipe import NUM_SAMPLES_VARIABLE
from turns import Task, Turns, parse_task

POLL_INTERVAL_S = 0.1
"""Long, because each look costs the device that is measured some time."""


def main() -> None:
    task = parse_task()
    turns = Turns()
    os.environ[NUM_SAMPLES_VARIABLE] = str(task.num_stretch_samples)
    with tempfile.TemporaryDirectory() as folder:
        run = RunProcess(RunPaths(Path(folder)), _request(task))
        try:
            _wait_until(run, lambda: run.awaits_epoch(0))
            epoch = 0
            while turns.wait():
                run.grant(epoch + 1)
                _wait_until(run, lambda epoch=epoch: run.awaits_epoch(epoch + 1))
                turns.report(_epoch_time_s(run, epoch))
                epoch += 1
        finally:
            run.stop()


def _request(task: Task) -> RunRequest:
    strategy = "single" if task.num_devices == 1 else "ddp"
    return RunRequest(
        target=f"{Path(__file__).with_name('scaleproof_recipe.py')}:recipe",
        data_dir=str(task.data_dir),
        arm=f"{strategy}-{task.num_devices}",
        seed=0,
        strategy=strategy,
        num_devices=task.num_devices,
        num_ranks=task.num_devices,
        device_kind="cpu",
        share_device=False,
        num_epochs=task.num_stretches,
        learning_rate_rule=None,
        warmup_epochs=1.0,
        collective_timeout_s=300.0,
    )


def _wait_until(run: RunProcess, is_reached: Callable[[], bool]) -> None:
    while not is_reached():
        if run.exit_code not in (None, 0):
            raise RuntimeError(f"the arm ended early:\n{log_tail(run.paths, 40)}")
        time.sleep(POLL_INTERVAL_S)


def _epoch_time_s(run: RunProcess, epoch: int) -> float:
    """The time of the slowest rank."""
    times_s: list[float] = []
    for rank in range(run.request.num_ranks):
        records, _ = read_records(run.paths.records(rank))
        times_s += [
            record.train_time_s
            for record in records
            if isinstance(record, EpochRecord) and record.epoch == epoch
        ]
    return max(times_s)


if __name__ == "__main__":
    main()
