import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleproof.evidence.npy import decode_npy
from scaleproof.evidence.records import EVALUATION_TABLE, STEP_TABLE

DTYPES = (STEP_TABLE, EVALUATION_TABLE, np.dtype("<f8"), np.dtype("<f4"))


def npy(values: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3), (0, 64)])
def test_what_numpy_saves_is_read_back(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 99, size=shape).astype(dtype)
    read = decode_npy(npy(values), dtype)

    assert read.dtype == dtype
    assert read.shape == shape
    assert np.array_equal(read, values)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it begins with b''"),
        (b"PK\x03\x04", "it begins with b'PK"),
        (npy(np.zeros(3)), r"it holds '<f8', not \[\('loss'"),
        (npy(np.zeros(3, STEP_TABLE))[:-1], "35 bytes for the shape"),
        (npy(np.zeros(3, STEP_TABLE)) + b"x", "37 bytes for the shape"),
        (npy(np.zeros(3, STEP_TABLE)).replace(b"(3,), ", b"(99999999999999999,), "), "header"),
        (npy(np.array([{}], dtype=object), allow_pickle=True), r"it holds '\|O'"),
        (npy(np.asfortranarray(np.zeros((2, 2), STEP_TABLE))), "'fortran_order': True"),
        (npy(np.zeros(3, STEP_TABLE))[:40], "header"),
    ],
)
def test_anything_else_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_npy(data, STEP_TABLE)


def test_a_shape_of_petabytes_is_refused_without_allocating() -> None:
    content = npy(np.zeros(3, STEP_TABLE))
    claimed = content.replace(b"(3,), }" + b" " * 12, b"(9999999999999,), }")
    assert len(claimed) == len(content)

    with pytest.raises(ValueError, match=r"36 bytes for the shape \(9999999999999,\)"):
        decode_npy(claimed, STEP_TABLE)


@given(data=st.data())
def test_damaged_bytes_are_an_array_or_refused_without_a_warning(data: st.DataObject) -> None:
    content = bytearray(npy(np.zeros(4, STEP_TABLE)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values = decode_npy(bytes(content), STEP_TABLE)
        except ValueError:
            return
    assert values.dtype == STEP_TABLE
    assert values.size == 4
