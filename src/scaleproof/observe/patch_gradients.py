"""Listens to what changes gradients between backward and the step, and to the group's end."""

from typing import Any

import torch
import torch.distributed as dist

from scaleproof.observe import current


def patch_clipping() -> None:
    def around(original: Any) -> Any:
        def clip(*args: Any, **kwargs: Any) -> Any:
            norm = original(*args, **kwargs)
            if current.observer is not None:
                limit = kwargs.get("max_norm", kwargs.get("clip_value"))
                current.observer.clipped(norm, args[1] if limit is None else limit)
            return norm

        return clip

    for name in ("clip_grad_norm_", "clip_grad_value_"):
        current.replace(torch.nn.utils.clip_grad, name, around)
        setattr(torch.nn.utils, name, getattr(torch.nn.utils.clip_grad, name))


def patch_scaler() -> None:
    from torch.amp.grad_scaler import GradScaler

    def scaling(original: Any) -> Any:
        def scale(self: Any, *args: Any, **kwargs: Any) -> Any:
            scaled = original(self, *args, **kwargs)
            if current.observer is not None and self.is_enabled():
                current.observer.loss_scaled(self)
            return scaled

        return scale

    def stepping(original: Any) -> Any:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            observer = current.observer
            if observer is None:
                return original(self, *args, **kwargs)
            num_before = observer.steps_done
            result = original(self, *args, **kwargs)
            observer.scaler_stepped(num_before)
            return result

        return step

    current.replace(GradScaler, "scale", scaling)
    current.replace(GradScaler, "step", stepping)


def patch_process_group() -> None:
    if not dist.is_available():
        return

    def around(original: Any) -> Any:
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            if current.observer is not None:
                current.observer.group_is_going()
            return original(*args, **kwargs)

        return destroy_process_group

    def waiting(original: Any) -> Any:
        def barrier(*args: Any, **kwargs: Any) -> Any:
            observer = current.observer
            if observer is None:
                return original(*args, **kwargs)
            before = observer.group.sequence()
            result = original(*args, **kwargs)
            observer.group.leave_out(observer.group.sequence() - before)  # it carries no figure
            return result

        return barrier

    import torch.distributed.distributed_c10d as c10d

    for name, patch in (("destroy_process_group", around), ("barrier", waiting)):
        current.replace(c10d, name, patch)
        setattr(dist, name, getattr(c10d, name))
