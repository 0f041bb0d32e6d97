"""The folder of a new study."""

import time
from pathlib import Path

from scaleproof.errors import UsageError
from scaleproof.evidence.paths import StudyPaths


def claim_folder(out: Path | None, target: str) -> StudyPaths:
    """The folder of a new study, made; ``UsageError`` when one is there already."""
    if out is None:
        stem = Path(target.partition(":")[0]).stem
        moment = time.strftime("%Y%m%d-%H%M%S")
        out = Path("scaleproof-studies") / f"{stem}-{moment}"
    paths = StudyPaths(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise UsageError(
            f"can't make the study folder {out}: {error.strerror}. Name a folder you may write "
            "to with --out."
        ) from error
    if occupied:
        raise UsageError(
            f"the study folder {out} is not empty. Name a new one with --out, or remove it; "
            "scaleproof judge reads the study that is there."
        )
    return paths
