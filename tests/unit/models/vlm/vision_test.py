import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from recogdrive.models.vlm import vision


@pytest.mark.parametrize(("stored", "side"), [(4, 6), (6, 4), (5, 10), (32, 16)])
def test_the_position_table_is_resized_as_torch_resizes_it(stored, side):
    table = np.random.default_rng(0).normal(size=(1, 1 + stored**2, 3)).astype(np.float32)
    grid = torch.from_numpy(table[:, 1:].reshape(1, stored, stored, 3)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    found = np.asarray(vision.resize_position_table(jnp.asarray(table), side))
    np.testing.assert_array_equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:], expected[0].permute(1, 2, 0).reshape(-1, 3), atol=1e-5)


def test_a_table_that_fits_is_left_as_it_is():
    table = jnp.ones((1, 17, 3))
    assert vision.resize_position_table(table, 4) is table


def test_pixels_are_normalised_by_imagenets_mean_and_deviation():
    tile = jnp.asarray([[[[0, 128, 255]]]], jnp.uint8)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(vision.normalize_pixels(tile)[0, 0, 0], expected, rtol=1e-6)


def test_pixels_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match=r"int32.*uint8"):
        vision.normalize_pixels(jnp.zeros((1, 2, 2, 3), jnp.int32))


def test_rates_of_stochastic_depth_rise_linearly_from_zero():
    np.testing.assert_allclose(vision.drop_path_rates(5, 0.4), [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(vision.drop_path_rates(1, 0.4), [0])


def test_dropped_branches_have_the_rate_and_survivors_are_scaled_to_keep_the_mean():
    factors = np.asarray(vision.drop_path_factors(jax.random.key(0), jnp.float32(0.25), 4000))
    assert factors.shape == (2, 4000, 1, 1)
    np.testing.assert_allclose(np.unique(factors), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose((factors == 0).mean(axis=(1, 2, 3)), 0.25, atol=0.03)  # each branch
    both = (factors == 0).all(axis=0).mean()
    np.testing.assert_allclose(both, 0.0625, atol=0.02)  # branches are independent


def test_places_take_vectors_in_order_and_those_beyond_the_real_ones_keep_their_embedding():
    embedded = -jnp.arange(12.0).reshape(2, 6, 1)
    vectors = 10 + jnp.arange(6.0).reshape(2, 3, 1)
    replaced = jnp.asarray([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]], bool)
    merged = vision.merge_vectors(embedded, vectors, replaced, jnp.asarray([2, 0]))
    np.testing.assert_array_equal(merged[..., 0], [[0, 10, -2, 11, -4, -5], [-6, -7, -8, -9, -10, -11]])
