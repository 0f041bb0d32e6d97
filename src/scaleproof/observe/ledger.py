"""Which items a rank was handed, in memory that stays small whatever the size of the data set.

Items with an index go into roaring bitmaps (Lemire et al. 2018): 10^8 ids in a few times 12.5 MB.
Items are also told apart by content: of all digests the smallest are kept (bottom-k sketch, Cohen
and Kaplan 2007), so that any two ledgers can be compared below the smaller of their limits.
"""

import hashlib
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from scaleproof.evidence.writer import DIGEST_BYTES

PENDING_IDS = 8192
"""Ids that are kept as they came before they are entered."""

MAX_CONTENTS = 1 << 17
"""Digests of contents that are kept: 1 MiB."""

NO_LIMIT = 2**64 - 1

_MAX_ID = 2**32 - 1


@final
class SampleLedger:
    """Ids from 0 to 2^32 - 1, in the order they were handed out."""

    def __init__(self) -> None:
        self.seen = BitMap()
        self.repeated = BitMap()
        self.batch_sizes = array("i")
        self.num_fed = 0
        self.has_ids = True
        self._order = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._pending: list[Sequence[int]] = []
        self._num_pending = 0

    def feed(self, ids: Sequence[int]) -> None:
        """One batch of items that have ids."""
        self.batch_sizes.append(len(ids))
        self.num_fed += len(ids)
        self._pending.append(ids)
        self._num_pending += len(ids)
        if self._num_pending >= PENDING_IDS:
            self.enter()

    def feed_without_ids(self, num_items: int) -> None:
        """One batch of items that have none: a stream, or ids that are no such numbers."""
        self.batch_sizes.append(num_items)
        self.num_fed += num_items
        self.has_ids = False

    @property
    def order_digest(self) -> str:
        """BLAKE2b-128 of the ids, as int64, in the order they came."""
        self.enter()
        return self._order.hexdigest()

    def enter(self) -> None:
        """Move what is pending into the bitmaps."""
        if not self._pending:
            return
        try:
            ids = np.fromiter(chain.from_iterable(self._pending), np.int64, self._num_pending)
        except (TypeError, ValueError, OverflowError):  # keys of a dictionary, tuples ...
            self.has_ids = False
            ids = np.zeros(0, np.int64)
        self._pending, self._num_pending = [], 0
        if len(ids) and (ids.min() < 0 or ids.max() > _MAX_ID):
            self.has_ids = False
        if not self.has_ids:
            return
        self._order.update(ids.tobytes())
        fed = BitMap(array("I", ids.astype(np.uint32).tobytes()))
        if len(fed) < len(ids):
            unique, counts = np.unique(ids, return_counts=True)
            self.repeated |= BitMap(array("I", unique[counts > 1].astype(np.uint32).tobytes()))
        self.repeated |= self.seen & fed
        self.seen |= fed


@final
class ContentLedger:
    """Digests of contents, uint64: those up to and including ``limit``, each once."""

    def __init__(self, max_contents: int = MAX_CONTENTS) -> None:
        self.limit = NO_LIMIT
        self._max_contents = max_contents
        self._values: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._num_repeats = 0
        self._pending: list[NDArray[np.uint64]] = []
        self._num_pending = 0

    def feed(self, digests: NDArray[np.uint64]) -> None:
        kept = digests if self.limit == NO_LIMIT else digests[digests <= self.limit]
        self._pending.append(kept)
        self._num_pending += len(kept)
        if self._num_pending >= self._max_contents:
            self._enter()

    @property
    def values(self) -> NDArray[np.uint64]:
        """Sorted; shape ``(num_kept,)``."""
        self._enter()
        return self._values

    @property
    def num_repeats(self) -> int:
        """Items whose digest had been there before."""
        self._enter()
        return self._num_repeats

    def _enter(self) -> None:
        if not self._pending:
            return
        together = np.concatenate([self._values, *self._pending])
        self._pending, self._num_pending = [], 0
        self._values = np.unique(together)
        self._num_repeats += len(together) - len(self._values)
        if len(self._values) > self._max_contents:
            self._values = self._values[: self._max_contents]
            self.limit = int(self._values[-1])


def mixed(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """A 64-bit digest of each row of bytes, ``rows`` being uint8 of shape ``(num_rows, n)``.

    Multilinear hashing of 32-bit words with fixed random odd multipliers, then a finaliser: equal
    bytes give equal digests, others differ but for about one pair in 2^63.
    """
    padding = -rows.shape[1] % 4
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    words = np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64)
    digests = (words * _multipliers(words.shape[1])).sum(axis=1, dtype=np.uint64)
    digests ^= digests >> np.uint64(33)
    digests *= np.uint64(0xFF51AFD7ED558CCD)
    return digests ^ (digests >> np.uint64(29))


_MULTIPLIERS: dict[int, NDArray[np.uint64]] = {}


def _multipliers(number: int) -> NDArray[np.uint64]:
    if number not in _MULTIPLIERS:
        drawn = np.random.default_rng(number).integers(0, 2**64, number, dtype=np.uint64)
        _MULTIPLIERS[number] = drawn | np.uint64(1)
    return _MULTIPLIERS[number]
