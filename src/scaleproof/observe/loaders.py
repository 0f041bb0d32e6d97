"""What the script's data loaders hand out: every pass over every ``DataLoader`` of torch.

Batches are matched to the indices they were made from in order (loaders with workers draw indices
ahead of the batches they return), and a pass is one of training when backward ran on what it
handed out while gradients were enabled.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import Subset
from torch.utils.data.dataloader import DataLoader, _DatasetKind

from scaleproof.evidence.observations import (
    LoaderRecord,
    PassRecord,
)
from scaleproof.observe import fetching
from scaleproof.observe.contents import num_rows, row_digests
from scaleproof.observe.fetching import Fetched, FetchLook
from scaleproof.observe.ledger import ContentLedger, SampleLedger
from scaleproof.observe.randomness import random_states
from scaleproof.observe.writing import RankFolder

CONTENT_SHARE = 0.002
CONTENT_ALLOWANCE_S = 0.02
"""Share of the time, and seconds at the beginning, that looking at contents may take; beyond,
batches are left out."""

MAX_KEPT_IDS = 1 << 18
"""Ids of the last evaluation pass that are kept, for predictions that come without ids."""


@final
class LoaderInfo:
    """What is known of one loader."""

    def __init__(self, number: int, data_set: int, where: str) -> None:
        self.number = number
        self.data_set = data_set
        self.where = where
        self.num_passes = 0
        self.last_fetch: Fetched | None = None


@final
class Pass:
    """One iteration over a loader, while it goes on."""

    def __init__(self, info: LoaderInfo, iterator: Any, *, steps_done: int, epoch: int) -> None:
        self.info = info
        self.number = info.num_passes
        info.num_passes += 1
        self.data_set = iterator_data_set(iterator)
        self.first_step = self.last_step = steps_done
        self.epoch = epoch
        self.num_backwards = 0
        self.is_over = False
        self.ledger = SampleLedger()
        self.contents: ContentLedger | None = None
        self.drawn_ahead: deque[Any] = deque()
        self.order: list[Sequence[int]] = []  # of an evaluation, while it is short enough
        self.drops_padding = False
        self.last_ids: Sequence[int] | None = None
        self.last_num_items = 0
        self.random_states = random_states()
        self.sampler_epoch: int | None = None
        self.base_seed: int | None = None
        self.num_expected = num_batches(iterator)
        self.fetch_look: FetchLook | None = None

    @property
    def is_used_up(self) -> bool:
        """All batches that there are were handed out."""
        return 0 < self.num_expected <= len(self.ledger.batch_sizes)

    def ids(self, indices: Any) -> Sequence[int] | None:
        """Indices of the loader's data set as ids of the one at the root; None: no such thing."""
        if type(indices) is not list or (indices and type(indices[0]) is not int):
            indices = _as_ints(indices)
            if indices is None:
                return None
        return to_root(self.data_set, indices)


def num_batches(iterator: Any) -> int:
    """What a pass will hand out; -1 for streams, which may not know."""
    if iterator._dataset_kind != _DatasetKind.Map:
        return -1
    return _length(iterator)


def iterator_data_set(iterator: Any) -> Any:
    return iterator._dataset


def _as_ints(indices: Any) -> list[int] | None:
    """Single indices, tensors and numpy integers are indices too."""
    try:
        return [int(index) for index in (indices if isinstance(indices, Iterable) else [indices])]
    except (TypeError, ValueError):
        return None


def to_root(data_set: Any, indices: Sequence[int]) -> Sequence[int]:
    """Follow ``Subset`` (and so ``random_split``) down to the data set they choose from."""
    while isinstance(data_set, Subset):
        chosen = data_set.indices
        indices = [int(chosen[index]) for index in indices]
        data_set = data_set.dataset
    return indices


def root_of(data_set: Any) -> Any:
    while isinstance(data_set, Subset):
        data_set = data_set.dataset
    return data_set


@final
class LoaderWatch:
    """All loaders of this process."""

    def __init__(self, folder: RankFolder, where: Any) -> None:
        self._folder = folder
        self._where = where  # a mapping from loaders to the line that made them
        self._began_s = time.perf_counter()
        self._content_s = 0.0
        self._infos: dict[int, LoaderInfo] = {}  # by id; the loaders are kept by the next
        self._loaders: list[Any] = []
        self._data_sets: list[Any] = []
        self._open: list[Pass] = []
        self._unwritten: list[tuple[Pass, bool]] = []
        self._recent: list[Pass] = []
        self._is_recent_used = False
        self.primary: LoaderInfo | None = None
        self.epoch = -1
        self.steps_done = 0
        self.batches = 0  # from training loaders, since the last step
        self.samples = 0
        self.last_evaluation: Pass | None = None
        self._latest_evaluation: Pass | None = None
        self._latest: Pass | None = None
        self.finished_primary: Pass | None = None

    # --- what iterators do

    def begin(self, iterator: Any, loader: Any) -> Pass:
        """A pass begins. ``iterator`` is whatever torch iterates with."""
        info = self._infos.get(id(loader))
        if info is None:
            info = self._enter(loader)
        for earlier in list(self._open):
            # Some loops count batches, and never ask for the one after the last.
            if earlier.info is info or earlier.is_used_up:
                self.end(earlier, is_whole=earlier.is_used_up)
        this = Pass(info, iterator, steps_done=self.steps_done, epoch=self.epoch)
        sampler = getattr(loader, "sampler", None)
        epoch = getattr(sampler, "epoch", None)
        this.sampler_epoch = epoch if type(epoch) is int else None
        if iterator._num_workers > 0:
            this.base_seed = int(iterator._base_seed)
        self._open.append(this)
        this.fetch_look = fetching.begin(info.number, this.number, self._folder.workers_file)
        return this

    def fetched(self, this: Pass, iterator: Any, batch: Any) -> None:
        """``batch`` was handed out."""
        indices = this.drawn_ahead.popleft() if this.drawn_ahead else None
        ids = None
        if indices is not None and iterator._dataset_kind == _DatasetKind.Map:
            ids = this.ids(indices)
        if ids is not None:
            num_items = len(ids)
            this.ledger.feed(ids)
        else:
            num_items = num_rows(batch) or 0
            this.ledger.feed_without_ids(num_items)
        this.last_ids, this.last_num_items = ids, num_items
        this.last_step = self.steps_done
        self._latest = this
        if torch.is_grad_enabled():
            if self._is_recent_used:
                self._recent.clear()
                self._is_recent_used = False
            if this not in self._recent:
                self._recent.append(this)
            self.batches += 1
            self.samples += num_items
        elif ids is not None and this.ledger.num_fed <= MAX_KEPT_IDS:
            this.order.append(ids)
            self._latest_evaluation = this
        self._look_at_contents(this, batch, num_items)

    def backward_ran(self) -> None:
        """Backward ran on what was handed out last."""
        self._is_recent_used = True
        for this in self._recent:
            this.num_backwards += 1
            if this.num_backwards == 1:
                if self.primary is None:
                    self.primary = this.info
                if self.primary is this.info:
                    self.epoch += 1
                    this.epoch = self.epoch

    def end(self, this: Pass, *, is_whole: bool) -> None:
        """The pass is over: write it down."""
        if this.is_over:
            return
        this.is_over = True
        self._open = [other for other in self._open if other is not this]
        self._recent = [other for other in self._recent if other is not this]
        if is_whole:
            this.last_step = self.steps_done
        if this.num_backwards:
            if this.info is self.primary:
                self.finished_primary = this
        else:
            self.last_evaluation = this
        if self._folder.is_open:
            self._write(this, is_whole=is_whole)
        else:
            self._unwritten.append((this, is_whole))

    def write_earlier(self) -> None:
        """The rank is known now: write down the passes that were over before."""
        for this, is_whole in self._unwritten:
            self._write(this, is_whole=is_whole)
        self._unwritten.clear()

    def end_all(self) -> None:
        """The process is at its end."""
        for this in list(self._open):
            self.end(this, is_whole=this.is_used_up)

    def reset_counts(self) -> tuple[int, int]:
        """Batches and samples since the last step, which are forgotten; samples are -1 when there
        is no training loader."""
        counts = self.batches, (self.samples if self.primary is not None else -1)
        self.batches = self.samples = 0
        return counts

    def padding_dropped(self) -> None:
        """What was computed on the last batch was gathered, without repeated items."""
        if self._latest is not None:
            self._latest.drops_padding = True

    def evaluated_ids(self, number: int) -> Sequence[int] | None:
        """Ids of the ``number`` items last handed out for evaluation: a whole pass, or its last
        batch; None when they are neither."""
        order = [] if self._latest_evaluation is None else self._latest_evaluation.order
        if sum(map(len, order)) == number:
            return [index for batch in order for index in batch]
        return order[-1] if order and len(order[-1]) == number else None

    @property
    def usual_batch_size(self) -> int:
        """Of the first training loader; 0 when there is none, or it has no fixed one."""
        if self.primary is None:
            return 0
        return self._loaders[self.primary.number].batch_size or 0

    def num_items(self, use: str) -> int:
        """Items of the first training loader's data set, or of that last evaluated with; 0 when
        there is none."""
        last = None if self.last_evaluation is None else self.last_evaluation.info
        info = self.primary if use == "training" else last
        return 0 if info is None else max(_length(self._loaders[info.number].dataset), 0)

    # --- writing

    def _enter(self, loader: Any) -> LoaderInfo:
        data_set = loader.dataset
        root = root_of(data_set)
        known = [index for index, other in enumerate(self._data_sets) if other is root]
        if not known:
            known = [len(self._data_sets)]
            self._data_sets.append(root)
        where = self._where.get(loader, "") if isinstance(loader, DataLoader) else ""
        info = LoaderInfo(len(self._loaders), known[0], where)
        self._infos[id(loader)] = info
        self._loaders.append(loader)
        sampler = getattr(loader, "sampler", None)
        rank, replicas = (getattr(sampler, name, None) for name in ("rank", "num_replicas"))
        self._folder.record(
            LoaderRecord(
                loader=info.number,
                data_set=info.data_set,
                data_set_type=_type_name(root),
                num_items=_length(data_set),
                num_root=_length(root),
                sampler=_type_name(sampler),
                shards=(rank, replicas)
                if isinstance(rank, int) and isinstance(replicas, int)
                else None,
                batch_size=loader.batch_size,
                drop_last=bool(loader.drop_last),
                num_workers=loader.num_workers,
                where=where,
            )
        )
        return info

    def _look_at_contents(self, this: Pass, batch: Any, num_items: int) -> None:
        began_s = time.perf_counter()
        allowed_s = CONTENT_SHARE * (began_s - self._began_s) + CONTENT_ALLOWANCE_S
        if self._content_s > allowed_s:
            return
        digests = row_digests(batch, num_items) if num_items else None
        if digests is not None:
            if this.contents is None:
                this.contents = ContentLedger()
            this.contents.feed(digests)
        self._content_s += time.perf_counter() - began_s

    def _write(self, this: Pass, *, is_whole: bool) -> None:
        ledger, name = this.ledger, f"{this.info.number}-{this.number:04d}"
        ledger.enter()
        has_ids = ledger.has_ids and ledger.num_fed > 0
        blob, array = self._folder.blob, self._folder.array
        fetched = self._folder.fetched(this.info.number, this.number) or this.info.last_fetch
        this.info.last_fetch = fetched  # persistent workers tell once
        states, base_seed = this.random_states, this.base_seed
        if fetched is not None and fetched.states:
            states, base_seed = fetched.states, None
        self._folder.record(
            PassRecord(
                loader=this.info.number,
                number=this.number,
                use="training" if this.num_backwards else "evaluation",
                epoch=this.epoch,
                first_step=this.first_step,
                last_step=this.last_step,
                is_whole=is_whole,
                has_ids=has_ids,
                num_batches=len(ledger.batch_sizes),
                num_fed=ledger.num_fed,
                order_digest=ledger.order_digest,
                seen=blob(f"seen-{name}.roaring", ledger.seen.serialize()),
                repeated=blob(f"repeated-{name}.roaring", ledger.repeated.serialize()),
                batch_sizes=array(f"sizes-{name}", np.array(ledger.batch_sizes, np.int32)),
                contents=None
                if this.contents is None
                else array(f"contents-{name}", this.contents.values),
                content_limit=0 if this.contents is None else this.contents.limit,
                num_content_repeats=0 if this.contents is None else this.contents.num_repeats,
                sampler_epoch=this.sampler_epoch,
                base_seed=base_seed,
                random_states=states,
                drawn=() if fetched is None else fetched.drawn,
                is_fetch_seen=fetched is not None,
                drops_padding=this.drops_padding,
            )
        )


def _type_name(thing: Any) -> str:
    if thing is None:
        return ""
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _length(data_set: Any) -> int:
    try:
        return len(data_set)
    except (TypeError, NotImplementedError):
        return -1
