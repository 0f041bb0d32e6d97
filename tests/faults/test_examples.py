"""Examples in many styles are found sound; each with a fault planted in it, at fault for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.planted import FAULTS
from faults.scripts import ARGUMENTS, EXAMPLES, STARTS_ITSELF, Planted
from faults.twins import TWINS
from observing import TORCHRUN, Observed, observe
from scaleproof.verdict.answers import Answer

pytestmark = pytest.mark.distributed


def command(script: Path, arguments: str) -> list[str]:
    start = [sys.executable] if script.name in STARTS_ITSELF else [*TORCHRUN]
    return [*start, str(script), *arguments.split()]


def observe_planted(planted: Planted, tmp_path: Path) -> Observed:
    script, checkpoint = tmp_path / planted.script, tmp_path / "checkpoint.pt"
    script.write_text(planted.plant())
    arguments = planted.arguments or ARGUMENTS[planted.script]
    if planted.resumes:
        subprocess.run(
            command(script, f"{arguments} --checkpoint {checkpoint}"),
            check=True,
            capture_output=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        arguments += f" --resume {checkpoint}"
    return observe(tmp_path, command(script, arguments))


def assert_sound(observed: Observed) -> None:
    assert [finding.check for finding in observed.failed] == [], str(observed)
    assert observed.is_sound is Answer.YES, str(observed)


def test_every_example_is_observed_and_has_a_fault():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(ARGUMENTS) == scripts
    assert {fault.script for fault in FAULTS} == scripts


@pytest.mark.parametrize("script", ARGUMENTS)
def test_a_sound_script_is_found_sound(script: str, tmp_path: Path):
    assert_sound(observe(tmp_path, command(EXAMPLES / script, ARGUMENTS[script])))


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_what_only_looks_like_a_fault_is_found_sound(twin: Planted, tmp_path: Path):
    assert_sound(observe_planted(twin, tmp_path))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_the_one_thing_found(fault: Planted, tmp_path: Path):
    observed = observe_planted(fault, tmp_path)
    assert [finding.check for finding in observed.failed] == [fault.check], str(observed)
    sentence = observed.finding(fault.check).sentence
    for words in (*fault.words, fault.where):
        assert words in sentence, f"{words!r} is not in {sentence!r}"
    is_warning = not observed.finding(fault.check).blocks
    assert observed.is_sound is (Answer.YES if is_warning else Answer.NO)
