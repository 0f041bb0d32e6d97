"""What ranks leave for replays is read again as it was, whatever its type and shape; a file that a
crash or a bad disk damaged ends in an error, and is never unpickled."""

import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaleproof.errors import EvidenceError
from scaleproof.observe.replay.material import Material, MaterialWriter
from scaleproof.observe.replay.stored import MaterialIndex, data_of, index_of

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
KEY = (0, 0, 0)


def write_batch(folder: Path, tensors: dict[str, Tensor], rank: int = 0) -> None:
    writer = MaterialWriter(folder, rank)
    writer.batch(KEY, [3, 4], 2, tensors.items(), steps_done=0)
    writer.close()


def read_batch(folder: Path) -> dict[str, Tensor]:
    material = Material(folder)
    rank, entry = material.index.batches[KEY][0]
    return material.tensors_of(rank, entry)


@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)), max_size=4
    ),
    is_turned=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_is_read_as_it_was_written(
    kinds: list[tuple[torch.dtype, list[int]]], is_turned: bool
) -> None:
    tensors = {}
    for index, (dtype, shape) in enumerate(kinds):
        values = torch.randint(0, 2, shape).to(dtype)
        tensors[f"/{index}"] = values.transpose(0, -1) if is_turned and values.dim() else values
    with tempfile.TemporaryDirectory() as folder:
        write_batch(Path(folder), tensors)
        found = read_batch(Path(folder))
    assert list(found) == list(tensors)
    for name, values in tensors.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert torch.equal(found[name], values)


def test_extreme_numbers_survive_bit_by_bit(tmp_path: Path) -> None:
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    write_batch(tmp_path, {"x": values})
    assert torch.equal(read_batch(tmp_path)["x"].view(torch.int32), values.view(torch.int32))


def test_parameters_and_views_are_kept_as_values(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    write_batch(tmp_path, {"parameter": parameter, "view": parameter[:, 1::2]})
    found = read_batch(tmp_path)
    assert not found["parameter"].requires_grad
    assert found["view"].tolist() == [[1, 3], [5, 7], [9, 11]]


def test_batches_of_all_ranks_are_together_and_ids_are_kept(tmp_path: Path) -> None:
    for rank in (1, 0):
        write_batch(tmp_path, {"x": torch.full((2,), float(rank))}, rank)
    material = MaterialIndex(tmp_path)
    assert [rank for rank, _ in material.batches[KEY]] == [0, 1]
    assert material.batches[KEY][0][1].indices == (3, 4)
    assert material.ends_after is None


def test_shards_are_put_together_and_whole_tensors_are_rank_0s(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    for rank, rows in enumerate((slice(0, 3), slice(3, 4))):
        writer = MaterialWriter(tmp_path, rank)
        shard = ("w", whole[rows], (4, 3), (rows.start, 0))
        bias = ("bias", torch.full((2,), float(rank)), None, None)
        writer.weights(2, [shard, bias] if rank == 0 else [shard])
        writer.close()
    weights = Material(tmp_path).whole_weights(2)
    assert torch.equal(weights["w"], whole)
    assert weights["bias"].tolist() == [0, 0]
    assert Material(tmp_path).whole_weights(3) == {}


def test_draws_and_lengths(tmp_path: Path) -> None:
    writer = MaterialWriter(tmp_path, 0)
    writer.draws(1, [("0/0", torch.ones(2))])
    writer.length("train.py:3", 7)
    writer.length("train.py:3", 8)
    writer.close()
    material = Material(tmp_path)
    ((rank, entry),) = material.index.draws[1]
    assert material.tensors_of(rank, entry)["0/0"].tolist() == [1, 1]
    assert material.index.lengths == {"train.py:3": 7}


def test_what_has_no_space_ends_the_material_and_nothing_follows(tmp_path: Path) -> None:
    for rank, max_bytes in ((0, 1000), (1, 30)):
        writer = MaterialWriter(tmp_path, rank, max_bytes=max_bytes)
        for step in range(4):
            writer.weights(step, [("w", torch.ones(4), None, None)])
        writer.weights(9, [("tiny", torch.ones(1), None, None)])
        writer.close()
    material = MaterialIndex(tmp_path)
    assert material.ends_after == 1
    assert sorted(step for step, of in material.weights.items() if len(of) == 2) == [0]
    assert not (data_of(tmp_path, 1) / "weights-9.bin").exists()


def test_exactly_as_much_as_fits_is_kept(tmp_path: Path) -> None:
    writer = MaterialWriter(tmp_path, 0, max_bytes=16)
    writer.weights(0, [("w", torch.ones(4), None, None)])
    assert not writer.is_full
    writer.weights(1, [("w", torch.ones(1), None, None)])
    assert writer.is_full
    writer.close()


def test_no_material_is_empty(tmp_path: Path) -> None:
    assert MaterialIndex(tmp_path / "nowhere").batches == {}


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write_batch(tmp_path, {"x": torch.ones(2)})
    with index_of(tmp_path, 0).open("ab") as index:
        index.write(b'{"type":"batch","loader":0,')
    assert list(MaterialIndex(tmp_path).batches) == [KEY]


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"not json",
        b"\x80\x04K\x01.",
        b'{"type":"batch","loader":"one"}',
        b'{"type":"other"}',
    ],
)
def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path, line: bytes) -> None:
    write_batch(tmp_path, {"x": torch.ones(2)})
    with index_of(tmp_path, 0).open("ab") as index:
        index.write(line + b"\n")
    with pytest.raises(EvidenceError, match=r"rank-00000.*Check the script again"):
        MaterialIndex(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize("data", [b"", b"\0" * 7, pickle.dumps(Evil())[:7]])
def test_a_torn_data_file_is_an_error(tmp_path: Path, data: bytes) -> None:
    write_batch(tmp_path, {"x": torch.ones(2)})
    (data_of(tmp_path, 0) / "batch-0-0-0.bin").write_bytes(data)
    with pytest.raises(ValueError, match="buffer"):
        read_batch(tmp_path)


def test_a_data_file_of_the_right_size_is_only_numbers(tmp_path: Path) -> None:
    data = pickle.dumps(Evil())
    write_batch(tmp_path, {"x": torch.zeros(len(data), dtype=torch.uint8)})
    (data_of(tmp_path, 0) / "batch-0-0-0.bin").write_bytes(data)
    assert read_batch(tmp_path)["x"].tolist() == list(data)


def test_a_missing_data_file_is_an_error(tmp_path: Path) -> None:
    write_batch(tmp_path, {"x": torch.ones(2)})
    (data_of(tmp_path, 0) / "batch-0-0-0.bin").unlink()
    with pytest.raises(FileNotFoundError):
        read_batch(tmp_path)
