"""What happens in each process of an observed command when torch has been imported."""

import atexit
import contextlib
import multiprocessing.util
import os
from pathlib import Path

import torch.distributed as dist

from scaleproof.evidence.observations import Missing
from scaleproof.evidence.paths import RunPaths
from scaleproof.evidence.troubles import append_trouble
from scaleproof.launch.environment import ProcessFacts
from scaleproof.observe import libraries, patches, report
from scaleproof.observe.checking import Checking
from scaleproof.observe.force_cpu import force_cpu
from scaleproof.observe.metrics import MetricsReceiver
from scaleproof.observe.observer import Observer
from scaleproof.observe.patch_loaders import loader_lines
from scaleproof.observe.presence import present, watch_process_group
from scaleproof.observe.schedules import write_schedules


def attach(paths: RunPaths, facts: ProcessFacts) -> None:
    """Listen to torch; nothing is recorded until the process makes an optimizer."""
    if facts.pin and facts.local_rank is not None:
        pin_to_core(facts.local_rank)
    watch_process_group(paths, facts.launched_as)
    libraries.watch_imports()

    def note(what: str, why: str) -> None:
        with contextlib.suppress(OSError):  # nowhere to say it
            append_trouble(paths.trouble(os.getpid()), Missing(what=what, why=why))

    checking = None if facts.check is None else Checking(facts.check, note)
    if facts.check is not None and facts.check.forced_devices:
        force_cpu(facts.check.forced_devices)  # before anything else is patched
    patches.install(lambda: _observe(paths, facts, checking), note)
    if checking is not None:
        checking.install()


def _observe(paths: RunPaths, facts: ProcessFacts, checking: Checking | None) -> Observer:
    """This process made an optimizer: it will train."""
    if facts.pin and facts.local_rank is None:
        pin_to_core(dist.get_rank() if dist.is_initialized() else 0)
    observer = Observer(
        paths,
        present(paths),
        every=facts.every,
        environment=facts.launched_as,
        where_loaders=loader_lines,
    )
    receiver = MetricsReceiver(observer)
    report.set_receiver(receiver)
    libraries.listen(receiver)

    def end() -> None:
        receiver.write()
        for why in report.dropped():
            observer.troubles.note("report", why)
        write_schedules(observer)
        observer.end()

    if checking is not None:
        end = checking.begin(observer, end)
    atexit.register(end)
    # A forked child of multiprocessing runs no exit handlers, but these.
    multiprocessing.util.Finalize(None, end, exitpriority=0)
    return observer


def pin_to_core(index: int) -> None:
    """Keep all threads of this process on one of the cores it may use: a device is one core."""
    if not hasattr(os, "sched_setaffinity"):
        return  # macOS
    cores = sorted(os.sched_getaffinity(0))
    core = cores[index % len(cores)]
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
