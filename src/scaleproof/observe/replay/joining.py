"""One batch out of several: what all ranks were given, put together.

Where the items have ids, the script's own data set and ``collate_fn`` make the joint batch: they
know how to pad and to stack. It is then given the ranks' own values where its differ, as data sets
draw random numbers (augmentation). A stream can't be asked again: its recorded batches are put
behind one another.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_MAX_DEPTH = 6


class UnjoinableError(Exception):
    """The batches can't be put together; the message says why, for the user."""


def leaves(batch: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a batch, with its path, in order."""
    if isinstance(batch, Tensor):
        if not hasattr(batch, "placements"):
            yield path, batch
    elif path.count("/") < _MAX_DEPTH:
        for name, part in _parts(batch):
            yield from leaves(part, f"{path}/{name}")


def with_leaves(batch: Any, values: Mapping[str, Tensor], path: str = "") -> Any:
    """The batch with other tensors at some paths; a copy as far as needed."""
    if isinstance(batch, Tensor):
        return values.get(path, batch)
    if path.count("/") >= _MAX_DEPTH:
        return batch
    parts = {name: with_leaves(part, values, f"{path}/{name}") for name, part in _parts(batch)}
    if not parts:
        return batch
    if isinstance(batch, Mapping):
        changed = copy.copy(batch)
        for key in batch:
            changed[key] = parts[str(key)]  # type: ignore[index]
        return changed
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*parts.values())
    if isinstance(batch, list | tuple):
        return type(batch)(parts.values())
    changed = copy.copy(batch)
    for name, part in parts.items():
        object.__setattr__(changed, name, part)
    return changed


def _parts(batch: Any) -> list[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        return [(str(key), part) for key, part in batch.items()]
    if isinstance(batch, list | tuple):
        return [(str(index), part) for index, part in enumerate(batch)]
    if is_dataclass(batch) and not isinstance(batch, type):
        return [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    attributes = getattr(batch, "__dict__", None)
    if attributes and type(batch).__module__ not in ("builtins", "numpy"):
        return [(name, part) for name, part in attributes.items() if isinstance(part, Tensor)]
    return []


def join_by_ids(template: Any, batches: Sequence[Mapping[str, Tensor]]) -> Any:
    """``template`` was made from all items together, in the order of ``batches``; the values of
    ``batches`` stand where they differ. Raises ``UnjoinableError``."""
    known = dict(leaves(template))
    overwritten = {
        path: _over(leaf, [b.get(path) for b in batches]) for path, leaf in known.items()
    }
    differing = {
        path
        for path, values in overwritten.items()
        if values is not None and not _is_equal(values, known[path])
    }
    has_floats = any(leaf.is_floating_point() for leaf in known.values())
    if has_floats and not any(known[path].is_floating_point() for path in differing):
        return template  # offsets into the joint batch, which the template has right
    if not differing:
        return template
    lost = [path for path, values in overwritten.items() if values is None and known[path].dim()]
    if lost:
        raise UnjoinableError(
            "items are not the same when they are fetched again, and the ranks' batches don't fit "
            f"together at {lost[0] or 'the whole batch'}"
        )
    return with_leaves(template, {path: v for path, v in overwritten.items() if v is not None})


def join_recorded(
    template: Any, batches: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]
) -> Any:
    """Batches of a stream behind one another; ``template`` is any batch of it, ``sizes`` are the
    numbers of items. Raises ``UnjoinableError``."""
    values: dict[str, Tensor] = {}
    for path, _ in leaves(template):
        parts = [batch.get(path) for batch in batches]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            raise UnjoinableError("its batches are not all built alike")
        is_by_row = all(
            part.dim() > 0 and len(part) == size for part, size in zip(found, sizes, strict=True)
        )
        if is_by_row and len({part.shape[1:] for part in found}) == 1:
            values[path] = torch.cat(found)
        elif all(_is_equal(part, found[0]) for part in found):
            values[path] = found[0]
        else:
            shapes = " and ".join(str(tuple(part.shape)) for part in found[:2])
            raise UnjoinableError(
                f"the ranks' batches of a stream have shapes that don't fit together: {shapes}"
            )
    return with_leaves(template, values)


def _over(leaf: Tensor, parts: Sequence[Tensor | None]) -> Tensor | None:
    """``leaf`` with the rows of ``parts`` instead of its own, where padding allows; None where the
    shapes don't fit."""
    found = [part for part in parts if part is not None and part.dim() == leaf.dim() > 0]
    if len(found) < len(parts) or sum(len(part) for part in found) != len(leaf):
        return None
    if any(part.dtype != leaf.dtype for part in found):
        return None
    result, first = leaf.clone(), 0
    for part in found:
        rows = result[first : first + len(part)]
        first += len(part)
        if part.shape == rows.shape:
            rows.copy_(part)
            continue
        if any(n > m for n, m in zip(part.shape, rows.shape, strict=True)):
            return None
        begin = tuple(slice(0, n) for n in part.shape)
        end = tuple(slice(m - n, m) for n, m in zip(part.shape, rows.shape, strict=True))
        at_begin, at_end = (int((rows[place] == part).sum()) for place in (begin, end))
        rows[begin if at_begin >= at_end else end] = part  # padded on the right, or on the left
    return result


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return (
        bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))
        if (one.is_floating_point())
        else bool(torch.equal(one, other))
    )
