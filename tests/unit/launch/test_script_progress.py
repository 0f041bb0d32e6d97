"""What a comparison of scripts shows while it works."""

import io
from pathlib import Path

from rich.console import Console

from fake_runs import FakeRuns
from observed import FakeScript
from scaleproof.evidence.paths import RunPaths, StudyPaths
from scaleproof.evidence.pulse import Activity, Pulse, PulseReading
from scaleproof.launch.run_line import where
from scaleproof.launch.script_arms import ScriptOptions, conduct_scripts, plan_scripts
from scaleproof.launch.script_progress import ScriptProgress


def pulse(rank: int, step: int, epoch: int = 1, activity: Activity = Activity.BACKWARD):
    return PulseReading(
        pid=10 + rank, activity=activity, beats=1, rank=rank, num_ranks=2, epoch=epoch, step=step
    )


def test_where_the_ranks_are():
    assert where([]) == where([pulse(-1, 0)]) == "starting"
    assert where([pulse(0, 7), pulse(1, 7), pulse(-1, 0)]) == "epoch 2, 7 steps, in backward"
    late = pulse(1, 5, activity=Activity.INPUT)
    assert where([pulse(0, 7), late]) == "epoch 2, 5 to 7 steps, waiting for input"
    assert where([pulse(0, 0, epoch=-1)]) == "0 steps, in backward"


def test_each_run_is_announced_followed_and_summed_up(tmp_path: Path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    runs = FakeRuns(
        tmp_path / "made", script_1=FakeScript(num_ranks=1), script_2=FakeScript(num_epochs=2)
    )
    script = tmp_path / "train[bold].py"  # no markup
    script.write_text("")
    options = ScriptOptions(script=str(script), device_kind="cpu", share_device=True)

    def beat(paths: RunPaths) -> None:
        heart = Pulse(paths.pulse(1))
        heart.name_rank(0, 1)
        heart.step_done(0, 4)
        heart.beat(Activity.FORWARD)
        paths.pulse(2).write_bytes(b"nonsense" * 1000)  # is left out, not fatal
        progress._bars.refresh()

    runs.then = beat
    with ScriptProgress(console) as progress:
        conduct_scripts(StudyPaths(tmp_path / "study"), plan_scripts(options, {}), progress, runs)
    text = out.getvalue()
    assert "Run 1 of 2: script-1-seed0" in text
    assert "epoch 1, 4 steps, in forward" in text
    assert "  1 rank, 36 steps in 3 epochs, " in text
    assert "  2 ranks, 12 steps in 2 epochs, " in text
    assert "exit code" not in text


def test_an_exit_code_after_training_is_said(tmp_path: Path):
    out = io.StringIO()
    runs = FakeRuns(tmp_path / "made", baseline=FakeScript(num_ranks=1), candidate=FakeScript())
    runs.exit_code = 134
    options = ScriptOptions(baseline="true", candidate="true", device_kind="cpu", share_device=True)
    with ScriptProgress(Console(file=out, width=100)) as progress:
        conduct_scripts(StudyPaths(tmp_path / "study"), plan_scripts(options, {}), progress, runs)
    assert out.getvalue().count("; exit code 134, after training") == 2
