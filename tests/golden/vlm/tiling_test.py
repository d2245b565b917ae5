"""Grids, counts and pixels of tiles against the reference."""

import json

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.vlm.pictures import FilePicture
from recogdrive.data.vlm.tiling import Tiling, normalise


@pytest.fixture(scope="module")
def folder(golden_dir):
    return golden_dir / "vlm"


def _tiling(case, **changes):
    return Tiling(case["image_size"], case["min_num"], case["max_num"], case["use_thumbnail"], **changes)


def test_grids_and_counts_are_those_of_the_reference(folder):
    cases = json.loads((folder / "tiling.json").read_text())["cases"]
    assert cases
    for case in cases:
        tiling, size = _tiling(case), (case["width"], case["height"])
        assert list(tiling.grid(*size)) == case["grid"], case
        assert tiling.count(*size) == case["num_tiles"], case


def test_tiles_are_the_boxes_of_the_resized_image_with_the_thumbnail_last(folder):
    cases = json.loads((folder / "tiling.json").read_text())["cases"]
    small = [case for case in cases if case["image_size"] <= 224 and max(case["width"], case["height"]) <= 2000]
    assert small
    for case in small:
        noise = np.random.default_rng(0).integers(0, 256, (case["height"], case["width"], 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        resized = image.resize(tuple(case["resized"]), Image.Resampling.BICUBIC)
        expected = [np.asarray(resized.crop(box)) for box in case["boxes"]]
        if case["has_thumbnail"]:
            side = case["image_size"]
            expected.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)))
        np.testing.assert_array_equal(_tiling(case).tiles(image), expected)


def test_pixels_agree_within_one_level(folder):
    index = json.loads((folder / "pixels.json").read_text())
    tolerance = index["tolerance"]["float32_arrays_abs"]
    with np.load(folder / "pixels.npz") as stored:
        for entry in index["entries"]:
            image = FilePicture(str(folder / "images" / entry["image"])).open()
            pixels = normalise(_tiling(entry).tiles(image))
            key = entry["key"]
            assert list(pixels.shape) == entry["shape"], key
            views = {key: pixels, f"{key}__grid": pixels[:, :, 7::28, 7::28], f"{key}__corner": pixels[:, :, :8, :8]}
            compared = [name for name in views if name in stored]
            assert compared, key
            for name in compared:
                np.testing.assert_allclose(views[name], stored[name], atol=tolerance, rtol=0, err_msg=name)
            np.testing.assert_allclose(pixels.mean((2, 3)), entry["mean"], atol=tolerance, err_msg=key)


@pytest.mark.parametrize("kind, pad", [("static", False), ("pad2square", True)])
def test_an_image_without_a_grid_becomes_one_tile(folder, kind, pad):
    index = json.loads((folder / "pixels.json").read_text())
    with np.load(folder / "pixels.npz") as stored:
        names = [name for name in stored.files if f"__{kind}" in name]
        assert names
        for name in names:
            image, side = name.split(f"__{kind}")
            tiling = Tiling(int(side), dynamic=False, pad_to_square=pad)
            pixels = normalise(tiling.tiles(FilePicture(str(folder / "images" / f"{image}.png")).open()))
            tolerance = index["tolerance"]["float16_arrays_abs"]
            np.testing.assert_allclose(pixels, stored[name], atol=tolerance, rtol=0, err_msg=name)
