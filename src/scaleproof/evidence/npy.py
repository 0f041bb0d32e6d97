"""Reading ``.npy`` bytes strictly: exactly what ``numpy.save`` writes for a known dtype.

``numpy.load`` parses the header as a Python literal and believes the shape in it; on damaged bytes
that ends in a dozen kinds of exceptions, warnings or an attempt to allocate petabytes. The dtype is
known here, so that the header can be compared instead of parsed.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0.
"""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': (?P<descr>.+), 'fortran_order': False, 'shape': \((?P<shape>[\d, ]*)\), \} *\n",
)


def decode_npy(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in ``data``, read-only. Raises ``ValueError`` unless it is one of ``dtype``."""
    start = len(_MAGIC) + 2
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise ValueError(f"it begins with {data[:8]!r}, expected {_MAGIC!r}")
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    match = _HEADER.fullmatch(data, start, end)
    if match is None:
        raise ValueError(f"its header is {data[start:end][:200]!r}, expected one that numpy writes")
    expected = repr(dtype.descr if dtype.names else dtype.str)
    if match["descr"] != expected.encode():
        raise ValueError(f"it holds {match['descr'].decode(errors='replace')}, not {expected}")
    shape = tuple(int(size) for size in match["shape"].replace(b",", b" ").split())
    num_bytes = len(data) - end
    if math.prod(shape) * dtype.itemsize != num_bytes:
        raise ValueError(f"it has {num_bytes:,} bytes for the shape {shape} of {expected}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)
