"""Tests of pdm/rewards/survey.py."""

import json

import pytest

from recogdrive.data.synthetic.town import SyntheticTown
from recogdrive.pdm.rewards.samples import Records
from recogdrive.pdm.rewards.scene_layout import ExtendedLayout, PdmLayout
from recogdrive.pdm.rewards.survey import Survey, survey
from recogdrive.pdm.sources import TownPdmScenes

LAYOUTS = [PdmLayout(), ExtendedLayout()]


@pytest.fixture
def found(records, split_of, damaged):
    return Records(*split_of([*records, "missing", damaged]))


def test_sizes_hold_every_usable_record_and_failures_are_listed(found, records):
    made = survey(found, 5, LAYOUTS)
    for layout in LAYOUTS:
        for record in records:
            exact, sizes = layout.measure(record), made.sizes[layout.prefix]
            assert exact.union(sizes) == sizes == layout.rounded(sizes)
    assert list(made.failures) == ["missing", "damaged"]
    assert "no record" in made.failures["missing"] and "centerline" in made.failures["damaged"]
    assert made.num_records == 5


def test_only_so_many_records_are_looked_at(found):
    assert survey(found, 1, LAYOUTS).failures == {}
    with pytest.raises(ValueError, match="count=6 must be between 1 and the 5 records"):
        survey(found, 6, LAYOUTS)


def test_a_survey_survives_json(found):
    made = survey(found, 5, LAYOUTS)
    assert Survey.from_json(json.loads(json.dumps(made.to_json(LAYOUTS))), LAYOUTS) == made


def test_a_stored_survey_for_another_reward_is_refused(found):
    stored = survey(found, 1, LAYOUTS[:1]).to_json(LAYOUTS[:1])
    with pytest.raises(ValueError, match="does not fit this run's reward .*epdm/.* delete it"):
        Survey.from_json(stored, LAYOUTS)


def test_without_any_usable_record_there_is_nothing_to_learn_from(split_of, damaged):
    with pytest.raises(ValueError, match="None of 2 records can be scored.*scene damaged"):
        survey(Records(*split_of([damaged, "missing"])), 2, LAYOUTS)


def test_without_layouts_there_is_nothing_to_find(found):
    assert survey(found, 5, []) == Survey({}, {}, 5)


@pytest.mark.heavy
def test_processes_find_the_same():
    town = Records(SyntheticTown(num_scenes=10, seed=1), TownPdmScenes())
    assert survey(town, 10, LAYOUTS[:1], num_workers=2) == survey(town, 10, LAYOUTS[:1])
