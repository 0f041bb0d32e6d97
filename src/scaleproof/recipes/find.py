"""From the name on the command line to a recipe."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from scaleproof.errors import UsageError
from scaleproof.evidence.writer import DIGEST_BYTES
from scaleproof.recipes.recipe import Recipe

BUILT_IN = ("cifar10", "digits", "fraud")


def find_recipe(target: str) -> Recipe:
    """The recipe called ``target``: a built-in name, or ``path/to/file.py:function``.

    A built-in with several recipes takes a function too: ``fraud:recipe_weighted``.

    Raises ``UsageError`` when there is none; what the user's file itself raises passes through.
    """
    name, _, function_name = target.partition(":")
    if name in BUILT_IN:
        path: object = f"the recipe file {name}"
        module = importlib.import_module(f"scaleproof.recipes.{name}")
        function_name = function_name or "recipe"
    else:
        path, function_name = _split(target)
        module = _import_file(path)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = sorted(
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        )
        raise UsageError(
            f"{path} has no function {function_name!r}; it has {', '.join(functions) or 'none'}. "
            f"Name the function that returns the Recipe, after the colon."
        )
    recipe = function()
    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"{target} returned {type(recipe).__name__}, expected a scaleproof.Recipe. "
            "docs/recipe.md has a complete example."
        )
    return recipe


def source_digest(target: str) -> str:
    """BLAKE2b-128 of the source text that defines the recipe.

    A user's file alone, or all built-in recipes. What the file imports is not covered.
    """
    if target.partition(":")[0] in BUILT_IN:
        files = sorted(Path(__file__).parent.glob("*.py"))
    else:
        files = [_split(target)[0]]
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def resolve_target(target: str) -> str:
    """The target with an absolute path, so that it means the same in another process."""
    if target.partition(":")[0] in BUILT_IN:
        return target
    path, function_name = _split(target)
    return f"{path}:{function_name}"


def _split(target: str) -> tuple[Path, str]:
    file, separator, function_name = target.rpartition(":")
    if not separator or not file.endswith(".py"):
        close = difflib.get_close_matches(target, BUILT_IN, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"there is no recipe {target!r}.{hint} Expected one of {', '.join(BUILT_IN)}, or your "
            "own as path/to/file.py:function."
        )
    path = Path(file).resolve()
    if not path.is_file():
        raise UsageError(
            f"there is no file {path} (from {target!r}). Expected path/to/file.py:function."
        )
    return path, function_name


def _import_file(path: Path) -> ModuleType:
    name = f"scaleproof_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the file ends in .py and exists
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling of spawned workers look it up
    sys.path.insert(0, str(path.parent))  # its neighbours can be imported, as in a script
    spec.loader.exec_module(module)
    return module
