"""Listens, for ``scaleproof check``, to what ``observe`` need not: backwards one by one, clipping
before it happens, what is drawn between batches."""

import inspect
from typing import Any

import torch
from torch.utils.data.dataloader import (
    _BaseDataLoaderIter,
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from scaleproof.observe import current
from scaleproof.observe.replay.recorder import Recorder


def patch_check(checking: Any) -> None:
    """``checking``: the ``Checking`` of this process."""

    def backward_around(original: Any) -> Any:
        def backward(*args: Any, **kwargs: Any) -> Any:
            close_ups = checking.close_ups
            if close_ups is None:
                return original(*args, **kwargs)
            is_outermost = close_ups.backward_begins()
            if is_outermost:
                checking.draws.begin_backward()
            try:
                result = original(*args, **kwargs)
            finally:
                close_ups.backward_ended()
            if is_outermost and checking.replayer is not None:
                checking.replayer.backward_ended()
            return result

        return backward

    current.replace(torch.autograd, "backward", backward_around)

    def clip_around(original: Any) -> Any:
        signature = inspect.signature(original)

        def clip(*args: Any, **kwargs: Any) -> Any:
            close_ups = checking.close_ups
            if close_ups is None:
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments["parameters"]
            parameters = [given] if isinstance(given, torch.Tensor) else list(given)
            bound.arguments["parameters"] = parameters
            with checking.guarded():
                close_ups.clipping_begins(parameters)
            return original(*bound.args, **bound.kwargs)

        return clip

    for name in ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_"):
        if hasattr(torch.nn.utils, name):
            current.replace(torch.nn.utils, name, clip_around)
            setattr(torch.nn.utils.clip_grad, name, getattr(torch.nn.utils, name))

    from torch.amp.grad_scaler import GradScaler

    def scaling(original: Any) -> Any:
        def scale(self: Any, *args: Any, **kwargs: Any) -> Any:
            scaled = original(self, *args, **kwargs)
            if checking.close_ups is not None and self.is_enabled():
                checking.close_ups.loss_scaled(self)
            return scaled

        return scale

    def unscaling(original: Any) -> Any:
        def unscale_(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if checking.close_ups is not None:
                checking.close_ups.unscaled()
            return result

        return unscale_

    current.replace(GradScaler, "scale", scaling)
    current.replace(GradScaler, "unscale_", unscaling)

    def giving(original: Any) -> Any:
        def __next__(self: Any) -> Any:
            close_ups, recorder = checking.close_ups, checking.recorder
            if close_ups is None:
                return original(self)
            close_ups.batch_asked()
            checking.draws.is_open = False  # what the data set draws is not the step's
            batch = original(self)
            checking.draws.is_open = torch.is_grad_enabled()
            if recorder is not None and torch.is_grad_enabled():
                with checking.guarded():
                    _record(recorder, self, batch)
            close_ups.batch_given()
            return batch

        return __next__

    current.replace(_BaseDataLoaderIter, "__next__", giving)

    def beginning(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            close_ups = checking.close_ups
            checking.draws.is_open = False
            if close_ups is not None:
                close_ups.batch_asked()
            original(self, *args, **kwargs)
            if close_ups is not None:
                close_ups.batch_given()

        return __init__

    for kind in (_SingleProcessDataLoaderIter, _MultiProcessingDataLoaderIter):
        current.replace(kind, "__init__", beginning)


def _record(recorder: Recorder, iterator: Any, batch: Any) -> None:
    this = getattr(iterator, "_scaleproof_pass", None)
    if this is not None:
        recorder.batch_given(iterator, batch, this.num_expected, this.info.where)
