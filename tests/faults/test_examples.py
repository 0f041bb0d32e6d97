"""Examples in many styles are found sound when they are observed, and there is a fault planted in
each; ``test_corpus.py`` checks them all."""

import sys
from pathlib import Path

import pytest

from faults.corpus import BEYOND, FAULTS, SOUND
from faults.scripts import ARGUMENTS, EXAMPLES, SCRIPTS, STARTS_ITSELF
from observing import TORCHRUN, observe
from scaleproof.checks.all_checks import ALL_CHECKS
from scaleproof.verdict.answers import Answer


def test_every_script_is_checked_unchanged_and_most_have_a_fault():
    examples = {path.name for path in EXAMPLES.glob("*.py")}
    scripts = {path.name for path in SCRIPTS.glob("*.py")}
    assert set(ARGUMENTS) == examples
    known = {sound.script for sound in SOUND if not sound.edits}
    assert examples | scripts == known | {beyond.script for beyond in BEYOND}
    assert examples <= {fault.script for fault in FAULTS}


def test_the_corpus_is_as_large_as_it_claims():
    assert len(FAULTS) >= 45
    assert len({sound.script for sound in SOUND}) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_every_fault_names_a_check_and_its_class():
    names = {check.name for check in ALL_CHECKS}
    classes = {
        *("data", "sync", "scaling", "clipping", "state"),
        *("precision", "schedule", "metrics", "resume"),
    }
    for fault in FAULTS:
        assert fault.check in names, fault.name
        assert fault.group in classes, fault.name
    assert {fault.group for fault in FAULTS} == classes


@pytest.mark.parametrize("planted", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_its_script_into_another_that_python_can_read(planted):
    compile(planted.plant(), planted.script, "exec")
    assert planted.edits or planted.resumes


@pytest.mark.distributed
@pytest.mark.parametrize("script", ARGUMENTS)
def test_a_sound_example_is_observed_sound(script: str, tmp_path: Path):
    start = [sys.executable] if script in STARTS_ITSELF else [*TORCHRUN]
    observed = observe(tmp_path, [*start, str(EXAMPLES / script), *ARGUMENTS[script].split()])
    assert [finding.check for finding in observed.failed] == [], str(observed)
    assert observed.is_sound is Answer.YES, str(observed)
