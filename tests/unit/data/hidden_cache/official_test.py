"""Hidden states in ReCogDrive's own layout."""

import gzip
import io
import pickle
import types

import ml_dtypes
import numpy as np
import pytest
import torch

from recogdrive.data.hidden_cache import official
from recogdrive.data.hidden_cache.container import HiddenCacheError
from recogdrive.data.hidden_cache.official import OfficialHiddenStates, write_official
from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.stages.convert_hidden_states import ExportHiddenStates, ImportHiddenStates

from .conftest import make_states, same, write_container


def reference_write(path, states):
    """The layout as the specification has it, without our writer."""
    folder = path / states.log_name / states.token
    folder.mkdir(parents=True)
    feature = {
        "history_trajectory": torch.from_numpy(states.history),
        "high_command_one_hot": torch.from_numpy(states.status[:4].copy()),
        "last_hidden_state": torch.from_numpy(states.tokens.astype(np.float32)),
        "status_feature": torch.from_numpy(states.status),
    }
    for name, content in (
        ("internvl_feature", feature),
        ("trajectory_target", {"trajectory": torch.tensor(states.target)}),
    ):
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
            pickle.dump(content, file)
    return folder


def reference_read(path):
    with gzip.open(path) as file:
        return pickle.load(file)


@pytest.fixture
def cache(tmp_path, everything):
    for states in everything:
        reference_write(tmp_path / "official", states)
    return OfficialHiddenStates(tmp_path / "official", num_tokens=12, width=16)


class Folder:
    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def update(self, **facts):
        pass


def test_a_scene_is_read_bit_for_bit(cache, everything):
    for states in everything:
        assert same(cache.read(states.log_name, states.token), states)


def test_it_is_a_context_source(cache, everything):
    context = cache(types.SimpleNamespace(token=everything[2].token, log_name=everything[2].log_name))
    np.testing.assert_array_equal(context.tokens, everything[2].tokens)
    np.testing.assert_array_equal(context.mask, everything[2].mask)


@pytest.mark.parametrize(
    ("length", "padding", "found"), [(12, "rows", 12), (11, "vector", 12), (10, "vector", 10), (9, "rows", 12)]
)
def test_equal_rows_at_the_start_are_padding(tmp_path, length, padding, found):
    states = make_states(1, length=length, padding=padding)
    reference_write(tmp_path, states)
    assert OfficialHiddenStates(tmp_path, num_tokens=12, width=16).read("log1", states.token).length == found


def test_what_we_write_the_original_code_reads(tmp_path, everything):
    states = everything[1]
    folder = write_official(states, tmp_path)
    assert folder == tmp_path / states.log_name / states.token
    feature = reference_read(folder / "internvl_feature.gz")
    assert {name: (tuple(value.shape), value.dtype) for name, value in feature.items()} == {
        "history_trajectory": ((4, 3), torch.float32),
        "high_command_one_hot": ((4,), torch.float32),
        "last_hidden_state": ((12, 16), torch.float32),
        "status_feature": ((8,), torch.float32),
    }
    np.testing.assert_array_equal(feature["last_hidden_state"], states.tokens.astype(np.float32))
    np.testing.assert_array_equal(reference_read(folder / "trajectory_target.gz")["trajectory"], states.target)


def test_conversion_there_and_back_changes_no_bit(tmp_path, cache, everything):
    figures = ImportHiddenStates(cache, "2B of the authors", samples_per_shard=2).run(Folder(tmp_path / "run"), None)
    assert figures["scenes"] == 5
    ours = HiddenStateCache(tmp_path / "run", expect={"weights": "2B of the authors", "storage": "bfloat16"})
    for states in everything:
        assert same(ours.container.read(states.token), states)
    ExportHiddenStates(ours).run(Folder(tmp_path / "export"), None)
    for path in (tmp_path / "official").rglob("*.gz"):
        theirs = reference_read(path)
        found = reference_read(tmp_path / "export" / "official" / path.relative_to(tmp_path / "official"))
        assert list(found) == list(theirs)
        assert all(torch.equal(found[name], theirs[name]) for name in theirs)


def test_conversion_continues_where_it_stopped(tmp_path, cache, everything):
    broken = cache.path / everything[3].log_name / everything[3].token / "internvl_feature.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    stage = ImportHiddenStates(cache, "2B", samples_per_shard=1)
    with pytest.raises(HiddenCacheError, match=f"{everything[3].token}.*damaged"):
        stage.run(Folder(tmp_path / "run"), None)
    broken.write_bytes(whole)
    stage.run(Folder(tmp_path / "run"), None)
    again = ImportHiddenStates(cache, "2B", samples_per_shard=1)
    again.run(Folder(tmp_path / "other"), None)
    files = [{f.name: f.read_bytes() for f in (tmp_path / run / "hidden_states").iterdir()} for run in ("run", "other")]
    assert files[0] == files[1]


def test_values_that_are_no_bfloat16_are_refused_with_their_place(cache, everything):
    states = everything[0]
    folder = cache.path / states.log_name / states.token
    feature = reference_read(folder / "internvl_feature.gz")
    feature["last_hidden_state"][7, 3] = 0.1
    with gzip.open(folder / "internvl_feature.gz", "wb") as file:
        pickle.dump(feature, file)
    with pytest.raises(HiddenCacheError, match=r"internvl_feature\.gz: last_hidden_state\[7, 3\] = .*no bfloat16"):
        cache.read(states.log_name, states.token)


def test_a_missing_file_is_named(cache, everything):
    states = everything[0]
    (cache.path / states.log_name / states.token / "trajectory_target.gz").unlink()
    with pytest.raises(HiddenCacheError, match=r"trajectory_target\.gz is not there"):
        cache.read(states.log_name, states.token)
    assert cache.read(states.log_name, states.token, need_target=False).target is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_hidden_state": torch.zeros(11, 16)}, r"float32 \(11, 16\); expected float32 \(12, 16\)"),
        ({"status_feature": torch.zeros(8, dtype=torch.float64)}, "status_feature is float64"),
        ({"history_trajectory": None}, "history_trajectory is missing"),
        ({"extra": types.SimpleNamespace()}, "SimpleNamespace"),
    ],
)
def test_another_content_is_refused(cache, everything, change, message):
    states = everything[0]
    path = cache.path / states.log_name / states.token / "internvl_feature.gz"
    feature = reference_read(path) | change
    with gzip.open(path, "wb") as file:
        pickle.dump(feature, file)
    with pytest.raises(HiddenCacheError, match=message):
        cache.read(states.log_name, states.token)


def test_a_file_that_unpacks_without_end_is_refused(cache, everything, monkeypatch):
    monkeypatch.setattr(official, "_MAX_BYTES", 2**21)
    path = cache.path / everything[0].log_name / everything[0].token / "internvl_feature.gz"
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(bytes(2**23))
    path.write_bytes(packed.getvalue())
    with pytest.raises(HiddenCacheError, match="unpacks to more than"):
        cache.read(everything[0].log_name, everything[0].token)


def test_an_empty_folder_holds_no_cache(tmp_path):
    with pytest.raises(HiddenCacheError, match="holds no LOG/TOKEN"):
        OfficialHiddenStates(tmp_path).entries()
    with pytest.raises(ValueError, match="OFFICIAL_HIDDEN_CACHE"):
        OfficialHiddenStates(None)


def test_scenes_without_driven_trajectory_are_not_exported(tmp_path):
    write_container(tmp_path / "ours", [make_states(0, target=False)])
    with pytest.raises(HiddenCacheError, match="no driven trajectory"):
        ExportHiddenStates(HiddenStateCache(tmp_path / "ours")).run(Folder(tmp_path / "run"), None)


def test_what_there_is_can_be_described(tmp_path, cache):
    assert "5 scenes" in ImportHiddenStates(cache, "2B").describe().data["official cache"]
    nothing = OfficialHiddenStates(tmp_path / "nothing")
    assert "not available" in ImportHiddenStates(nothing, "2B").describe().data["official cache"]
    assert (
        "not available" in ExportHiddenStates(HiddenStateCache(tmp_path / "nothing")).describe().data["hidden states"]
    )
    with pytest.raises(ValueError, match="must name what"):
        ImportHiddenStates(cache, "")


def test_negative_zero_and_nan_survive(tmp_path):
    states = make_states(4)
    states.tokens[5, :3] = np.array([0x8000, 0x7FC1, 0xFF80], np.uint16).view(ml_dtypes.bfloat16)
    reference_write(tmp_path, states)
    assert same(OfficialHiddenStates(tmp_path, num_tokens=12, width=16).read("log0", states.token), states)
