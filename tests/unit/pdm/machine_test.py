"""Tests of pdm/machine.py."""

import numpy as np
import pytest

from recogdrive.pdm.machine import MachineError, check_linear_algebra, machine_stamp


def test_this_machine_computes_right():
    check_linear_algebra()


def test_an_inverse_wrong_in_one_of_many_matrices_is_found():
    def wrong(matrices):
        inverse = np.linalg.inv(matrices)
        if matrices.shape[-1] == 40:
            inverse[7] = 0
        return inverse

    with pytest.raises(MachineError, match=r"an inverse of 40 x 40 matrices \(off by 1.0e\+00\) wrong: NumPy"):
        check_linear_algebra(inverse=wrong)


def test_an_inverse_that_is_not_a_number_is_found():
    with pytest.raises(MachineError, match="an inverse of 3 x 3"):
        check_linear_algebra(inverse=lambda matrices: np.full_like(matrices, np.nan))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_product_wrong_in_one_number_is_found_in_either_precision(dtype):
    def wrong(first, second):
        product = first @ second
        if first.dtype == dtype and first.shape[-1] == 8:
            product[3, 2, 1] += 1
        return product

    with pytest.raises(MachineError, match=f"a product of 8 x 8 matrices in {np.dtype(dtype).name}"):
        check_linear_algebra(product=wrong)


def test_the_message_says_what_to_do():
    with pytest.raises(MachineError, match="Nothing was written. Install another build .*OPENBLAS_CORETYPE=Haswell"):
        check_linear_algebra(product=lambda first, second: 0 * (first @ second))


def test_the_stamp_is_the_same_at_every_call_and_names_the_processor():
    assert machine_stamp() == machine_stamp()
    assert machine_stamp()["cpu"].strip() and "(" in machine_stamp()["cpu"]
    assert "openblas" in machine_stamp()["blas"].lower() or machine_stamp()["blas"]
