"""Tests of data/hidden_cache/{container,reader}.py."""

import concurrent.futures
import json
import multiprocessing
import pickle
import types

import grain
import ml_dtypes
import numpy as np
import pytest

from recogdrive.data.batching import BatchStream
from recogdrive.data.hidden_cache import reader
from recogdrive.data.hidden_cache.container import HiddenCacheError, claim, fingerprint_of, finished_entry
from recogdrive.data.hidden_cache.reader import HiddenStateCache, HiddenStateContainer, HiddenStateSamples
from recogdrive.data.hidden_cache.record import Storage

from .conftest import FIELDS, make_states, same, write_container


def scene(token):
    return types.SimpleNamespace(token=token)


def split(states, name="town_train"):
    return types.SimpleNamespace(name=name, tokens=tuple(s.token for s in states))


def test_every_scene_comes_back_in_any_order(folder, everything):
    container = HiddenStateContainer(folder)
    assert len(container) == 5 and container.tokens == tuple(s.token for s in everything)
    for states in [*reversed(everything), everything[2]]:
        assert same(container.read(states.token), states)


def test_a_run_folder_is_as_good_as_its_container(folder, everything):
    context = HiddenStateCache(folder.parent)(scene(everything[1].token))
    assert context.tokens.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(context.tokens, everything[1].tokens)
    np.testing.assert_array_equal(context.mask, everything[1].mask)


def test_a_cache_that_is_not_there_can_be_described_but_not_read(tmp_path):
    cache = HiddenStateCache(tmp_path / "nothing", num_tokens=2800, width=1536)
    assert (cache.num_tokens, cache.width, cache.dtype) == (2800, 1536, "bfloat16")
    with pytest.raises(HiddenCacheError, match=r"no finished hidden-state cache at .*nothing"):
        cache(scene("0"))


def test_no_folder_at_all_is_refused():
    with pytest.raises(ValueError, match="HIDDEN_CACHE"):
        HiddenStateCache(None)


def test_a_missing_scene_is_named_with_the_cache_and_the_reason(folder):
    with pytest.raises(HiddenCacheError, match=r"Scene f{16} is not in .*hidden_states.*its image is missing"):
        HiddenStateCache(folder)(scene("f" * 16))


def test_expected_fields_are_compared_one_by_one(folder):
    assert HiddenStateCache(folder, expect={"weights": "abc"}).fingerprint == fingerprint_of(FIELDS)
    cache = HiddenStateCache(folder, expect={"weights": "xyz", "prompt": "inference", "tiles": 9})
    with pytest.raises(HiddenCacheError, match=r"tiles: 'nothing' instead of 9; weights: 'abc' instead of 'xyz'"):
        cache.fingerprint  # noqa: B018


def test_another_fingerprint_is_refused(folder):
    assert HiddenStateCache(folder, expect=fingerprint_of(FIELDS)).num_tokens == 12
    with pytest.raises(HiddenCacheError, match="fingerprint"):
        HiddenStateCache(folder, expect="0" * 64).num_tokens  # noqa: B018


def test_another_shape_is_refused(folder):
    with pytest.raises(HiddenCacheError, match=r"CONTEXT_WIDTH\): 16 instead of 32"):
        HiddenStateCache(folder, num_tokens=12, width=32).container  # noqa: B018


def test_eight_bit_states_are_read_with_their_error_in_the_manifest(tmp_path, everything):
    manifest = write_container(tmp_path, everything, storage=Storage.INT8)
    assert 0 < manifest["int8_error"]["mean_rms_relative"] < manifest["int8_error"]["max_relative"] < 0.01
    found = HiddenStateContainer(tmp_path).read(everything[4].token)
    np.testing.assert_allclose(found.tokens.astype(float), everything[4].tokens.astype(float), atol=0.1)


def test_the_same_states_make_the_same_files(tmp_path, everything):
    for name in "ab":
        write_container(tmp_path / name, everything)
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == 3 * 2 + 2


def test_threads_read_at_once(folder, everything):
    container = HiddenStateContainer(folder)
    wanted = [everything[i % 5] for i in range(60)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda states: container.read(states.token), wanted))
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))


def test_few_open_shards_suffice(folder, everything, monkeypatch):
    monkeypatch.setattr(reader, "_OPEN_SHARDS", 1)
    container = HiddenStateContainer(folder)
    for states in everything * 2:
        assert same(container.read(states.token), states)
    assert len(container._readers) == 1


def test_a_pickled_cache_opens_its_files_anew(folder, everything):
    cache = HiddenStateCache(folder)
    cache(scene(everything[0].token))
    data = pickle.dumps(cache)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data)(scene(everything[3].token)).tokens, everything[3].tokens)


def test_a_forked_process_opens_its_files_anew(folder, everything):
    container = HiddenStateContainer(folder)
    container.read(everything[0].token)

    def read(queue):
        before = dict(container._readers)
        found = container.read(everything[1].token)
        queue.put((same(found, everything[1]), container._readers[0] is before[0]))

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=read, args=(queue,))
    process.start()
    assert queue.get() == (True, False)
    process.join()


def test_samples_come_in_the_order_of_the_split(folder, everything):
    chosen = [everything[4], everything[1]]
    samples = HiddenStateCache(folder).samples(split(chosen))
    assert len(samples) == 2
    for index, states in enumerate(chosen):
        sample = samples[index]
        np.testing.assert_array_equal(sample["context"], states.tokens)
        np.testing.assert_array_equal(sample["context_mask"], states.mask)
        np.testing.assert_array_equal(sample["history_trajectory"], states.history)
        np.testing.assert_array_equal(sample["status_feature"], states.status)
        np.testing.assert_array_equal(sample["trajectory"], states.target)
        assert sample["index"] == index


def test_a_split_with_scenes_that_are_not_cached_is_refused(folder, everything):
    with pytest.raises(HiddenCacheError, match=r"2 of 3 scenes of town_train .*e\.g\. 0+9, 0+8"):
        HiddenStateSamples(HiddenStateCache(folder), split([make_states(9), everything[0], make_states(8)]))


def test_a_sample_without_driven_trajectory_is_refused(tmp_path):
    write_container(tmp_path, [make_states(0, target=False)])
    with pytest.raises(HiddenCacheError, match=f"Scene {0:016x} of log log0 has no driven trajectory"):
        HiddenStateCache(tmp_path).samples(split([make_states(0)]))[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_stacked_in_bfloat16_by_threads_and_worker_processes(folder, everything, workers):
    samples = HiddenStateCache(folder).samples(split(everything))
    stream = BatchStream(samples, batch_size=5, seed=0, num_threads=2, num_workers=workers)
    batch = next(stream)
    stream.close()
    assert batch["context"].dtype == ml_dtypes.bfloat16 and batch["context"].shape == (5, 12, 16)
    for row, index in enumerate(batch["index"]):
        np.testing.assert_array_equal(batch["context"][row], everything[index].tokens)


def test_samples_are_a_source_of_grain(folder, everything):
    dataset = grain.MapDataset.source(HiddenStateCache(folder).samples(split(everything))).shuffle(seed=1)
    assert sorted(int(sample["index"]) for sample in dataset) == list(range(5))


def damaged(data, position, bit=0):
    return bytes([*data[:position], data[position] ^ 1 << bit, *data[position + 1 :]])


def test_a_flipped_bit_is_noticed_wherever_it_matters(tmp_path, everything):
    write_container(tmp_path, everything[:2])
    shard = tmp_path / "states-00000.array_record"
    whole = shard.read_bytes()
    refused, rng = 0, np.random.default_rng(0)
    for position in rng.choice(len(whole), 150, replace=False):
        shard.write_bytes(damaged(whole, int(position), int(rng.integers(8))))
        try:
            for states in everything[:2]:
                assert same(HiddenStateContainer(tmp_path).read(states.token), states)
        except HiddenCacheError as error:
            assert "states-00000.array_record" in str(error) and "Scene 000" in str(error)
            refused += 1
        with pytest.raises(HiddenCacheError, match="states-00000"):
            HiddenStateContainer(tmp_path).verify()
    # Small files are mostly filling, which nothing reads.
    first, last = whole.index(b"RDHS"), whole.rindex(b"RDHS")
    for position in [first, first + 30, last, last + 100, last + 700]:
        shard.write_bytes(damaged(whole, position))
        with pytest.raises(HiddenCacheError, match=r"Scene 0+. in .*states-00000\.array_record cannot be read"):
            for states in everything[:2]:
                HiddenStateContainer(tmp_path).read(states.token)
    assert refused


def test_a_truncated_shard_is_refused_when_the_cache_is_opened(folder):
    shard = folder / "states-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(HiddenCacheError, match=r"states-00001\.array_record is truncated"):
        HiddenStateContainer(folder)


def test_a_shard_that_shrinks_while_it_is_read_is_refused(folder, everything):
    container = HiddenStateContainer(folder)
    shard = folder / "states-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:65_536])
    with pytest.raises(HiddenCacheError, match=rf"Scene {2:016x} in .*states-00001"):
        container.read(everything[2].token)


def test_a_missing_shard_is_named(folder):
    (folder / "states-00002.array_record").unlink()
    with pytest.raises(HiddenCacheError, match="states-00002.array_record is missing"):
        HiddenStateContainer(folder)


def test_shards_in_each_others_place_are_noticed(folder, everything):
    first, second = (folder / f"states-0000{i}.array_record" for i in range(2))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(HiddenCacheError, match=f"the record is that of scene {2:016x}"):
        HiddenStateContainer(folder).read(everything[0].token)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(HiddenCacheError, match="manifest.json cannot be read|format 99"):
        HiddenStateContainer(folder)


def test_another_plan_in_the_same_folder_is_refused_field_by_field(folder):
    with pytest.raises(HiddenCacheError, match=r"another plan \(prompt: 'sft' instead of 'inference'\)"):
        claim(folder, {"fields": {**FIELDS, "prompt": "sft"}})


def test_a_finished_shard_is_known_again_only_whole_and_of_its_plan(folder):
    plan = json.loads((folder / "states-00000.json").read_text())["plan"]
    assert finished_entry(folder, 0, plan).tokens == (f"{0:016x}", f"{1:016x}")
    assert finished_entry(folder, 0, "other") is None
    assert finished_entry(folder, 7, plan) is None
    shard = folder / "states-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-5])
    assert finished_entry(folder, 0, plan) is None


def test_a_token_in_two_places_is_refused(tmp_path, everything):
    with pytest.raises(HiddenCacheError, match="more than once"):
        write_container(tmp_path, [everything[0], everything[1], everything[0]])
