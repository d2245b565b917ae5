import jax.numpy as jnp
import numpy as np

from recogdrive.models.planner.normalization import denormalize, normalize


def test_corners_of_the_range_become_minus_one_and_one():
    corners = jnp.array([[-1.57, -19.68, -1.67], [66.74 - 1.57, 42 - 19.68, 3.53 - 1.67]])
    np.testing.assert_allclose(normalize(corners), [[-1, -1, -1], [1, 1, 1]], atol=1e-6)


def test_values_beyond_the_range_are_not_clipped():
    np.testing.assert_allclose(normalize(jnp.array([65.17 + 66.74, 0.0, 0.0]))[0], 3.0, rtol=1e-6)


def test_denormalize_undoes_normalize():
    poses = jnp.array([[12.5, -3.25, 0.4], [80.0, 30.0, -2.0]])
    np.testing.assert_allclose(denormalize(normalize(poses)), poses, atol=2e-5)
