from pathlib import Path

import pytest

from scaleproof.errors import EvidenceError, RunError
from scaleproof.evidence.heartbeat import Heartbeat, Phase, read_heartbeat


def test_the_last_beat_is_read_while_the_rank_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.heartbeat"
    heartbeat = Heartbeat(path)
    first = read_heartbeat(path)
    heartbeat.begin(Phase.TRAINING, epoch=3, num_steps=40)
    heartbeat.beat(17)
    beat = read_heartbeat(path)
    heartbeat.close()

    assert first is not None
    assert first.phase is Phase.STARTING
    assert beat is not None
    assert (beat.phase, beat.epoch, beat.step, beat.num_steps) == (Phase.TRAINING, 3, 17, 40)
    assert beat.phase.word == "training"


def test_a_new_phase_begins_at_its_first_step(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "beat")
    heartbeat.begin(Phase.TRAINING, epoch=0, num_steps=9)
    heartbeat.beat(8)
    heartbeat.begin(Phase.EVALUATING, epoch=0)
    beat = read_heartbeat(tmp_path / "beat")
    heartbeat.close()

    assert beat is not None
    assert (beat.phase, beat.step, beat.num_steps) == (Phase.EVALUATING, 0, 0)


@pytest.mark.parametrize("words", ["", "no space left on /data", "é" * 10_000, "x" * 10_000])
def test_last_words_survive_and_are_cut_at_a_character(tmp_path: Path, words: str) -> None:
    heartbeat = Heartbeat(tmp_path / "beat")
    heartbeat.say("something longer that must not shine through")
    heartbeat.say(words)
    heartbeat.close()
    beat = read_heartbeat(tmp_path / "beat")

    assert beat is not None
    assert words.startswith(beat.last_words)
    assert len(beat.last_words.encode()) >= min(len(words.encode()), 4000)


def test_no_file_and_an_unfinished_one_are_no_beat_yet(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"SPH1")
    (tmp_path / "zero").write_bytes(bytes(4096))

    assert read_heartbeat(tmp_path / "none") is None
    assert read_heartbeat(tmp_path / "short") is None
    assert read_heartbeat(tmp_path / "zero") is None


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "beat").write_bytes(b"ELF!" + bytes(4092))

    with pytest.raises(EvidenceError, match="not a heartbeat file: it begins with b'ELF!'"):
        read_heartbeat(tmp_path / "beat")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"can't write .*none/beat"):
        Heartbeat(tmp_path / "none" / "beat")
