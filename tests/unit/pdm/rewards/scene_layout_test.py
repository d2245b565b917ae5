"""Tests of pdm/rewards/scene_layout.py."""

import dataclasses
import json

import numpy as np
import pytest

from recogdrive.pdm.batch import Sizes, pad_scenes
from recogdrive.pdm.errors import SceneError
from recogdrive.pdm.map_index import build_map_index
from recogdrive.pdm.rewards.scene_layout import ExtendedLayout, PdmLayout, rows_of

LAYOUTS = [PdmLayout(), ExtendedLayout()]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.prefix)


@each_layout
def test_sizes_survive_json(layout):
    stored = json.loads(json.dumps(layout.to_json(layout.default_sizes)))
    assert layout.from_json(stored) == layout.default_sizes


@each_layout
def test_a_blank_row_has_the_shapes_and_dtypes_of_a_real_one(layout, records):
    sizes = layout.rounded(layout.measure(records[1]))
    row, blank = layout.row(records[1], sizes), layout.blank(sizes)
    assert {n: (a.shape, a.dtype) for n, a in row.items()} == {n: (a.shape, a.dtype) for n, a in blank.items()}
    assert all(name.startswith(layout.prefix) for name in row)
    assert {a.dtype.name for a in row.values()} == {"float32", "int32", "uint32", "bool"}


@each_layout
def test_a_record_larger_than_the_sizes_is_refused(layout, records):
    with pytest.raises(SceneError, match="scene light needs .*agents=1.*other ones than were surveyed"):
        layout.row(records[2], layout.measure(records[2])._replace(**{_first_size(layout): _nothing(layout)}))


def _first_size(layout):
    return "agents" if layout.prefix == "pdm/" else "scenes"


def _nothing(layout):
    return 0 if layout.prefix == "pdm/" else Sizes(0, 0, 0, 0, 0)


@each_layout
def test_a_record_that_cannot_be_scored_is_refused(layout, damaged):
    with pytest.raises(SceneError, match="scene damaged: centerline"):
        layout.row(damaged, layout.default_sizes)


def test_the_extended_score_needs_extended_facts(records):
    with pytest.raises(SceneError, match="extended facts .* are unknown"):
        ExtendedLayout().measure(dataclasses.replace(records[0], extended=None))


def test_sizes_are_rounded_up_a_little():
    exact = Sizes(agents=17, centerline=64, cells=1025, edges=1, words=2)
    assert PdmLayout().rounded(exact) == Sizes(agents=24, centerline=64, cells=2048, edges=1024, words=2)


def test_a_batch_of_rows_is_the_scorers_batch(records):
    layout = PdmLayout()
    sizes = layout.measure(records[2])
    rows = [layout.row(record, sizes) for record in records]
    batch = layout.batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    indices = [build_map_index(record) for record in records]
    expected = pad_scenes(records, dtype=np.float32, indices=indices, sizes=sizes)
    assert np.isnan(batch.normaliser_progress_m).all()
    for name in ("ego_state", "centerline", "centerline_points", "normaliser_poses"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
    for one, other in zip((*batch.agents.boxes, *batch.maps), (*expected.agents.boxes, *expected.maps), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_missing_entry_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"lacks pdm/ego_state and 2\d more .* RewardedSamples"):
        PdmLayout().batch({})


def test_rows_of_several_layouts_are_those_of_each(records):
    sizes = {layout.prefix: layout.measure(records[1]) for layout in LAYOUTS}
    rows = rows_of(records[1], LAYOUTS, sizes)
    alone = LAYOUTS[0].row(records[1], sizes["pdm/"]) | LAYOUTS[1].row(records[1], sizes["epdm/"])
    assert rows.keys() == alone.keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(rows[name], values)
