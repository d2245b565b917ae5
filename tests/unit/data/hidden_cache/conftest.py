"""Small hidden states and containers of them."""

import ml_dtypes
import numpy as np
import pytest

from recogdrive.data.hidden_cache.container import ShardWriter, claim, write_manifest
from recogdrive.data.hidden_cache.record import HiddenStates, Storage

FIELDS = {"weights": "abc", "prompt": "inference", "storage": "bfloat16"}


def bf16(bits):
    return np.asarray(bits, np.uint16).view(ml_dtypes.bfloat16)


def make_states(seed=0, tokens=12, width=16, length=9, *, token=None, target=True, padding="vector"):
    """Normal states with channels of other scales; padding is one vector, or other rows."""
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(tokens, width)) * np.exp(rng.normal(size=width))).astype(ml_dtypes.bfloat16)
    if padding == "vector":
        rows[: tokens - length] = rows[0]
    return HiddenStates(
        f"{seed:016x}" if token is None else token,
        f"log{seed % 2}",
        rows,
        length,
        rng.normal(size=(4, 3)).astype(np.float32),
        rng.normal(size=8).astype(np.float32),
        rng.normal(size=(8, 3)).astype(np.float32) if target else None,
    )


def write_container(folder, everything, *, per_shard=2, fields=FIELDS, storage=Storage.BFLOAT16, failed=()):
    """A container of the given states."""
    plan = claim(folder, {"fields": dict(fields)})
    shards = []
    for number, start in enumerate(range(0, len(everything), per_shard)):
        writer = ShardWriter(folder, number, storage, plan)
        for states in everything[start : start + per_shard]:
            writer.add(states)
        for token, reason in failed if number == 0 else ():
            writer.record_failure(token, reason)
        shards.append(writer.close())
    shape = everything[0].tokens.shape
    return write_manifest(folder, fields=fields, shape=shape, splits={"train": len(everything)}, shards=shards)


def same(found, expected):
    """Whether two records are equal, bit for bit."""
    assert found.token == expected.token and found.log_name == expected.log_name and found.length == expected.length
    assert found.tokens.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.tokens.view(np.uint16), expected.tokens.view(np.uint16))
    for name in ("history", "status", "target"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    return True


@pytest.fixture
def everything():
    return [make_states(i) for i in range(5)]


@pytest.fixture
def folder(tmp_path, everything):
    path = tmp_path / "hidden_states"
    write_container(path, everything, failed=[("f" * 16, "its image is missing")])
    return path
