"""Observes a real command in a subprocess, and judges what was seen."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from scaleproof.checks.check import Outcome, Question
from scaleproof.evidence.study import Study, load_study
from scaleproof.verdict.answers import Answer, Finding, Verdict
from scaleproof.verdict.profile import profile_from_dict
from scaleproof.verdict.verdict import judge_study

TORCHRUN = (
    sys.executable,
    *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
)
TIMEOUT_S = 280.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A judged study, and how the command line ended."""

    study: Study
    verdict: Verdict
    returncode: int
    stdout: str
    stderr: str

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.verdict.findings if f.outcome is Outcome.FAIL)

    @property
    def is_sound(self) -> Answer:
        answers = (a.answer for a in self.verdict.answers if a.question is Question.SOUND)
        return next(answers)

    def finding(self, check: str) -> Finding:
        return next(finding for finding in self.verdict.findings if finding.check == check)

    def __str__(self) -> str:
        """What a failing test shows."""
        of_sound = [f for f in self.verdict.findings if f.question is Question.SOUND]
        lines = [f"{f.outcome:15} {f.check}: {f.sentence}" for f in of_sound]
        output = f"{self.stdout[-2000:]}\n{self.stderr[-4000:]}"
        return "\n".join((f"exit code {self.returncode}", *lines, str(self.study.paths), output))


def observe(
    tmp_path: Path,
    argv: Sequence[str],
    *,
    options: Sequence[str] = (),
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Observed:
    """Run ``argv`` under ``scaleproof observe`` into ``tmp_path / "study"`` and judge it."""
    out = tmp_path / "study"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "scaleproof.cli", "observe", "--out", str(out), *options),
            *("--", *argv),
        ],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
    )
    return _judged(out, result)


def check(
    tmp_path: Path,
    script: Path,
    arguments: Sequence[str] = (),
    *,
    options: Sequence[str] = (),
    cwd: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Observed:
    """Run ``script`` under ``scaleproof check`` into ``tmp_path / "study"`` and judge it."""
    out = tmp_path / "study"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "scaleproof.cli", "check", str(script), "--out", str(out)),
            *options,
            *(["--", *arguments] if arguments else []),
        ],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return _judged(out, result)


def _judged(out: Path, result: "subprocess.CompletedProcess[str]") -> Observed:
    assert (out / "study.json").exists(), result.stdout + result.stderr
    study = load_study(out)
    return Observed(
        study=study,
        verdict=judge_study(study, profile_from_dict({})),
        returncode=result.returncode,
        stdout=result.stdout,
        stderr=result.stderr,
    )
