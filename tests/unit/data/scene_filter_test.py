"""NAVSIM's YAML files become filters with its defaults; anything else in them is refused."""

import gin
import pytest

from recogdrive.data.scene_filter import EXPECTED_SCENES, SceneFilter, TrainTestSplit, read_log_split

NAVTEST_LIKE = """\
_target_: navsim.common.dataclasses.SceneFilter
_convert_: 'all'

num_history_frames: 4
num_future_frames: 10
frame_interval: 1
has_route: true
max_scenes: null

log_names:
  - '2021.06.09.17.37.09_veh-12_04489_04816'
tokens:
  - '0123456789abcdef'
  - '1234567890123456'
"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_defaults_are_those_of_navsim():
    made = SceneFilter()
    assert (made.num_history_frames, made.num_future_frames, made.has_route) == (4, 10, True)
    assert (made.max_scenes, made.log_names, made.tokens) == (None, None, None)


def test_windows_do_not_overlap_without_an_interval():
    assert SceneFilter(frame_interval=None).frame_interval == 14
    assert SceneFilter(num_history_frames=2, num_future_frames=3).frame_interval == 5


def test_a_window_has_history_and_future_frames():
    assert SceneFilter(num_history_frames=4, num_future_frames=0).num_frames == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_history_frames", 0),
        ("num_history_frames", 4.0),
        ("num_future_frames", -1),
        ("frame_interval", 0),
        ("frame_interval", "1"),
        ("max_scenes", 0),
        ("max_scenes", True),
        ("has_route", "yes"),
        ("log_names", "2021.06.09"),
        ("tokens", [1234567890123456]),
        ("tokens", {"a": 1}),
    ],
)
def test_a_field_out_of_range_is_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=field):
        SceneFilter(**{field: value})


def test_lists_become_tuples_so_that_filters_compare_and_hash():
    assert SceneFilter(tokens=["a"], log_names=["l"]) == SceneFilter(tokens=("a",), log_names=("l",))
    assert len({SceneFilter(tokens=["a"]), SceneFilter(tokens=("a",))}) == 1


def test_a_filter_can_be_bound_by_gin():
    gin.parse_config("SceneFilter.num_future_frames = 8\nSceneFilter.log_names = ['a', 'b']")
    made = gin.get_configurable("SceneFilter")()
    assert made.num_frames == 12 and made.log_names == ("a", "b")


def test_the_official_form_is_read_with_its_file_name_as_name(tmp_path):
    made = SceneFilter.from_yaml(write(tmp_path / "navtest.yaml", NAVTEST_LIKE))
    assert made == SceneFilter(
        frame_interval=1,
        log_names=("2021.06.09.17.37.09_veh-12_04489_04816",),
        tokens=("0123456789abcdef", "1234567890123456"),
        name="navtest",
    )


def test_fields_a_file_leaves_out_keep_their_defaults(tmp_path):
    assert SceneFilter.from_yaml(write(tmp_path / "f.yaml", "has_route: false\n")) == SceneFilter(
        has_route=False, name="f"
    )


def test_a_misspelt_field_is_refused_with_the_nearest_one(tmp_path):
    path = write(tmp_path / "f.yaml", "num_future_frame: 10\n")
    with pytest.raises(ValueError, match=r"'num_future_frame'.*Did you mean 'num_future_frames'") as error:
        SceneFilter.from_yaml(path)
    assert str(path) in str(error.value)


def test_the_name_is_no_field_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="'name', unknown"):
        SceneFilter.from_yaml(write(tmp_path / "f.yaml", "name: navtest\n"))


def test_a_value_out_of_range_names_the_file(tmp_path):
    path = write(tmp_path / "f.yaml", "frame_interval: 0\n")
    with pytest.raises(ValueError, match="frame_interval=0") as error:
        SceneFilter.from_yaml(path)
    assert str(path) in str(error.value)


def test_an_unquoted_token_of_digits_is_refused_instead_of_read_as_a_number(tmp_path):
    with pytest.raises(ValueError, match="1234567890123456, which is no string"):
        SceneFilter.from_yaml(write(tmp_path / "f.yaml", "tokens: [1234567890123456]\n"))


@pytest.mark.parametrize("content", ["- a\n- b\n", "", "a: [1\n", "!!python/object/apply:os.system ['true']\n"])
def test_a_file_that_is_no_plain_mapping_is_refused_with_its_path(tmp_path, content):
    path = write(tmp_path / "f.yaml", content)
    with pytest.raises(ValueError) as error:
        SceneFilter.from_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path):
    write(tmp_path / "navtrain.yaml", "")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'navtrain.yaml'\?"):
        SceneFilter.from_yaml(tmp_path / "navtrian.yaml")


def test_the_filters_of_the_real_data_are_read(navsim_mini):
    whole = SceneFilter.from_yaml(navsim_mini / "splits" / "mini_all.yaml")
    assert whole.frame_interval == 1 and whole.has_route and whole.tokens is None and len(whole.log_names) == 2
    apart = SceneFilter.from_yaml(navsim_mini / "splits" / "mini_nonoverlap.yaml")
    assert apart.frame_interval == 14 and not apart.has_route
    assert len(SceneFilter.from_yaml(navsim_mini / "splits" / "mini_tokens.yaml").tokens) == 10


def test_a_filter_as_long_as_navtrain_is_read_whole(tmp_path):
    lines = "".join(f"  - '{index:016x}'\n" for index in range(EXPECTED_SCENES["navtrain"]))
    path = write(tmp_path / "navtrain.yaml", f"tokens:\n{lines}")
    assert len(SceneFilter.from_yaml(path).tokens) == 103_288


def test_a_train_test_split_names_its_folder_and_filter(tmp_path):
    write(tmp_path / "scene_filter" / "navtest.yaml", NAVTEST_LIKE)
    path = write(tmp_path / "navtest.yaml", "defaults:\n  - scene_filter: navtest\ndata_split: test\n")
    split = TrainTestSplit.from_yaml(path)
    assert split.data_split == "test"
    assert split.scene_filter.name == "navtest" and len(split.scene_filter.tokens) == 2


def test_filters_of_a_train_test_split_may_be_in_another_folder(tmp_path):
    write(tmp_path / "filters" / "all_scenes.yaml", "frame_interval: null\n")
    path = write(tmp_path / "mini.yaml", "defaults: [{scene_filter: all_scenes}, _self_]\ndata_split: mini\n")
    assert TrainTestSplit.from_yaml(path, tmp_path / "filters").scene_filter == SceneFilter(name="all_scenes")


@pytest.mark.parametrize(
    "content", ["data_split: mini\n", "defaults: [{scene_filter: a}]\n", "defaults: a\ndata_split: b\n"]
)
def test_an_incomplete_train_test_split_says_what_it_needs(tmp_path, content):
    with pytest.raises(ValueError, match="it needs `data_split"):
        TrainTestSplit.from_yaml(write(tmp_path / "navtest.yaml", content))


def test_the_log_split_has_three_parts(tmp_path):
    path = write(tmp_path / "logs.yaml", "train_logs: ['a', 'b']\nval_logs: ['c']\ntest_logs: []\n")
    assert read_log_split(path) == {"train_logs": ("a", "b"), "val_logs": ("c",), "test_logs": ()}


@pytest.mark.parametrize("content", ["train_logs: ['a']\n", "train_logs: ['a']\nval_logs: []\ntest_logs: []\nx: []\n"])
def test_a_log_split_with_other_keys_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="a log split has"):
        read_log_split(write(tmp_path / "logs.yaml", content))


def test_the_two_parts_of_navtrain_make_the_whole():
    assert EXPECTED_SCENES["navtrain/train_logs"] + EXPECTED_SCENES["navtrain/val_logs"] == EXPECTED_SCENES["navtrain"]
