"""What the command line shows, and with which profile a study is judged."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from scaleproof.cli_options import Thresholds

if TYPE_CHECKING:
    from rich.console import Console

    from scaleproof.evidence.paths import StudyPaths
    from scaleproof.evidence.study import Study
    from scaleproof.verdict.answers import Verdict
    from scaleproof.verdict.profile import Profile


def say(message: str) -> None:
    typer.echo(f"scaleproof: {message}", err=True)


@contextmanager
def told(paths: "StudyPaths", console: "Console") -> Iterator[None]:
    """Say where the study is, and what to do with it when it is interrupted."""
    console.print(f"Study: {paths.root}", highlight=False, markup=False)
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted. What was finished can be judged: scaleproof judge {paths.root}")
        raise


def choose_profile(
    base: Mapping[str, Any], profile_file: Path | None, overrides: Thresholds
) -> "Profile":
    """``base``, with the file laid over it, and the options over both."""
    from scaleproof.verdict.profile import layered_profile, with_thresholds

    return with_thresholds(layered_profile(base, profile_file), overrides)


def print_verdict(study: "Study", profile: "Profile", *, err: bool = False) -> "Verdict":
    """Judge a study and print the verdict, to stderr if ``err``."""
    from rich.console import Console

    from scaleproof.report import terminal
    from scaleproof.report.summary import summarise
    from scaleproof.verdict.verdict import judge_study

    verdict = judge_study(study, profile)
    summary = summarise(study, verdict, confidence=profile.confidence)
    terminal.render(summary, Console(stderr=err))
    return verdict


def judge_and_report(
    paths: "StudyPaths", profile: "Profile", *, err: bool = False
) -> "tuple[Study, Verdict]":
    """Print the verdict on a study that has just run, and write the page beside its evidence."""
    from scaleproof.evidence.study import load_study
    from scaleproof.evidence.writer import write_atomically
    from scaleproof.report.formats import render_text
    from scaleproof.report.summary import summarise

    study = load_study(paths.root)
    verdict = print_verdict(study, profile, err=err)
    summary = summarise(study, verdict, confidence=profile.confidence)
    write_atomically(paths.report, render_text(summary, "html").encode())
    typer.echo(f"The whole report: {paths.report}", err=err)
    return study, verdict


def was_training_seen(study: "Study") -> bool:
    """A rank trained, or might have: something kept a process from being observed."""
    from scaleproof.evidence.troubles import read_troubles

    return any(run.status != "missing" or read_troubles(run.paths) for run in study.runs.values())
