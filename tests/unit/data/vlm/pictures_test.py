"""Image files: what is read, and what is refused by name."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from recogdrive.data.vlm import pictures
from recogdrive.data.vlm.pictures import FilePicture, PictureError, file_picture


def test_the_size_is_read_without_decoding(tmp_path, image_file):
    path = tmp_path / image_file(width=30, height=20)
    path.write_bytes(path.read_bytes()[:100])
    assert FilePicture(str(path)).size() == (30, 20)


def test_an_image_is_opened_as_rgb(tmp_path):
    Image.new("RGBA", (4, 3), (9, 8, 7, 0)).save(tmp_path / "a.png")
    image = FilePicture(str(tmp_path / "a.png")).open()
    assert image.mode == "RGB"
    assert np.asarray(image).reshape(-1, 3).tolist() == [[9, 8, 7]] * 12


def test_orientation_tags_are_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    picture = FilePicture(str(tmp_path / "a.jpg"))
    assert picture.size() == picture.open().size == (8, 4)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_off_jpeg_is_an_error_and_never_filled_up(tmp_path, image_file, share, progressive):
    path = tmp_path / image_file("a.jpg", 64, 64, progressive=progressive)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(PictureError, match=r"a\.jpg is damaged or cut off") as caught:
        FilePicture(str(path)).open()
    assert not caught.value.missing


def test_filling_up_cut_off_images_may_not_be_on(tmp_path, image_file, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        FilePicture(str(tmp_path / image_file())).open()


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    for read in (FilePicture(str(tmp_path / "a.png")).size, FilePicture(str(tmp_path / "a.png")).open):
        with pytest.raises(PictureError, match=r"a\.png is no image"):
            read()


@pytest.mark.parametrize("name", ["absent.png", "", "file/below.png"])
def test_what_is_not_there_is_missing(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PictureError, match="cannot be read") as caught:
        FilePicture(str(tmp_path / name)).size()
    assert caught.value.missing


def test_more_pixels_than_an_image_may_have_are_refused_before_decoding(tmp_path, image_file, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(PictureError, match="16 x 8 pixels, more than 100"):
        FilePicture(str(tmp_path / image_file())).open()


def test_an_image_of_sixteen_bits_a_channel_is_refused_instead_of_turning_white(tmp_path):
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="more than 8 bits"):
        FilePicture(str(tmp_path / "a.png")).open()


def test_an_absolute_path_wins_over_the_root():
    assert file_picture("/data", "a.png").name == "/data/a.png"
    assert file_picture("/data", "/other/a.png").name == "/other/a.png"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]), st.data())
def test_a_damaged_file_is_an_image_or_an_error_that_names_it(tmp_path, kind, data):
    path = tmp_path / "fuzzed"
    Image.linear_gradient("L").resize((24, 16)).save(path, format=kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=3))
        if not content:
            break
    path.write_bytes(content)
    try:
        assert FilePicture(str(path)).open().mode == "RGB"
    except PictureError as error:
        assert "fuzzed" in str(error)
