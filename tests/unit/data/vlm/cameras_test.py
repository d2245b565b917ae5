"""Front cameras: where a scene's picture comes from."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.data.vlm.cameras import FileCamera, TownCamera
from recogdrive.data.vlm.pictures import PictureError


@pytest.fixture(scope="module")
def scene():
    return SyntheticTown(num_scenes=1, seed=2)[0]


def test_a_recorded_picture_is_read_from_the_scenes_file(scene, tmp_path):
    path = tmp_path / "front.png"
    Image.new("RGB", (6, 4), (10, 20, 30)).save(path)
    picture = FileCamera().picture(dataclasses.replace(scene, cameras={"cam_f0": str(path)}))
    assert picture.size() == (6, 4)
    assert picture.open().getpixel((0, 0)) == (10, 20, 30)
    assert scene.token in picture.name
    assert str(path) in picture.name


def test_a_missing_file_is_an_error_that_names_scene_and_path(scene, tmp_path):
    path = tmp_path / "gone.jpg"
    picture = FileCamera().picture(dataclasses.replace(scene, cameras={"cam_f0": str(path)}))
    for ask in (picture.size, picture.open):
        with pytest.raises(PictureError, match=f"Scene {scene.token}: .*gone.jpg") as caught:
            ask()
        assert caught.value.missing


def test_a_damaged_file_is_an_error_that_names_scene_and_path(scene, tmp_path):
    path = tmp_path / "damaged.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match=f"Scene {scene.token}: .*damaged.jpg") as caught:
        FileCamera().picture(dataclasses.replace(scene, cameras={"cam_f0": str(path)})).open()
    assert not caught.value.missing


def test_a_scene_without_the_camera_is_an_error_that_says_what_to_do(scene):
    with pytest.raises(PictureError, match=f"Scene {scene.token} .* has no camera cam_f0 .*TownCamera"):
        FileCamera().picture(scene)


def test_an_unknown_camera_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'cam_f0'"):
        FileCamera("cam_f")


def test_a_town_picture_is_drawn_when_opened_and_is_the_same_every_time(scene):
    picture = TownCamera().picture(scene)
    assert picture.size() == picture.open().size == (480, 270)
    assert picture.open().mode == "RGB"
    assert picture.open().tobytes() == TownCamera().picture(scene).open().tobytes()


def test_a_picture_survives_the_way_to_a_worker_process(scene):
    picture = TownCamera(64, 36).picture(scene)
    assert pickle.loads(pickle.dumps(picture)).open().tobytes() == picture.open().tobytes()


def test_scenes_look_different():
    town = SyntheticTown(num_scenes=8, seed=2)
    drawn = {TownCamera(64, 36).picture(town[k]).open().tobytes() for k in range(len(town))}
    assert len(drawn) == len(town)


def test_real_scenes_can_be_drawn_too(navsim_mini):
    from recogdrive.data.navsim import NavsimScenes

    drawn = np.asarray(TownCamera().picture(NavsimScenes(str(navsim_mini), split="mini", name="mini")[0]).open())
    assert drawn.shape == (270, 480, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50


def test_fingerprints_change_with_what_pictures_depend_on():
    cameras = [TownCamera(), TownCamera(width=320), TownCamera(height=180), TownCamera(fov_deg=70.0)]
    cameras += [FileCamera(), FileCamera("cam_l0")]
    assert len({camera.fingerprint for camera in cameras}) == len(cameras)
    assert TownCamera().fingerprint == TownCamera(480, 270, 90).fingerprint


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"height": 5000}, {"width": 48.0}, {"fov_deg": 180.0}, {"fov_deg": float("nan")}]
)
def test_sizes_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"TownCamera.{next(iter(wrong))}="):
        TownCamera(**wrong)
