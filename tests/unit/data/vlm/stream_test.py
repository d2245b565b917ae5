"""The stream: what batches hold, sharding, resuming, workers, samples that break during the run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.vlm.grouping import LengthBucketed
from recogdrive.data.vlm.layouts import PackedRows, PaddedRows
from recogdrive.data.vlm.stream import BatchesOnce, VlmBatchStream
from recogdrive.data.vlm.survey import take_survey

LAYOUTS = [PackedRows(200, 6), PaddedRows(), PaddedRows((70, 100, 200), (1, 6), LengthBucketed(2))]


@pytest.fixture
def samples(make_samples, record, image_file):
    """14 texts and images of several lengths; each question is a letter of its own."""
    wide, narrow = image_file("wide.png", 16, 8), image_file("narrow.png", 8, 8)
    records = []
    for number in range(14):
        letter = chr(ord("A") + number)
        image = [None, wide, narrow][number % 3]
        question = letter + ("<image>" if image else "")
        records.append(record(question, "x" * (3 * number), **({"image": [image]} if image else {})))
    return make_samples(records)


@pytest.fixture
def stream(samples):
    survey = take_survey(samples)

    def make(layout=LAYOUTS[0], batch_size=2, seed=0, **kwargs):
        return VlmBatchStream(samples, survey, layout, batch_size=batch_size, seed=seed, **kwargs)

    return make


def _take(stream, count):
    return [next(stream) for _ in range(count)]


def _assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_have_the_entries_shapes_and_dtypes_of_the_contract(stream):
    batch = next(stream())
    expected = {
        "input_ids": ((2, 200), np.int32),
        "segment_ids": ((2, 200), np.int32),
        "position_ids": ((2, 200), np.int32),
        "labels": ((2, 200), np.int32),
        "loss_weight": ((2, 200), np.float32),
        "tiles": ((2, 6, 8, 8, 3), np.uint8),
        "num_tiles": ((2,), np.int32),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_image_tokens_of_a_row_are_as_many_as_its_tiles_take(stream, tokenizer, layout):
    for batch in _take(stream(layout), 6):
        tokens = (batch["input_ids"] == tokenizer.id_of("<IMG_CONTEXT>")).sum(1)
        np.testing.assert_array_equal(tokens, 2 * batch["num_tiles"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_segments_are_the_samples_word_for_word(samples, stream, layout):
    known = {tuple(s.input_ids.tolist()): s for s in (samples[i] for i in range(len(samples)))}
    seen = 0
    for batch in _take(stream(layout), 4):
        for row in range(2):
            used = 0
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                at = batch["segment_ids"][row] == segment
                sample = known[tuple(batch["input_ids"][row][at].tolist())]
                np.testing.assert_array_equal(batch["labels"][row][at], sample.labels)
                np.testing.assert_array_equal(batch["position_ids"][row][at], np.arange(at.sum()))
                tiles = batch["tiles"][row][used : used + len(sample.tiles)]
                np.testing.assert_array_equal(tiles, sample.tiles)
                used += len(sample.tiles)
                seen += 1
            assert used == batch["num_tiles"][row]
    assert seen >= 8


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_the_first_epoch_shows_every_sample_once(samples, stream, layout):
    s = stream(layout, batch_size=1)
    batches = _take(s, s.samples_per_epoch)
    seen = [tuple(ids[seg == k].tolist()) for ids, seg in _rows(batches) for k in range(1, seg.max() + 1)]
    assert sorted(seen) == sorted(tuple(samples[i].input_ids.tolist()) for i in range(len(samples)))


def _rows(batches):
    return [(i, s) for batch in batches for i, s in zip(batch["input_ids"], batch["segment_ids"], strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
@pytest.mark.parametrize("taken", [0, 3, 17])
def test_a_restored_stream_continues_exactly(stream, layout, taken):
    whole = _take(stream(layout), 20)
    first = stream(layout)
    _take(first, taken)
    state = json.loads(json.dumps(first.get_state()))
    second = stream(layout, num_threads=1)
    second.set_state(state)
    _assert_same(_take(second, 20 - taken), whole[taken:])


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_processes_share_every_global_batch_in_order_with_one_shape(stream, layout):
    whole = _take(stream(layout, batch_size=4), 8)
    parts = [_take(stream(layout, batch_size=4, process_index=p, process_count=2), 8) for p in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    _assert_same(joined, whole)


@pytest.mark.heavy
def test_worker_processes_change_nothing(stream):
    s = stream(num_workers=2)
    s.set_state(s.get_state() | {"next_batch": 3})
    _assert_same(_take(s, 4), _take(stream(), 7)[3:])
    s.close()


@pytest.mark.parametrize(
    "changed, name",
    [({"seed": 1}, "seed"), ({"batch_size": 4}, "batch_size"), ({"layout": PackedRows(200, 5)}, "layout")],
)
def test_a_state_of_another_order_is_refused_by_what_changed(stream, changed, name):
    with pytest.raises(ValueError, match=f"trained with {name}="):
        stream(**changed).set_state(stream().get_state())


def test_a_batch_that_does_not_divide_over_processes_is_refused(stream):
    with pytest.raises(ValueError, match=r"batch_size=3 does not divide over 2 .*e\.g\. 4"):
        stream(batch_size=3, process_count=2)


def test_another_reduction_or_budget_is_refused(stream):
    with pytest.raises(ValueError, match="loss_reduction='mean'"):
        stream(loss_reduction="mean")
    with pytest.raises(ValueError, match="max_skipped=-1"):
        stream(max_skipped=-1)


def test_labels_weigh_by_the_reduction(stream):
    batch = next(stream(loss_reduction="sample"))
    for row in range(2):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            weight = batch["loss_weight"][row][batch["segment_ids"][row] == segment]
            np.testing.assert_allclose(weight.sum(), 1, rtol=1e-6)


def test_the_stream_tells_how_full_its_batches_are(stream):
    packed, padded = stream().efficiency(), stream(PaddedRows()).efficiency()
    assert packed["packing_efficiency"] > 0.7 > padded["packing_efficiency"]


@pytest.fixture
def breaking(make_samples, record, image_file, tmp_path):
    """A stream whose image `b.png` breaks after the survey; batches of one sample."""
    records = [record("<image>", "x", image=[image_file(name, 8, 8)]) for name in ("a.png", "b.png", "c.png")]
    samples = make_samples(records)
    survey = take_survey(samples)
    Path(tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])

    def make(layout=PaddedRows(), **kwargs):  # noqa: B008
        return VlmBatchStream(samples, survey, layout, batch_size=1, seed=0, **kwargs)

    return make


def test_an_image_that_breaks_ends_the_run_with_file_and_line(breaking):
    s = breaking()
    with pytest.raises(ValueError, match=r"(?s)1 of 3 records .*max_skipped=0.*corrupt_image: 1.*a\.jsonl:2: .*b\.png"):
        _take(s, 3)


def test_within_the_budget_an_image_that_breaks_becomes_padding_counted_once(breaking):
    s = breaking(max_skipped=1)
    batches = _take(s, 9)
    assert [fault.index for fault in s.faults] == [1]
    empty = [batch for batch in batches if not batch["segment_ids"].any()]
    assert len(empty) == 3
    assert all(batch["num_tiles"] == 0 and not batch["loss_weight"].any() for batch in empty)
    _assert_same(_take(breaking(max_skipped=1, num_threads=1), 9), batches)


def test_a_packed_row_keeps_the_samples_that_are_whole(breaking):
    batch = next(breaking(PackedRows(200, 3), max_skipped=1))
    assert batch["segment_ids"].max() == 2
    assert batch["num_tiles"] == 2


def test_data_that_changed_since_the_survey_is_refused(make_samples, record, image_file, tmp_path):
    samples = make_samples([record("<image>", "x", image=[image_file("a.png", 8, 8)])])
    survey = take_survey(samples)
    Image.new("RGB", (16, 8)).save(tmp_path / "a.png")
    stream = VlmBatchStream(samples, survey, PaddedRows(), batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .* the data has changed"):
        next(stream)


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_one_pass_shows_every_sample_once_and_fills_up_with_padding(samples, layout):
    batches = list(BatchesOnce(samples, take_survey(samples), layout, batch_size=4))
    assert {len(batch["input_ids"]) for batch in batches} == {4}
    seen = [tuple(ids[seg == k].tolist()) for ids, seg in _rows(batches) for k in range(1, seg.max() + 1)]
    assert sorted(seen) == sorted(tuple(samples[i].input_ids.tolist()) for i in range(len(samples)))


def test_one_pass_is_shared_by_processes(samples):
    survey = take_survey(samples)
    whole = list(BatchesOnce(samples, survey, LAYOUTS[0], batch_size=2))
    parts = [
        list(BatchesOnce(samples, survey, LAYOUTS[0], batch_size=2, process_index=p, process_count=2)) for p in range(2)
    ]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    _assert_same(joined, whole)
