"""Does training on N devices run faster than on one, learn as well, and is it sound?

What a recipe is made of comes from here, and what a script may report of itself; importing this
package does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaleproof.observe.report import report_metrics as report_metrics
    from scaleproof.observe.report import report_predictions as report_predictions
    from scaleproof.recipes.recipe import Data as Data
    from scaleproof.recipes.recipe import Recipe as Recipe
    from scaleproof.recipes.recipe import Split as Split

__version__ = "0.1.0"

__all__ = ["Data", "Recipe", "Split", "__version__", "report_metrics", "report_predictions"]


def __getattr__(name: str) -> Any:
    """Import what needs torch, or is seldom needed, when it is first asked for (PEP 562)."""
    if name in ("Data", "Recipe", "Split"):
        from scaleproof.recipes import recipe

        return getattr(recipe, name)
    if name in ("report_metrics", "report_predictions"):
        from scaleproof.observe import report

        return getattr(report, name)
    raise AttributeError(f"module 'scaleproof' has no attribute {name!r}")
