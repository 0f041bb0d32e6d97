"""The command line: what it prints and how it exits, without training anything."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from scaleproof import cli
from scaleproof.evidence.records import SCHEMA_VERSION
from scaleproof.evidence.study import Study
from studies import FakeArm, build_study, flip_share

RECIPE = """
import dataclasses
from scaleproof.recipes.digits import recipe as digits

def too_large():
    return dataclasses.replace(digits(), batch_per_device=1000)

def not_a_recipe():
    return 7

def raises():
    raise ZeroDivisionError("in the recipe")
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``scaleproof ARGUMENTS``, in this process."""
    with pytest.raises(SystemExit) as exit_:
        cli.app(args=list(arguments))
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return build_study(tmp_path / "study")


def test_judge_prints_the_verdict_first_and_exits_with_it(capsys, study: Study):
    code, out, _ = run(capsys, "judge", str(study.paths.root))
    assert code == 0
    assert out.lstrip().upper().startswith("ADOPT")


def test_judge_again_with_other_margins(capsys, study: Study):
    root = str(study.paths.root)
    assert run(capsys, "judge", root, "--min-time-reduction", "0.40")[0] == 0
    assert run(capsys, "judge", root, "--min-time-reduction", "0.60")[0] == 1
    code, out, _ = run(capsys, "judge", root, "--min-accuracy", "0.95")
    assert code == 1
    assert "90" in out.splitlines()[0]


def test_a_profile_file_and_an_option_over_it(capsys, study: Study, tmp_path: Path):
    profile = tmp_path / "scaleproof.toml"
    profile.write_text("[checks.accuracy-below-floor]\nmin_accuracy = 0.95\n")
    root = str(study.paths.root)
    assert run(capsys, "judge", root, "--profile", str(profile))[0] == 1
    assert run(capsys, "judge", root, "--profile", str(profile), "--min-accuracy", "0.8")[0] == 0


def test_a_wrong_key_in_a_profile_is_named(capsys, study: Study, tmp_path: Path):
    profile = tmp_path / "scaleproof.toml"
    profile.write_text("[checks.accuracy-drop]\nmax_dorp = 0.1\n")
    code, _, err = run(capsys, "judge", str(study.paths.root), "--profile", str(profile))
    assert code == 2
    assert "max_dorp" in err
    assert "max_drop" in err


@pytest.mark.parametrize("format_", ["terminal", "html", "json", "markdown", "junit"])
def test_report_in_every_format(capsys, study: Study, tmp_path: Path, format_: str):
    root, file = str(study.paths.root), tmp_path / "out"
    code, out, _ = run(capsys, "report", root, "--format", format_)
    assert code == 0
    assert "accuracy-drop" in out
    assert run(capsys, "report", root, "--format", format_, "--out", str(file))[0] == 0
    assert "accuracy-drop" in file.read_text()


def test_report_exits_with_0_whatever_the_verdict(capsys, tmp_path: Path):
    slower = build_study(tmp_path / "slower", candidate=FakeArm(num_ranks=2, epoch_time_s=2.0))
    assert run(capsys, "judge", str(slower.paths.root))[0] == 1
    assert run(capsys, "report", str(slower.paths.root))[0] == 0


def test_one_seed_is_undecided_and_says_how_many_would_decide(capsys, tmp_path: Path):
    study = build_study(tmp_path / "study", seeds=(0,))
    code, out, _ = run(capsys, "judge", str(study.paths.root))
    assert code == 3
    assert "one seed" in out.lower()
    assert "at least 3" in " ".join(out.split())


def test_worse_recall_of_one_class_rejects(capsys, tmp_path: Path):
    def confuses_ships(seed, targets):
        predictions = flip_share(targets, share=0.02, seed=seed)
        predictions[-88:] = 0
        return predictions

    study = build_study(
        tmp_path / "study",
        candidate=FakeArm(num_ranks=2, epoch_time_s=0.3, predictions=confuses_ships),
    )
    code, out, _ = run(capsys, "judge", str(study.paths.root))
    assert code == 1
    assert out.lstrip().upper().startswith("REJECT")


def test_explain_prints_the_page(capsys):
    code, out, _ = run(capsys, "explain", "accuracy-paradox")
    assert code == 0
    for section in ("What it looks for", "How it decides", "How to fix it", "References"):
        assert section in out


def test_explain_lists_every_check(capsys):
    from scaleproof.checks.all_checks import ALL_CHECKS

    out = run(capsys, "explain")[1]
    assert all(check.name in out for check in ALL_CHECKS)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["compare", "digit"], 2, "no recipe 'digit'. Did you mean 'digits'?"),
        (["compare", "digits", "--strategy", "pdd"], 2, "no strategy 'pdd'. Did you mean 'ddp'?"),
        (["compare", "digits", "--devices", "2,3"], 2, "--devices 2,3: expected a number"),
        (["compare", "digits", "--devices", "many"], 2, "--devices many: expected a number"),
        (["compare", "digits", "--devices", "1"], 2, "a comparison needs 2 or more devices"),
        (["compare", "digits", "--devices", "0"], 2, "--devices 0: a comparison needs 2 or more"),
        (["compare", "digits", "--devices", "4096", "--device", "cpu"], 2, "this machine has"),
        (["compare", "digits", "--seeds", "0"], 2, "--seeds 0: expected 1 or more"),
        (["compare", "digits", "--epochs", "-1"], 2, "--epochs -1: expected 1 or more"),
        (["compare", "none.py:recipe"], 2, "there is no file"),
        (["compare", "fraud:weighted"], 2, "it has recipe, recipe_weighted"),
        (["train", "digits", "--devices", "2"], 2, "--strategy single uses one device"),
        (["judge", "nowhere"], 5, "nowhere is not a folder"),
        (["explain", "accuracy-paradoks"], 2, "accuracy-paradox"),
    ],
)
def test_impossible_requests_are_explained(capsys, arguments, code: int, expected: str):
    found, _, err = run(capsys, *arguments)
    assert expected in " ".join(err.split())
    assert found == code
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("function", "code", "expected"),
    [
        ("too_large", 2, "global batch of 2000, and the data set has 1347 training samples"),
        ("not_a_recipe", 2, "returned int, expected a scaleproof.Recipe"),
        ("nothing", 2, "has no function 'nothing'; it has not_a_recipe, raises, too_large"),
        ("raises", 4, "raised ZeroDivisionError: in the recipe"),
    ],
)
def test_wrong_recipes_are_explained(
    capsys, tmp_path: Path, function: str, code: int, expected: str
):
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    found, _, err = run(
        capsys, "compare", f"{file}:{function}", "--device", "cpu", "--share-device"
    )
    assert expected in err
    assert found == code
    assert "src/scaleproof" not in err


def test_a_folder_that_holds_something_is_not_overwritten(capsys, study: Study):
    before = sorted(path.name for path in study.paths.root.iterdir())
    code, _, err = run(
        capsys, "compare", "digits", "--share-device", "--out", str(study.paths.root)
    )
    assert code == 2
    assert "is not empty" in err
    assert sorted(path.name for path in study.paths.root.iterdir()) == before


def test_an_unwritable_folder(capsys):
    code, _, err = run(capsys, "compare", "digits", "--share-device", "--out", "/proc/study")
    assert code == 2
    assert "can't make the study folder /proc/study" in err
    assert "--out" in err


def test_a_study_from_a_newer_schema(capsys, study: Study):
    changed = json.loads(study.paths.study.read_text()) | {"schema_version": SCHEMA_VERSION + 1}
    study.paths.study.write_text(json.dumps(changed))
    code, _, err = run(capsys, "judge", str(study.paths.root))
    assert code == 5
    assert f"schema version {SCHEMA_VERSION + 1}" in err
    assert "Upgrade" in err


def test_a_study_half_written(capsys, study: Study):
    """The candidate's last run is torn in the middle of a record, without an outcome."""
    run_paths = study.paths.run("ddp-2", 2)
    records = run_paths.records(1)
    records.write_bytes(records.read_bytes()[:-40])
    run_paths.outcome(1).unlink()
    code, out, _ = run(capsys, "judge", str(study.paths.root))
    assert code == 3
    assert "ddp-2-seed2" in out


def test_runs_that_are_not_comparable_are_refused(capsys, tmp_path: Path):
    study = build_study(
        tmp_path / "study", candidate=FakeArm(num_ranks=2, manifest={"precision": "bf16"})
    )
    code, _, err = run(capsys, "judge", str(study.paths.root))
    assert code == 5
    assert "precision is 'fp32' in the first and 'bf16' in the second" in err


def test_a_bug_of_ours_is_called_one(capsys, study: Study, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise msgspec.MsgspecError("boom")

    monkeypatch.setattr("scaleproof.verdict.verdict.judge_study", broken)
    code, _, err = run(capsys, "judge", str(study.paths.root))
    assert code == 70
    assert "bug of ours" in err


def test_help_imports_nothing_heavy():
    """What keeps ``scaleproof --help`` under half a second."""
    code = (
        "import sys, scaleproof.cli\n"
        "try: scaleproof.cli.app(args=['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'altair', 'statsmodels'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "compare" in result.stdout
