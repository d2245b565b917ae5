"""Constant matrices against NumPy, and that a result does not depend on the batch."""

import jax
import numpy as np
import pytest

from recogdrive.pdm.linear import apply_matrix


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(size=(5, 41))


def applied(matrix, signal):
    with jax.enable_x64(signal.dtype == np.float64):
        return np.asarray(jax.jit(lambda values: apply_matrix(matrix, values))(signal))


def test_the_first_axis_of_the_result_is_the_matrixs(matrix):
    signal = np.random.default_rng(1).normal(size=(2, 3, 41))
    found = applied(matrix, signal)
    assert found.shape == (5, 2, 3)
    np.testing.assert_allclose(found, np.einsum("mk,abk->mab", matrix, signal), rtol=1e-12)


def test_a_single_vector_is_a_batch_too():
    assert applied(np.array([[1.0, 2], [0, 1], [3, 0]]), np.array([10.0, 1])).tolist() == [12, 1, 30]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_result_has_the_dtype_of_the_signal(matrix, dtype):
    assert applied(matrix, np.ones((2, 41), dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_result_is_the_same_to_the_last_bit_in_any_batch(matrix, dtype):
    signal = np.random.default_rng(2).normal(size=(300, 41)).astype(dtype)
    whole = applied(matrix, signal)
    for count in (1, 2, 7, 64):
        np.testing.assert_array_equal(applied(matrix, signal[:count]), whole[:, :count])
    np.testing.assert_array_equal(applied(matrix, signal.reshape(10, 30, 41)).reshape(5, 300), whole)


def test_entries_are_added_up_from_first_to_last():
    # In float32 2**24 + 1 + 1 stays 2**24 but 1 + 1 + 2**24 does not.
    ones = np.ones((1, 3))
    assert applied(ones, np.array([2.0**24, 1, 1], np.float32))[0] == 2**24
    assert applied(ones, np.array([1, 1, 2.0**24], np.float32))[0] == 2**24 + 2
