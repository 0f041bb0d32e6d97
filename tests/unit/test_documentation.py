"""What the documents show is true: examples run, links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

import scaleproof
from tests_of_runs import run_study

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("**/*.md")]


@pytest.mark.distributed
def test_the_example_recipe_trains(tmp_path: Path):
    text = (REPOSITORY / "docs" / "recipe.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    example = tmp_path / "wine.py"
    example.write_text(code)
    study = run_study(tmp_path / "study", "sound", target=f"{example}:recipe")
    (pair,) = study.pairs
    final = pair.baseline.final_evaluation
    assert len(final) == 60
    assert (final["prediction"] == final["target"]).mean() > 0.9


def test_public_names():
    assert scaleproof.Recipe.__name__ == "Recipe"
    assert set(scaleproof.__all__) == {
        *("Data", "Recipe", "Split", "__version__"),
        *("report_metrics", "report_predictions"),
    }
    with pytest.raises(AttributeError, match="has no attribute 'Recipes'"):
        _ = scaleproof.Recipes  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("page", ["checks", "faults"])
def test_a_generated_page_is_up_to_date(page: str):
    """When it is not: python docs/generate_{page}.py."""
    path = REPOSITORY / "docs" / f"generate_{page}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.generate()
