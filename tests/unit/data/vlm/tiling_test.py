"""Tiles: limits, modes, augmentation."""

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.vlm.tiling import Tiling, normalise


def _noise(width, height, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_a_camera_image_has_nine_tiles_at_limit_twelve_and_sixteen_at_sixteen():
    assert Tiling().count(1920, 1080) == 9
    assert Tiling(max_tiles=16).count(1920, 1080) == 16


def test_an_image_that_fits_its_grid_is_cut_unchanged():
    image = _noise(16, 8)
    tiles = Tiling(8, max_tiles=2, thumbnail=False).tiles(image)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(tiles, [pixels[:, :8], pixels[:, 8:]])


def test_the_thumbnail_is_the_last_tile():
    image = _noise(16, 8)
    tiles = Tiling(8, max_tiles=2).tiles(image)
    assert len(tiles) == 3
    np.testing.assert_array_equal(tiles[2], np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)))


def test_a_limit_given_for_one_image_takes_the_place_of_the_own_one():
    assert Tiling(8, max_tiles=12).count(64, 8, max_tiles=3) == 4
    assert len(Tiling(8, max_tiles=12).tiles(_noise(64, 8), max_tiles=3)) == 4


def test_no_grid_within_the_limits_leaves_one_tile():
    assert Tiling(8, min_tiles=4, max_tiles=9).grid(64, 8, max_tiles=2) == (1, 1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode):
    image = _noise(8, 8, mode)
    np.testing.assert_array_equal(Tiling(8).tiles(image)[0], np.asarray(image.convert("RGB")))


def test_augmented_tiles_are_a_function_of_the_generator():
    tiling, image = Tiling(8), _noise(16, 8)

    def augmented(seed):
        return tiling.tiles(image, augment=np.random.default_rng(seed))

    plain = tiling.tiles(image)
    np.testing.assert_array_equal(augmented(1), augmented(1))
    assert augmented(1).shape == plain.shape
    assert (augmented(1) != plain).any() and (augmented(1) != augmented(2)).any()


def test_an_augmented_image_without_a_grid_keeps_its_size():
    tiles = Tiling(8, dynamic=False).tiles(_noise(20, 10), augment=np.random.default_rng(0))
    assert tiles.shape == (1, 8, 8, 3)


def test_padding_to_a_square_puts_the_image_in_the_middle_of_the_mean_colour():
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    tile = Tiling(8, dynamic=False, pad_to_square=True).tiles(image)[0]
    assert tile[:2].reshape(-1, 3).tolist() == [[123, 116, 103]] * 16
    assert tile[2:6].reshape(-1, 3).tolist() == [[255, 0, 0]] * 32


def test_normalised_white_is_one_less_the_mean_over_the_deviation():
    pixels = normalise(np.full((1, 2, 2, 3), 255, np.uint8))
    np.testing.assert_allclose(pixels[0, :, 0, 0], [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], rtol=1e-6)
    assert pixels.dtype == np.float32


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 0}, "image_size=0"),
        ({"min_tiles": 3, "max_tiles": 2}, "min_tiles=3 and max_tiles=2"),
        ({"min_tiles": 0}, "min_tiles=0"),
        ({"normalize_type": "siglip"}, "'siglip' is not built.*Use 'imagenet'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_value(settings, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**settings)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 5"):
        Tiling().grid(0, 5)
