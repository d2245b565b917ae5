"""Pickles of torch tensors, read without torch."""

import collections
import pickle
import pickletools

import ml_dtypes
import numpy as np
import pytest
import torch

from recogdrive.data.safe_pickle import CorruptPickleError, ForbiddenPickleError
from recogdrive.data.torch_pickle import load_tensor_pickle


def load(data, max_bytes=2**24):
    return load_tensor_pickle(data, "feature.gz", what="a cached feature", max_bytes=max_bytes)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
def test_tensors_come_out_as_arrays(protocol, dtype):
    values = (np.arange(24) - 5).reshape(2, 3, 4).astype(dtype)
    found = load(pickle.dumps({"a": torch.from_numpy(values), "b": 3}, protocol))
    assert found["b"] == 3 and found["a"].dtype == values.dtype
    np.testing.assert_array_equal(found["a"], values)


def test_bfloat16_comes_out_as_bfloat16():
    found = load(pickle.dumps(torch.tensor([1.5, -2.0, float("nan")], dtype=torch.bfloat16)))
    assert found.dtype == ml_dtypes.bfloat16
    assert found.view(np.uint16).tolist()[:2] == [0x3FC0, 0xC000] and np.isnan(found[2])


def test_views_of_a_storage_come_out_as_what_they_show():
    whole = torch.arange(24.0).reshape(4, 6)
    for view in (whole[1:3], whole.T, whole[:, 2], whole[3, 5], whole[:0]):
        np.testing.assert_array_equal(load(pickle.dumps(view)), view.numpy())


def test_tensors_of_one_storage_are_arrays_of_their_own():
    whole = torch.arange(6.0)
    found = load(pickle.dumps([whole, whole]))
    np.testing.assert_array_equal(found[0], whole.numpy())
    np.testing.assert_array_equal(found[1], whole.numpy())


def test_pickles_that_call_anything_else_are_refused():
    class Evil:
        def __reduce__(self):
            return (eval, ("1/0",))

    for evil in (Evil(), {"a": torch.ones(2), "b": Evil()}, torch.nn.Linear(1, 1), torch.ones(2).numpy().dtype.type):
        with pytest.raises(ForbiddenPickleError, match=r"feature\.gz contains"):
            load(pickle.dumps(evil))


def test_a_storage_with_a_pickle_of_its_own_is_not_executed():
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    data = pickle.dumps(torch.ones(3))
    inner = next(value for _, value, _ in pickletools.genops(data) if isinstance(value, bytes))
    evil = pickle.dumps(Evil(), 2) + inner[15:]
    with pytest.raises(ForbiddenPickleError, match="the instruction"):
        load(rewritten(data, inner, evil))


def rewritten(data, inner, other):
    """A pickle of a tensor with another storage."""
    start = data.index(inner)
    # Without frames, whose length would be wrong.
    assert data[2:3] == b"\x95"
    body = data[:2] + data[11 : start - 5] + b"B" + len(other).to_bytes(4, "little") + other
    return body + data[start + len(inner) :]


def parts(tensor):
    data = pickle.dumps(tensor)
    return data, next(value for _, value, _ in pickletools.genops(data) if isinstance(value, bytes))


@pytest.fixture(scope="module")
def small():
    return parts(torch.arange(100.0))


def test_a_rewritten_pickle_loads(small):
    data, inner = small
    np.testing.assert_array_equal(load(rewritten(data, inner, inner)), np.arange(100.0))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"FloatStorage", b"AlienStorage"),
        (b"\x88X", b"\x89X"),
        (b"K\x64N", b"K\x63N"),
        (b"storage", b"storagf"),
        (b"M\xe9\x03.", b"M\xe8\x03."),
        (b"Q.", b"0."),
    ],
)
def test_a_storage_that_does_not_fit_together_is_refused(small, old, new):
    data, inner = small
    with pytest.raises((ForbiddenPickleError, CorruptPickleError)):
        load(rewritten(data, inner, inner.replace(old, new, 1)))


def test_a_storage_of_another_length_is_refused(small):
    data, inner = small
    for other in (inner[:-1], inner + b"\0", inner[:200]):
        with pytest.raises((ForbiddenPickleError, CorruptPickleError)):
            load(rewritten(data, inner, other))


def test_every_cut_is_an_error(small):
    data, _ = small
    for length in range(0, len(data), 11):
        with pytest.raises((ForbiddenPickleError, CorruptPickleError)):
            load(data[:length])


def test_every_changed_byte_is_an_error_or_changes_numbers_only(small):
    data, _ = small
    generator = np.random.default_rng(0)
    for position in generator.choice(len(data), 300, replace=False):
        changed = bytearray(data)
        changed[position] ^= int(generator.integers(1, 256))
        try:
            found = load(bytes(changed))
        except (ForbiddenPickleError, CorruptPickleError):
            continue
        assert isinstance(found, np.ndarray) and found.nbytes <= 8 * len(data)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (101,), (1,)), (1, (100,), (1,)), (0, (2, 100), (1, 1)), (0, (10**9,), (0,)), (-1, (1,), (1,)), (0, (1,), ())],
)
def test_a_tensor_beyond_its_storage_is_refused(offset, size, stride):
    class Tensor:
        def __reduce__(self):
            made = torch.arange(100.0).__reduce_ex__(2)
            storage = made[1][0]
            return made[0], (storage, offset, size, stride, False, collections.OrderedDict())

    with pytest.raises((ForbiddenPickleError, CorruptPickleError), match=r"feature\.gz"):
        load(pickle.dumps(Tensor()))


def test_content_beyond_the_limit_is_not_read(small):
    with pytest.raises(CorruptPickleError, match="larger than 100 bytes"):
        load(small[0], max_bytes=100)
