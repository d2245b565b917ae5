"""A small objective and a stream that the training tests share."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NOBODY = 65534


class Linear:
    """Least squares with noise drawn from the key on the inputs: batch x (B, 3), y (B, 2)."""

    def __init__(self, noise=0.1, outputs=2):
        self.noise, self.outputs = noise, outputs

    def init(self, key):
        return {"weight": jax.random.normal(key, (3, self.outputs)), "bias": jnp.full(self.outputs, 0.5)}

    def loss(self, params, batch, key):
        noise = self.noise * jax.random.normal(key, batch["x"].shape)
        error = (batch["x"] + noise) @ params["weight"] + params["bias"] - batch["y"]
        return jnp.mean(error**2), {"noise_mean": noise.mean()}


class Counted:
    """Batch n is a function of n; rows follow y = (x0, x1). `poison` puts NaN into that batch (from 0)."""

    def __init__(self, batch_size=8, poison=None, samples_per_epoch=64):
        self.batch_size, self.poison, self.samples_per_epoch = batch_size, poison, samples_per_epoch
        self.next_batch = 0

    def __iter__(self):
        return self

    def __next__(self):
        x = np.random.default_rng(self.next_batch).normal(size=(self.batch_size, 3)).astype(np.float32)
        if self.next_batch == self.poison:
            x[-1, -1] = np.nan
        self.next_batch += 1
        return {"x": x, "y": x[:, :2].copy()}

    def get_state(self):
        return {"next_batch": self.next_batch}

    def set_state(self, state):
        self.next_batch = state["next_batch"]


@pytest.fixture
def linear():
    return Linear


@pytest.fixture
def stream():
    return Counted


@pytest.fixture
def open_folder():
    """A folder that every user can reach and write to (pytest's own belong to one user)."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="recogdrive_test_") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def unprivileged():
    """Context in which file permissions hold: root, whom they do not bind, becomes the user `nobody` for a while."""

    @contextmanager
    def become_unprivileged():
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            if is_root:
                os.seteuid(0)

    return become_unprivileged
