"""The ledgers of ids and contents: exact, whatever the order, and small."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from scaleproof.evidence.writer import digest_of
from scaleproof.observe.ledger import ContentLedger, SampleLedger, mixed

batches = st.lists(st.lists(st.integers(0, 200), max_size=30), max_size=20)


@given(batches)
def test_every_id_is_seen_and_repeats_are_told(fed: list[list[int]]) -> None:
    ledger = SampleLedger()
    for batch in fed:
        ledger.feed(batch)
        if len(batch) % 3 == 0:
            ledger.enter()  # whenever it comes, it changes nothing
    ids = [index for batch in fed for index in batch]

    assert ledger.order_digest == digest_of(np.array(ids, np.int64).tobytes())
    assert ledger.seen == BitMap(ids)
    assert ledger.repeated == BitMap({index for index in ids if ids.count(index) > 1})
    assert list(ledger.batch_sizes) == list(map(len, fed))
    assert ledger.num_fed == len(ids)
    assert ledger.has_ids


def test_ids_that_are_no_such_numbers_are_told() -> None:
    for odd in (["a", "b"], [-1, 2], [2**40], [(1, 2)]):
        ledger = SampleLedger()
        ledger.feed(odd)  # type: ignore[arg-type]
        ledger.enter()
        assert not ledger.has_ids
        assert ledger.num_fed == len(odd)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(1, 50))
def test_of_contents_the_smallest_are_kept(digests: list[int], most: int) -> None:
    ledger = ContentLedger(max_contents=most)
    for start in range(0, len(digests), 7):
        ledger.feed(np.array(digests[start : start + 7], np.uint64))
    kept = ledger.values.tolist()

    assert kept == [digest for digest in sorted(set(digests)) if digest <= ledger.limit]
    assert len(kept) <= most


def test_rows_are_told_apart_by_every_byte() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, 33), dtype=np.uint8)
    base = mixed(rows)
    assert len(set(base.tolist())) == 50
    for column in range(33):
        changed = rows.copy()
        changed[:, column] ^= 1
        assert not np.any(mixed(changed) == base)


MANY = """
import resource, numpy as np
from scaleproof.observe.ledger import SampleLedger
n, block = 10**8, 2**20
ledger = SampleLedger()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, n, block):  # a bijection of 0 ... n-1, without ever holding all of it
    ids = (np.arange(start, min(start + block, n), dtype=np.int64) * 7_368_787) % n
    ledger.feed(ids)
assert len(ledger.seen) == n and not ledger.repeated
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown)
"""


def test_a_hundred_million_ids_take_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 200e6  # 59 MB when this was written
