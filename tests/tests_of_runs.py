"""Runs small studies in earnest, for the tests that need real ranks."""

from pathlib import Path
from typing import Any

from scaleproof.evidence.paths import StudyPaths
from scaleproof.evidence.study import Study, load_study
from scaleproof.launch.arms import Options, plan_study
from scaleproof.launch.conduct import Watcher, conduct
from scaleproof.recipes.find import BUILT_IN

SMALL_RECIPES = Path(__file__).parent / "distributed" / "small_recipes.py"


def run_study(root: Path, recipe: str, **changes: Any) -> Study:
    """Compare two sharing devices with one, on CPU, unless ``changes`` say otherwise."""
    options = {
        "target": recipe if recipe in BUILT_IN else f"{SMALL_RECIPES}:{recipe}",
        "strategy": "ddp",
        "num_devices": 2,
        "with_baseline": True,
        "device_kind": "cpu",
        "share_device": True,  # the machine may have one core
    }
    plan = plan_study(Options(**{**options, **changes}))
    conduct(StudyPaths(root), plan.request, plan.rounds, Watcher())
    return load_study(root)
