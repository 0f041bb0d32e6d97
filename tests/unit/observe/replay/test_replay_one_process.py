"""A script that would start or join several processes is content with one: in a process of its
own, which is patched as a replay's is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_DRIVER = """
import json, os, sys, traceback
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch.utils.data import DataLoader
from scaleproof.observe.replay.one_process import fetch_alone, stay_alone

class Left(Exception):
    pass

def leave(why):
    raise Left(why)

original_spawn = mp.spawn
mp.spawn = mp.start_processes = lambda fn, args=(), nprocs=1, *rest, **kw: (args, nprocs, kw)
multi = __import__("multiprocessing")
started = []
multi.process.BaseProcess.start = lambda self: started.append(self._args)
dist.distributed_c10d.init_process_group = lambda backend=None, init_method=None, timeout=None, \\
    world_size=-1, rank=-1, store=None, **kw: [world_size, rank, init_method, type(store).__name__]
stay_alone(2, leave)
fetch_alone()

def attempt(text):
    started.clear()
    scope = dict(globals())
    try:
        exec(text, scope)
        return json.loads(json.dumps(scope["said"]))
    except Left as left:
        return f"left: {left}"

print(json.dumps([attempt(text) for text in json.loads(sys.stdin.read())]))
"""
"""Attempts Python texts; each sets ``said``."""

ATTEMPTS = {
    "spawn": "said = mp.spawn(print, args=(2, 'a', 3), nprocs=2)[:2]",
    "spawn-named": "said = mp.spawn(fn=print, args=(2,), nprocs=2, join=True)",
    "spawn-one": "said = mp.spawn(print, args=(1, 2), nprocs=1)[:2]",
    "namespace": (
        "import argparse; a = argparse.Namespace(world_size=2, epochs=2)\n"
        "(b,), n, _ = mp.spawn(print, args=(a,), nprocs=2)\n"
        "said = [b.world_size, b.epochs, a.world_size, n]"
    ),
    "true": "said = mp.spawn(print, args=(True, 2.0), nprocs=2)[0]",
    "join-env": "said = dist.init_process_group('gloo')",
    "join-one": "said = dist.init_process_group('gloo', world_size=1, rank=0)",
    "join-address": (
        "said = dist.init_process_group('gloo', 'tcp://127.0.0.1:9', world_size=1, rank=0)"
    ),
    "join-store": "said = dist.init_process_group('gloo', store=1, rank=0, world_size=1)",
    "join-two": "said = dist.init_process_group('gloo', world_size=2, rank=0)",
    "join-two-positional": "said = dist.init_process_group('gloo', None, None, 2, 0)",
    "processes": (
        "for rank in range(2):\n"
        "    p = multi.Process(target=print, args=(rank, 2)); p.start()\n"
        "said = [started, p._popen.poll(), p._popen.wait()]"
    ),
    "other-process": (
        "for name in 'ab':\n    multi.Process(target=print, args=(name,)).start()\nsaid = started"
    ),
    "loader": (
        "l = DataLoader([1, 2], num_workers=2, persistent_workers=True, prefetch_factor=4,\n"
        "    timeout=3, multiprocessing_context='fork')\n"
        "said = [l.num_workers, l.prefetch_factor, l.persistent_workers, l.timeout,\n"
        "    [int(b) for b in l]]"
    ),
    "loader-positional": "said = DataLoader([1, 2], 2, False, None, None, 3).num_workers",
    "loader-plain": "said = DataLoader([1, 2], batch_size=2).batch_size",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script: Path = tmp_path_factory.mktemp("one") / "driver.py"
    script.write_text(_DRIVER)
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(list(ATTEMPTS.values())),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(ATTEMPTS, json.loads(done.stdout), strict=True))


def test_spawn_starts_one_process_and_tells_it_so(said: dict[str, Any]) -> None:
    assert said["spawn"] == [[1, "a", 3], 1]
    assert said["spawn-named"] == [[1], 1, {"join": True}]
    assert said["spawn-one"] == [[1, 2], 1]
    assert said["true"] == [True, 2.0]


def test_the_number_of_ranks_in_options_is_one_and_theirs_stay(said: dict[str, Any]) -> None:
    assert said["namespace"] == [1, 2, 2, 1]


def test_a_world_of_one_is_joined_and_a_larger_one_is_refused(said: dict[str, Any]) -> None:
    for name in ("join-env", "join-one", "join-address"):
        assert said[name] == [1, 0, None, "HashStore"]  # no port: replays run side by side
    assert said["join-store"] == [1, 0, None, "int"]
    for name in ("join-two", "join-two-positional"):
        assert "left: the script tells init_process_group a world of 2" in said[name]
        assert "WORLD_SIZE" in said[name]


def test_of_several_ranks_processes_the_first_starts(said: dict[str, Any]) -> None:
    assert said["processes"] == [[[0, 1]], 0, 0]


def test_processes_that_are_no_ranks_start(said: dict[str, Any]) -> None:
    assert said["other-process"] == [["a"], ["b"]]


def test_loaders_fetch_without_workers(said: dict[str, Any]) -> None:
    assert said["loader"] == [0, None, False, 0, [1, 2]]
    assert said["loader-positional"] == 0
    assert said["loader-plain"] == 2
