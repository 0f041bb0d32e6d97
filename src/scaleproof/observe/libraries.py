"""Listens to the libraries that compute figures of quality: torchmetrics, Lightning, transformers.

Each is patched when it has been imported, if it ever is.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, final

from scaleproof.observe import current
from scaleproof.observe.metrics import MetricsReceiver

_NOT_QUALITY = ("_runtime", "_per_second", "epoch")
"""Ends of names of what the Trainer tells besides."""

_receiver: MetricsReceiver | None = None


def listen(receiver: MetricsReceiver | None) -> None:
    """Send what the libraries compute from now on to ``receiver``."""
    global _receiver
    _receiver = receiver


def receiver() -> MetricsReceiver | None:
    return _receiver


def watch_imports() -> None:
    """Patch each library when it is imported."""
    for name, patch in _PATCHES.items():
        if name in sys.modules:
            patch(sys.modules[name])
    _watch()


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Besides, ``patch`` the module ``name``."""
    _PATCHES[name] = patch
    if name in sys.modules:
        patch(sys.modules[name])
    _watch()


def _watch() -> None:
    """Once, in front of every other finder."""
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


@final
class _AfterImport(MetaPathFinder):
    """Lets the real loader run, then patches."""

    def __init__(self) -> None:
        self._is_looking = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol of finders
        target: ModuleType | None = None,  # noqa: ARG002
        /,
    ) -> ModuleSpec | None:
        patch = _PATCHES.get(fullname)
        if patch is None or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_looking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            patch(module)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


def _patch_torchmetrics(module: ModuleType) -> None:
    original = module.Metric._wrap_compute

    @functools.wraps(original)
    def _wrap_compute(self: Any, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = original(self, compute)

        @functools.wraps(compute)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            value = wrapped(*args, **kwargs)
            # The value of a single batch is not restored afterwards, that of an epoch is.
            if _receiver is not None and self._should_unsync:
                name = type(self).__name__
                metrics = value if isinstance(value, Mapping) else {name: value}
                _receiver.record("torchmetrics", metrics)
            return value

        return recorded

    module.Metric._wrap_compute = _wrap_compute


def _patch_lightning(module: ModuleType) -> None:
    original = module._EvaluationLoop.on_run_end

    @functools.wraps(original)
    def on_run_end(self: Any) -> Any:
        outputs = original(self)
        if _receiver is not None and not self.trainer.sanity_checking:
            for metrics in outputs:
                _receiver.record("lightning", metrics, epoch=self.trainer.current_epoch)
        return outputs

    module._EvaluationLoop.on_run_end = on_run_end


def _patch_transformers(module: ModuleType) -> None:
    original = module.Trainer.evaluate

    @functools.wraps(original)
    def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = original(self, *args, **kwargs)
        if _receiver is not None:
            figures = {k: v for k, v in metrics.items() if not k.endswith(_NOT_QUALITY)}
            _receiver.record("transformers", figures)
        return metrics

    module.Trainer.evaluate = evaluate


def _patch_accelerate(module: ModuleType) -> None:
    original = module.Accelerator.gather_for_metrics

    @functools.wraps(original)
    def gather_for_metrics(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current.observer is not None:
            current.observer.loaders.padding_dropped()
        return original(self, *args, **kwargs)

    module.Accelerator.gather_for_metrics = gather_for_metrics


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "torchmetrics.metric": _patch_torchmetrics,
    "lightning.pytorch.loops.evaluation_loop": _patch_lightning,
    "pytorch_lightning.loops.evaluation_loop": _patch_lightning,
    "transformers.trainer": _patch_transformers,
    "accelerate.accelerator": _patch_accelerate,
}
