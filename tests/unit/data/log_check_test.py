"""What one log gives for each split that wants scenes of it."""

import pickle

import pytest

from recogdrive.data.log_check import NAMED, LogFindings, ScenesWanted, check_log
from recogdrive.data.scene_filter import SceneFilter


@pytest.fixture
def wanted(tmp_path):
    """Function: what a split wants, every window and no image unless said otherwise."""

    def make(tokens=None, cameras=(), history_images=False, commands="refuse", **scene_filter):
        chosen = SceneFilter(**{"frame_interval": 1} | scene_filter)
        return ScenesWanted(chosen, tokens, tmp_path / "sensors", cameras, history_images, commands)

    return make


@pytest.fixture
def log(make_frames, tmp_path):
    """Path of a log of 16 frames, that is three scenes."""
    path = tmp_path / "log-a000.pkl"
    path.write_bytes(pickle.dumps(make_frames("log-a000", 16)))
    return path


def test_every_split_gets_its_own_scenes_of_one_reading(log, wanted):
    every, chosen, short = check_log(
        log, [wanted(), wanted(tokens=frozenset({"a000000000000004", "other"})), wanted(num_future_frames=8)]
    )
    assert every.tokens == ("a000000000000003", "a000000000000004", "a000000000000005")
    assert chosen.tokens == ("a000000000000004",) and len(short.tokens) == 5
    assert every.cities == frozenset({"sg-one-north"}) and every.frames == 16


def test_a_log_that_cannot_be_read_is_damaged_for_all_of_them(tmp_path, wanted):
    path = tmp_path / "log-x.pkl"
    path.write_bytes(b"\x80\x04")
    first, second = check_log(path, [wanted(), wanted()])
    assert first == second and first.log == "log-x" and "log-x.pkl" in first.damage and first.tokens == ()
    (gone,) = check_log(tmp_path / "gone.pkl", [wanted()])
    assert "gone.pkl" in gone.damage


def test_a_field_that_only_one_split_reads_damages_that_split_alone(make_frames, tmp_path, wanted):
    path = tmp_path / "log-a000.pkl"
    path.write_bytes(pickle.dumps(make_frames("log-a000", 16, {0: {"driving_command": [0, 1, 0]}})))
    strict, padded, later = check_log(
        path, [wanted(), wanted(commands="pad"), wanted(tokens=frozenset({"a000000000000004"}))]
    )
    assert "driving_command" in strict.damage and strict.tokens == ()
    assert padded.damage == "" and len(padded.tokens) == 3
    assert later.damage == "" and later.tokens == ("a000000000000004",)


def test_only_the_first_missing_images_are_named(log, wanted):
    (found,) = check_log(log, [wanted(cameras=("cam_f0", "cam_b0"), history_images=True)])
    # Frames 0 to 5 are history of some scene.
    assert found.images == found.missing == {"cam_f0": 6, "cam_b0": 6} and found.empty == {}
    assert len(found.named) == NAMED and found.named[0].endswith("sensors/log-a000/CAM_F0/0000000000000000.jpg")


def test_a_log_that_is_too_short_gives_no_scene_and_is_not_damaged(make_frames, tmp_path, wanted):
    path = tmp_path / "log-a000.pkl"
    path.write_bytes(pickle.dumps(make_frames("log-a000", 13)))
    assert check_log(path, [wanted()]) == [LogFindings("log-a000", frames=13)]
