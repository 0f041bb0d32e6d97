"""Runs first in every Python process of an observed command; Python imports it by its name.

It waits for torch to be imported, then hands over to ``scaleproof.launch.attach``. It must do no
harm wherever it lands: in another Python (3.9 or later), without this package, in a launcher. So
it needs the standard library only, prints nothing and raises nothing.
"""
# pathlib is slow to load, and nothing may escape from here:
# ruff: noqa: PTH100, PTH103, PTH118, PTH120, PTH123, BLE001, ARG002

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _note(what, why):
    """Leave one line that says what could not be observed, and why.

    Where the package can't be imported, nobody else can say where to.
    """
    try:
        import json

        folder = os.path.join(os.fsdecode(os.environb[b"SCALEPROOF_RUN"]), "processes")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{os.getpid()}.trouble.jsonl")
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "why": why}) + "\n")
    except Exception:
        return


def _described(error):
    return f"{type(error).__name__}: {error}"


class _WhenTorchComes:
    """A finder that lets torch be imported as ever, and attaches when that is done."""

    def __init__(self):
        self._is_looking = False

    def find_spec(self, name, path=None, target=None):
        if name != "torch" or self._is_looking:
            return None
        self._is_looking = True
        try:
            from importlib.util import find_spec

            spec = find_spec("torch")
            if spec is None or spec.loader is None:
                return None
            loader, load = spec.loader, spec.loader.exec_module

            def load_and_attach(module):
                load(module)
                self._done()

            loader.exec_module = load_and_attach
        except Exception:
            return None  # no torch here, or none to be found like this: as without us
        finally:
            self._is_looking = False
        return spec

    def _done(self):
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _attach()


def _attach():
    try:
        from scaleproof.launch.attach import attach
        from scaleproof.launch.environment import observed_facts, observed_run

        paths = observed_run()
        if paths is not None:
            attach(paths, observed_facts())
    except Exception as error:
        _note("process", _described(error))


def _run_shadowed():
    """Run the ``sitecustomize`` that would have been imported without us, under its own name.

    What it raises is reported by Python as ever.
    """
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'sitecustomize'", name="sitecustomize")
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _is_here(entry):
    return isinstance(entry, str) and entry != "" and os.path.abspath(entry) == _HERE


try:
    sys.path[:] = [entry for entry in sys.path if not _is_here(entry)]
    sys.meta_path.insert(0, _WhenTorchComes())
except Exception as error:
    _note("process", _described(error))
_run_shadowed()
