"""Reading and writing safetensors files in pieces, against the library, and damaged files."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recogdrive.models.vlm import safetensors_file
from recogdrive.models.vlm.safetensors_file import SafetensorsFile, Tensor, write_safetensors


def read(file: SafetensorsFile, name: str) -> np.ndarray:
    return np.concatenate([piece.copy() for piece in file.pieces(name)]).reshape(file.entries[name].shape)


def written(path, header: dict, data: bytes) -> SafetensorsFile:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return SafetensorsFile.open(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_of_the_library_is_read_without_loss(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(safetensors_file, "PIECE", 7)
    numbers = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    tensors = {"a": numbers.to(dtype), "b": torch.ones(3).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile.open(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read(file, name), tensor.to(torch.float32).numpy())


@pytest.mark.parametrize(("dtype", "kind"), [("F32", torch.float32), ("BF16", torch.bfloat16)])
def test_the_library_reads_a_written_file(tmp_path, dtype, kind, monkeypatch):
    monkeypatch.setattr(safetensors_file, "PIECE", 7)
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    write_safetensors(tmp_path / "x.safetensors", [Tensor("fused", [rows, rows + 1]), Tensor("b", [rows[0]])], dtype)
    found = load_file(tmp_path / "x.safetensors")
    expected = torch.from_numpy(np.concatenate([rows, rows + 1])).to(kind)
    assert torch.equal(found["fused"], expected)
    assert torch.equal(found["b"], torch.from_numpy(rows[0]).to(kind))


def test_bfloat16_is_written_from_bfloat16_unchanged(tmp_path):
    values = np.arange(8).astype(ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", [Tensor("a", [values])], "BF16")
    np.testing.assert_array_equal(read(SafetensorsFile.open(tmp_path / "x.safetensors"), "a"), values)


@pytest.mark.parametrize("kept", [0, 5, 12, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"x\.safetensors is truncated"):
        SafetensorsFile.open(path)


def test_a_file_with_bytes_behind_its_end_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match="is longer than its header says"):
        SafetensorsFile.open(path)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
    ],
)
def test_a_header_that_is_none_is_named(tmp_path, header):
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged or no safetensors file"):
        written(tmp_path / "x.safetensors", header, b"\0" * 8)


@pytest.mark.parametrize(("shape", "offsets"), [([3], [0, 8]), ([1], [4, 8]), ([-2], [0, -8]), ([2], [8, 0])], ids=str)
def test_bytes_that_do_not_lie_where_the_header_says_are_named(tmp_path, shape, offsets):
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    with pytest.raises(ValueError, match=r"the bytes of a do not lie where its header says"):
        written(tmp_path / "x.safetensors", header, b"\0" * 8)


def test_overlapping_tensors_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with pytest.raises(ValueError, match="the bytes of b do not lie"):
        written(tmp_path / "x.safetensors", {"a": entry, "b": entry}, b"\0" * 8)


def test_a_file_cut_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(9)}, path)
    file = SafetensorsFile.open(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="ended before its time"):
        read(file, "a")
