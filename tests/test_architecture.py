"""The architecture, held by tests: who may import whom, and what may stand where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "scaleproof"

# From left to right: a part may import only what stands before it (and itself).
JUDGE_LAYERS = ("errors", "evidence", "stats", "checks", "verdict", "report")
OBSERVE_LAYERS = ("errors", "evidence", "recipes", "strategies", "observe", "train", "launch")
ROOTS = ("cli", "cli_app", "cli_options", "cli_scripts", "cli_show")  # may import anything
ROOT = ROOTS[0]  # so may the package itself, lazily

MAX_LINES = 400

ENVIRONMENT_READERS = (
    "launch/environment.py",
    # It runs where the package can't be imported, and must say so somewhere.
    "launch/bootstrap/sitecustomize.py",
)

MODULES = sorted(SOURCE.rglob("*.py"))


def part_of(module: str) -> str:
    """``scaleproof.stats.speed`` -> ``stats``. The package itself counts as the first layer for
    those who import it (it holds the version), and as the root for what it imports."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "errors"


def imports_of(path: Path) -> set[str]:
    """Every module of ours that ``path`` imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "scaleproof" or name.startswith("scaleproof.")}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def allowed(part: str) -> set[str]:
    for layers in (JUDGE_LAYERS, OBSERVE_LAYERS):
        if part in layers:
            return set(layers[: layers.index(part) + 1])
    assert part in ROOTS
    return {*JUDGE_LAYERS, *OBSERVE_LAYERS, *ROOTS}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_only_to_the_left(path: Path):
    part = ROOT if module_name(path) == "scaleproof" else part_of(module_name(path))
    for imported in imports_of(path):
        assert part_of(imported) in allowed(part), f"{path} imports {imported}"


def test_every_part_has_a_layer():
    parts = {part_of(module_name(path)) for path in MODULES} - {*ROOTS}
    assert parts == {*JUDGE_LAYERS, *OBSERVE_LAYERS}


def test_evidence_imports_nothing_of_ours_but_errors():
    for path in (SOURCE / "evidence").glob("*.py"):
        assert {part_of(name) for name in imports_of(path)} <= {"evidence", "errors"}


def test_modules_form_no_cycle():
    names = {module_name(path): path for path in MODULES}
    edges = {name: imports_of(path) & names.keys() for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for following in edges[name] - {name, "scaleproof"}:
                visit(following, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_stay_short(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_environment_is_read_in_one_place(path: Path):
    reads = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    ]
    if path.relative_to(SOURCE).as_posix() not in ENVIRONMENT_READERS:
        assert not reads, f"{path} reads the environment in line {reads[0].lineno}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_is_unpickled(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "joblib"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert ast.unparse(node.func) != "torch.load"
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle") == "False"


def _runs(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_scaleproof_does_not_import_torch():
    _runs("import sys, scaleproof; assert 'torch' not in sys.modules")


REFUSE_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class RefuseTorch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, RefuseTorch())
"""


def test_the_judge_half_works_where_torch_is_absent():
    modules = [
        module_name(path)
        for path in MODULES
        if part_of(module_name(path)) in {*JUDGE_LAYERS, *ROOTS}
    ]
    _runs(REFUSE_TORCH + "\n".join(f"import {module}" for module in modules))
