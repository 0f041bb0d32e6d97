"""Every fault of the corpus is found and rightly named, and nothing is found in a sound script.

Each runs through ``scaleproof check`` in processes of its own, to its own end.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.corpus import FAULTS, SOUND
from faults.scripts import ARGUMENTS, STARTS_ITSELF, Planted
from observing import TORCHRUN, Observed, check
from scaleproof.verdict.answers import Answer

pytestmark = [pytest.mark.distributed, pytest.mark.corpus]


def check_planted(planted: Planted, tmp_path: Path) -> Observed:
    script, checkpoint = tmp_path / planted.script, tmp_path / "checkpoint.pt"
    script.write_text(planted.plant())
    arguments = (planted.arguments or ARGUMENTS.get(planted.script, "")).split()
    if planted.resumes:
        start = [sys.executable] if planted.script in STARTS_ITSELF else [*TORCHRUN]
        subprocess.run(
            [*start, str(script), *arguments, "--checkpoint", str(checkpoint)],
            check=False,  # a process may abort at its exit, after all its work
            capture_output=True,
            timeout=120,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert checkpoint.exists()
        arguments += ["--resume", str(checkpoint)]
    options = ["--steps", "0"]
    if planted.script in STARTS_ITSELF:
        options += ["--launcher", "python"]
    return check(tmp_path, script, arguments, options=options, cwd=tmp_path)


@pytest.mark.parametrize("script", SOUND, ids=lambda script: script.name)
def test_nothing_is_found_in_a_sound_script(script: Planted, tmp_path: Path):
    checked = check_planted(script, tmp_path)
    assert [finding.check for finding in checked.failed if finding.blocks] == [], str(checked)
    assert checked.is_sound is Answer.YES, str(checked)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_rightly_named(fault: Planted, tmp_path: Path):
    checked = check_planted(fault, tmp_path)
    blocking = [finding.check for finding in checked.failed if finding.blocks]
    finding = checked.finding(fault.check)
    assert finding in checked.failed, str(checked)
    assert blocking == ([fault.check] if finding.blocks else []), str(checked)
    for words in (*fault.words, fault.where):
        assert words in finding.sentence, f"{words!r} is not in {finding.sentence!r}"
    assert checked.is_sound is (Answer.NO if finding.blocks else Answer.YES)
