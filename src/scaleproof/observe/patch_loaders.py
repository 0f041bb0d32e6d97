"""Listens to data loaders: passes, indices drawn, batches handed out, and fetches."""

import contextlib
import time
import weakref
from typing import Any

from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils.fetch import _IterableDatasetFetcher, _MapDatasetFetcher
from torch.utils.data.dataloader import _BaseDataLoaderIter

from scaleproof.evidence.pulse import Activity
from scaleproof.observe import current, fetching

loader_lines: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
"""The script's line that made each loader."""

_INPUT = int(Activity.INPUT)


def patch_loaders() -> None:
    def making(original: Any) -> Any:
        def __init__(self: DataLoader[Any], *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            with contextlib.suppress(TypeError):  # a class of the script's that has no hash
                loader_lines[self] = current.where_called()

        return __init__

    def beginning(original: Any) -> Any:
        def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
            original(self, loader, *args, **kwargs)
            if current.observer is not None:
                current.observer.loader_begins(self, loader)

        return __init__

    def resetting(original: Any) -> Any:
        def _reset(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            is_first = kwargs.get("first_iter", args[1] if len(args) > 1 else False)
            if current.observer is not None and args and not is_first:
                current.observer.loader_begins(self, args[0])

        return _reset

    def drawing(original: Any) -> Any:
        def _next_index(self: Any) -> Any:
            index = original(self)
            this = getattr(self, "_scaleproof_pass", None)
            if this is not None:
                this.drawn_ahead.append(index)
            return index

        return _next_index

    def handing_out(original: Any) -> Any:
        def __next__(self: Any) -> Any:
            observer = current.observer
            if observer is None:
                return original(self)
            began_s = time.perf_counter()
            this = getattr(self, "_scaleproof_pass", None)
            if this is not None:  # another pass may have begun in between
                fetching.current = this.fetch_look
            observer.pulse.beat(_INPUT)
            try:
                batch = original(self)
            except StopIteration:
                observer.loader_ended(self)
                raise
            observer.loader_handed_out(self, batch, began_s)
            return batch

        return __next__

    current.replace(DataLoader, "__init__", making)
    current.replace(_BaseDataLoaderIter, "__init__", beginning)
    current.replace(_BaseDataLoaderIter, "_reset", resetting)
    current.replace(_BaseDataLoaderIter, "_next_index", drawing)
    current.replace(_BaseDataLoaderIter, "__next__", handing_out)
    for fetcher in (_MapDatasetFetcher, _IterableDatasetFetcher):
        current.replace(fetcher, "fetch", _around_fetch)


def _around_fetch(original: Any) -> Any:
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        look = fetching.current
        if look is None or look.num_left <= 0:
            return original(self, *args, **kwargs)
        before = fetching.states()
        result = original(self, *args, **kwargs)
        worker = get_worker_info()
        fetching.write(look, before, 0 if worker is None else worker.id)
        return result

    return fetch
