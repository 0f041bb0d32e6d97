"""Everything the report formats share, unrounded: one input, one answer, whatever the format.

Whatever may be missing is a value here: no baseline, runs that failed, no evaluation, a loss that
is not finite, one epoch only.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, final

import msgspec

from scaleproof.evidence.records import Arm, LearningRate, Manifest
from scaleproof.evidence.study import RunStatus, Study
from scaleproof.report.checked import CheckedScript, measure_checked
from scaleproof.report.curves import Curve, measure_curves
from scaleproof.report.observed import ObservedScript, measure_observed
from scaleproof.report.quality import QualityComparison, compare_quality
from scaleproof.report.timing import Timing, measure_timing
from scaleproof.verdict.answers import Verdict


@final
class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run that was asked for, and how it ended."""

    name: str
    arm: str
    seed: int
    status: RunStatus


@final
class ArmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train, as its runs' manifests tell it; None where no run wrote one.

    ``strategy`` of a script is how it was seen to be parallel; ``label`` is what tells the arms
    apart: a recipe's strategy, a script's name.
    """

    name: str
    role: str
    label: str
    strategy: str
    num_devices: int
    num_ranks: int | None
    batch_per_device: int | None
    global_batch_size: int | None
    learning_rate: LearningRate | None
    strategy_settings: dict[str, str | int | float | bool]
    device_names: tuple[str, ...]
    backend: str | None


@final
class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One property of the runs: its distinct values over all of them, one unless they differ."""

    key: str
    label: str
    values: tuple[str, ...]


@final
class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The one input of every format."""

    target: str
    kind: Literal["recipe", "script"]
    command: tuple[str, ...]
    created_at: str
    """ISO 8601, UTC."""
    seeds: tuple[int, ...]
    num_epochs: int
    share_device: bool
    verdict: Verdict
    arms: tuple[ArmSummary, ...]
    """The baseline, when there is one, then the candidate."""
    runs: tuple[RunSummary, ...]
    timing: Timing
    quality: QualityComparison | None
    curves: tuple[Curve, ...]
    environment: tuple[Fact, ...]
    observed: ObservedScript | None
    """None for a recipe."""
    checked: CheckedScript | None
    """None for a study that is no check."""

    @property
    def is_alone(self) -> bool:
        """A script was observed, with nothing to compare it with."""
        return self.kind == "script" and self.baseline is None

    @property
    def baseline(self) -> ArmSummary | None:
        return next((arm for arm in self.arms if arm.role == "baseline"), None)

    @property
    def candidate(self) -> ArmSummary:
        return next(arm for arm in self.arms if arm.role == "candidate")


def summarise(study: Study, verdict: Verdict, *, confidence: float = 0.95) -> Summary:
    """Gather what a report says about a judged study; ``confidence`` is that of the profile.

    Raises ``EvidenceError`` when the evidence is damaged or its runs can't be compared.
    """
    request = study.request
    arms = sorted(request.arms, key=lambda arm: arm.role != "baseline")
    return Summary(
        target=request.target,
        kind=request.kind,
        command=request.command,
        created_at=_utc(request.created_at_unix_s),
        seeds=request.seeds,
        num_epochs=request.num_epochs,
        share_device=request.share_device,
        verdict=verdict,
        arms=tuple(_summarise_arm(study, arm) for arm in arms),
        runs=tuple(
            RunSummary(name=run.name, arm=run.arm.name, seed=run.seed, status=run.status)
            for run in study.runs.values()
        ),
        timing=measure_timing(study, confidence),
        quality=compare_quality(study),
        curves=measure_curves(study),
        environment=_environment(study),
        observed=measure_observed(study),
        checked=measure_checked(study),
    )


def _summarise_arm(study: Study, arm: Arm) -> ArmSummary:
    manifests = [
        run.manifest
        for run in study.runs.values()
        if run.arm.name == arm.name and run.manifest is not None
    ]
    first = manifests[0] if manifests else None
    return ArmSummary(
        name=arm.name,
        role=arm.role,
        label=arm.name if study.is_script else arm.strategy,
        strategy=first.strategy if first and study.is_script else arm.strategy,
        num_devices=arm.num_devices,
        num_ranks=first.num_ranks if first else None,
        batch_per_device=first.batch_per_device if first else None,
        global_batch_size=first.global_batch_size if first else None,
        learning_rate=first.learning_rate if first else None,
        strategy_settings=first.strategy_settings if first else {},
        device_names=tuple(
            dict.fromkeys(name for manifest in manifests for name in manifest.device_names)
        ),
        backend=first.backend if first else None,
    )


_FACTS: tuple[tuple[str, str, Callable[[Manifest], str]], ...] = (
    ("target", "Target", lambda m: m.target),
    ("data", "Data", lambda m: _data_words(m)),
    ("num_parameters", "Parameters", lambda m: f"{m.num_parameters:,}"),
    ("optimizer", "Optimizer", lambda m: m.optimizer),
    ("precision", "Precision", lambda m: m.precision),
    ("num_epochs", "Epochs", lambda m: str(m.num_epochs)),
    ("seed", "Seeds", lambda m: str(m.seed)),
    ("device_kind", "Device kind", lambda m: m.device_kind),
    ("device_names", "Devices", lambda m: ", ".join(dict.fromkeys(m.device_names))),
    ("threads_per_rank", "Threads per rank", lambda m: str(m.threads_per_rank)),
    ("host", "Host", lambda m: m.host),
    ("platform", "Platform", lambda m: m.platform),
    ("python_version", "Python", lambda m: m.python_version),
    ("torch_version", "torch", lambda m: m.torch_version),
    ("scaleproof_version", "scaleproof", lambda m: m.scaleproof_version),
    ("target_digest", "Digest of the code", lambda m: m.target_digest),
    ("data_digest", "Digest of the data", lambda m: m.data_digest),
)


def _environment(study: Study) -> tuple[Fact, ...]:
    manifests = [run.manifest for run in study.runs.values() if run.manifest is not None]
    if not manifests:
        return ()
    facts = (
        Fact(key=key, label=label, values=tuple(dict.fromkeys(map(words, manifests))))
        for key, label, words in _FACTS
    )
    return tuple(fact for fact in facts if any(fact.values))


def _data_words(manifest: Manifest) -> str:
    words = (
        f"{manifest.num_train_samples:,} training and {manifest.num_evaluation_samples:,} "
        "evaluation samples"
    )
    num_classes = len(manifest.class_names)
    return f"{words} in {num_classes:,} classes" if num_classes else words


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, tz=UTC).isoformat(timespec="seconds")
