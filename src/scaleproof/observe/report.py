"""What a script may say of its quality itself: two calls that do nothing when nobody observes it.

An observed process gives them somewhere to go with ``set_receiver``. A call that can't be
understood is left out and remembered, and warned of once: it never ends a training.
"""

import contextlib
import operator
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from scaleproof.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_CLASS = 2**31 - 1
_MAX_NUMBER = 2**63 - 1


class Receiver(Protocol):
    """Where reports go. ``step`` and ``epoch`` are None when the script did not say."""

    def metrics(
        self, epoch: int | None, step: int | None, metrics: Mapping[str, float], /
    ) -> None: ...

    def predictions(
        self,
        targets: "NDArray[np.int64]",
        predictions: "NDArray[np.int64]",
        sample_ids: "NDArray[np.int64] | None",
        epoch: int | None,
        /,
    ) -> None:
        """Each array has the shape ``(num_samples,)``."""
        ...


_receiver: Receiver | None = None
_dropped: dict[tuple[str, str], str] = {}  # by function and argument: the first reason


def set_receiver(receiver: Receiver | None) -> None:
    """Send what is reported from now on to ``receiver``; None: nowhere."""
    global _receiver
    _receiver = receiver
    _dropped.clear()


def dropped() -> tuple[str, ...]:
    """Why reports to this receiver were left out: the first reason for each argument."""
    return tuple(_dropped.values())


def report_metrics(epoch: int | None = None, step: int | None = None, **metrics: Any) -> None:
    """Report figures of quality to whoever observes this training: ``loss=0.31, accuracy=0.9``.

    ``epoch`` counts from 0 and is the epoch just trained; ``step`` counts optimizer steps from 1.
    Both may be left out. A metric is one number: a Python, NumPy or torch number, or a tensor of
    one element, which may be on any device; a share is best given from 0 to 1. Call it on every
    rank, with what that rank has: ranks that disagree are worth knowing of.

    Does nothing when the script is not observed; then the arguments are not even looked at. When
    it is, an argument that can't be used is left out, with a ``UserWarning`` the first time and a
    note in the report; nothing is raised.
    """
    if _receiver is None:
        return
    try:
        epoch, step = _count("epoch", epoch), _count("step", step)
        if not metrics:
            raise UsageError("no metric was given. Name at least one, like loss=0.31.")
    except UsageError as error:
        _drop("report_metrics", "", error)
        return
    understood: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            understood[name] = _number(name, value)
        except UsageError as error:
            _drop("report_metrics", name, error)
    if understood:
        _receiver.metrics(epoch, step, understood)


def report_predictions(
    *, targets: Any, predictions: Any, sample_ids: Any = None, epoch: int | None = None
) -> None:
    """Report what a classifier predicted, for exact metrics by class and comparisons by sample.

    ``targets`` and ``predictions``: class numbers from 0, shape ``(num_samples,)``; torch tensors
    on any device, NumPy arrays or lists, of integers, bools or whole floats. ``sample_ids``:
    integers of the same shape, the index of each sample in the evaluation data set: with them, a
    sample scored by two ranks counts once, and two trainings are compared sample by sample.
    ``epoch`` counts from 0 and is the epoch just trained.

    Call it on every rank with what that rank scored, for a whole evaluation or batch by batch.

    Does nothing when the script is not observed; then the arguments are not even looked at. When
    it is, arguments that can't be used are left out, with a ``UserWarning`` the first time and a
    note in the report; nothing is raised.
    """
    if _receiver is None:
        return
    try:
        epoch = _count("epoch", epoch)
        target_classes = _classes("targets", targets)
        predicted = _classes("predictions", predictions)
        _refuse_other_length("predictions", predicted, target_classes)
        ids = None
        if sample_ids is not None:
            ids = _whole_numbers("sample_ids", sample_ids)
            _refuse_other_length("sample_ids", ids, target_classes)
    except UsageError as error:
        _drop("report_predictions", "", error)
        return
    _receiver.predictions(target_classes, predicted, ids, epoch)


def _drop(function: str, argument: str, error: UsageError) -> None:
    """Remember why a report was left out, and warn the first time."""
    if (function, argument) in _dropped:
        return
    reason = f"scaleproof.{function}: {error}"
    _dropped[function, argument] = reason
    # Where warnings are errors, it must not end the training either.
    with contextlib.suppress(UserWarning):
        warnings.warn(f"{reason} It was left out.", UserWarning, stacklevel=3)


def _count(name: str, value: Any) -> int | None:
    """An ``epoch`` or a ``step``."""
    if value is None:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if count < 0 or isinstance(value, bool):
        raise UsageError(
            f"{name} is {_shown(value)}, expected a whole number from 0 on, or nothing."
        )
    return count


def _number(name: str, value: Any) -> float:
    """One metric; NaN and infinity are numbers."""
    array = _array(name, value)
    if array.size != 1:
        raise UsageError(
            f"the metric {name} has the shape {array.shape}, expected one number. Reduce it first, "
            f"for example with {name}.mean()."
        )
    return float(array.reshape(()))


def _classes(name: str, value: Any) -> "NDArray[np.int64]":
    """Class numbers, shape ``(num_samples,)``."""
    classes = _whole_numbers(name, value)
    if classes.size and not 0 <= classes.min() <= classes.max() <= _MAX_CLASS:
        wrong = classes.min() if classes.min() < 0 else classes.max()
        raise UsageError(
            f"{name} has the class {wrong}, expected 0 to {_MAX_CLASS}. Count classes from 0, and "
            "leave out samples without a label."
        )
    return classes


def _whole_numbers(name: str, value: Any) -> "NDArray[np.int64]":
    """Shape ``(num_samples,)``, a copy: the script may write into its own arrays later."""
    import numpy as np

    array = _array(name, value)
    if array.ndim != 1:
        hint = (
            "Give the classes, not their scores: scores.argmax(dim=1), or scores > 0.5 for one "
            "score."
            if array.ndim == 2
            else "Flatten it first."
        )
        raise UsageError(
            f"{name} has the shape {array.shape}, expected (num_samples,): one number per sample. "
            f"{hint}"
        )
    if array.dtype.kind == "f":
        fractions = array[~np.equal(np.mod(array, 1), 0)]  # NaN and infinity are among them
        if fractions.size:
            raise UsageError(
                f"{name} has {fractions[0]:g}, expected whole numbers. Give classes, not "
                "probabilities: scores > 0.5, or scores.argmax(dim=1)."
            )
    if array.size and not -_MAX_NUMBER <= array.min() <= array.max() <= _MAX_NUMBER:
        raise UsageError(f"{name} has numbers beyond 64 bits, expected at most {_MAX_NUMBER}.")
    return array.astype(np.int64)


def _refuse_other_length(
    name: str, array: "NDArray[np.int64]", targets: "NDArray[np.int64]"
) -> None:
    if len(array) != len(targets):
        raise UsageError(
            f"{name} has {len(array)} entries and targets {len(targets)}, expected as many. Give "
            "one of each per sample."
        )


def _array(name: str, value: Any) -> "NDArray[Any]":
    """Real numbers as a NumPy array, whatever holds them; torch is asked, never imported."""
    import numpy as np

    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if value.is_floating_point():
                value = value.double()  # NumPy has no bfloat16
        array = np.asarray(value)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name} is {_shown(value)}, which can't be read as numbers: {error}. Give a number, a "
            "tensor or an array."
        ) from error
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{name} is {_shown(value)}, expected real numbers.")
    return array


def _shown(value: Any) -> str:
    """Short, and never by the object's own words: those may be of any length or raise."""
    if isinstance(value, int | float | complex | str) and len(str(value)) <= 40:
        return repr(value)
    return f"of the type {type(value).__name__}"
