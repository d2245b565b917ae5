"""Where a planner's weights come from, and what is refused."""

import jax
import numpy as np
import pytest

from recogdrive.data.context import ContextShape, NoContext
from recogdrive.experiment import ConfigurationError
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.models.planner.official_checkpoint import OLD_POLICY, PREFIX, read_official, save_official
from recogdrive.models.planner.planner import DiffusionPlanner
from recogdrive.stages.planner_weights import describe_parameters, export_weights, load_planner_weights, require_fit


def planner(width=6, **kwargs):
    return DiffusionPlanner(
        width, **{"heads": 1, "head_dim": 8, "layers": 2, "output_dim": 8, "hidden_dim": 16, **kwargs}
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "planner.ckpt"
    params = planner().init(jax.random.key(0))
    save_official(path, params, planner())
    return path, params


def test_an_official_file_is_read_by_its_suffix(official):
    path, params = official
    loaded = load_planner_weights(planner(), path)
    assert set(loaded) == set(params)
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_weights_of_another_shape_are_refused_with_the_tensors_name(official):
    with pytest.raises(ConfigurationError, match=r"(?s)Cannot start from PARENT=.*feature_encoder.weight"):
        load_planner_weights(planner(width=7), official[0])


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Cannot start from PARENT=.*no checkpoint"):
        load_planner_weights(planner(), tmp_path)


def test_a_reference_policy_is_exported_into_the_planners_file(official, tmp_path):
    _, params = official
    export_weights(planner(), params, tmp_path / "export", reference=params)
    (path,) = (tmp_path / "export").iterdir()
    entries, passed_over = read_official(path)
    assert passed_over == {PREFIX + OLD_POLICY: len(entries)}
    assert set(load_planner_weights(planner(), path)) == set(params)


def test_the_table_has_every_weight_once():
    rows = describe_parameters(planner())
    params = planner().init(jax.random.key(0))
    assert {row.name: row.shape for row in rows} == {name: value.shape for name, value in params.items()}
    assert sum(row.count for row in rows) == sum(value.size for value in params.values())


def test_a_context_of_another_width_is_refused_with_the_one_to_set():
    require_fit(ContextShape(4, 6), planner())
    with pytest.raises(
        ConfigurationError, match=r"ContextShape makes tokens of width 9, the planner reads 6; set CONTEXT_WIDTH=9"
    ):
        require_fit(ContextShape(4, 9), planner())


def test_a_context_that_the_planner_would_not_read_is_refused_with_the_fragment_to_include():
    require_fit(NoContext(), EgoStatusMLP(4))
    with pytest.raises(ConfigurationError, match=r"width 9, EgoStatusMLP reads none; include gin/context/none.gin"):
        require_fit(ContextShape(4, 9), EgoStatusMLP(4))
