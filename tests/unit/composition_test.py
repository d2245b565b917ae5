"""Gin composition: what wins, what is refused, and with which advice."""

import gin
import pytest

from recogdrive import composition, experiment
from recogdrive.composition import compose, composed_text
from recogdrive.experiment import ConfigurationError

COMPONENT = "import recogdrive.data.context\n"


@pytest.fixture
def gin_file(tmp_path, monkeypatch):
    """Writes gin files into a working folder of the test's own and returns their names."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="case.gin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return write


def radius():
    return gin.query_parameter("SceneTokens.radius_m")


def test_later_files_and_bindings_win(gin_file):
    first = gin_file(COMPONENT + "SceneTokens.radius_m = 1.0", "first.gin")
    second = gin_file("SceneTokens.radius_m = 2.0", "second.gin")
    compose(None, [first, second], [])
    assert radius() == 2.0
    compose(None, [first, second], ["SceneTokens.radius_m = 3.0"])
    assert radius() == 3.0


def test_a_macro_is_overridden_by_its_name(gin_file):
    case = gin_file(COMPONENT + "RADIUS = 5.0\nSceneTokens.radius_m = %RADIUS")
    composed = compose(None, [case], ["RADIUS = 7.0"])
    assert gin.get_configurable("SceneTokens")().radius_m == 7.0
    assert "RADIUS = 7.0" in composed.resolved()


def test_the_text_alone_composes_to_the_same(gin_file):
    gin_file("RADIUS = 5.0", "part.gin")
    case = gin_file(COMPONENT + "include 'part.gin'\nSceneTokens.radius_m = %RADIUS")
    whole = compose(None, [case], ["RADIUS = 7.0"])
    again = compose(None, [gin_file(whole.text, "config.gin")], [])
    assert again.resolved() == whole.resolved()


def test_a_decoy_in_the_working_folder_does_not_shadow_the_products_files(gin_file, tmp_path):
    gin_file("raise = 'this is not even gin'", "gin/planner/dit_small.gin")
    gin_file("raise = 'this is not even gin'", "experiments/debug_il.gin")
    composed = compose(experiment.find_experiment("debug_il"), ["gin/planner/dit_small.gin"], [])
    assert "not even gin" not in composed.text


def test_a_binding_of_a_macro_that_no_file_defines_is_refused_with_the_nearest(gin_file):
    case = gin_file(COMPONENT + "BATCH_SIZE = 4\nSceneTokens.num_map_tokens = %BATCH_SIZE")
    with pytest.raises(
        ConfigurationError, match=r"BACH_SIZE=8.* no file of this experiment defines\. Did you mean 'BATCH_SIZE'"
    ):
        compose(None, [case], ["BACH_SIZE=8"])


def test_a_macro_that_nothing_defines_is_refused_with_the_nearest(gin_file):
    case = gin_file(COMPONENT + "RADIUS = 4.0\nSceneTokens.radius_m = %RADIS")
    with pytest.raises(ConfigurationError, match=r"%RADIS, which nothing defines\. Did you mean 'RADIUS'"):
        compose(None, [case], [])


def test_a_macro_inside_a_container_is_checked_too(gin_file):
    case = gin_file(COMPONENT + "ALL = [1, {'a': %NOWHERE}]")
    with pytest.raises(ConfigurationError, match="ALL uses the macro %NOWHERE"):
        compose(None, [case], [])


def test_an_unknown_component_is_refused_with_the_nearest(gin_file):
    case = gin_file(COMPONENT + "SceneToken.radius_m = 4.0")
    with pytest.raises(ConfigurationError, match=r"no component 'SceneToken' .*Did you mean 'SceneTokens'"):
        compose(None, [case], [])


def test_an_unknown_reference_is_refused_with_the_nearest(gin_file):
    case = gin_file(COMPONENT + "CONTEXT = @train/SceneTokenz()")
    with pytest.raises(ConfigurationError, match=r"no component 'SceneTokenz' .*Did you mean 'SceneTokens'"):
        compose(None, [case], [])


def test_an_unknown_parameter_is_refused_with_the_nearest(gin_file):
    case = gin_file(COMPONENT)
    with pytest.raises(ConfigurationError, match=r"SceneTokens has no parameter 'radius'\. Did you mean 'radius_m'"):
        compose(None, [case], ["SceneTokens.radius = 4.0"])


def test_a_binding_that_would_hide_a_macro_is_refused_and_names_the_macro(gin_file):
    case = gin_file(COMPONENT + "RADIUS = 4.0\nSceneTokens.radius_m = %RADIUS")
    with pytest.raises(ConfigurationError, match=r"would hide the macro RADIUS.*set RADIUS=\.\.\. instead"):
        compose(None, [case], ["SceneTokens.radius_m = 5.0"])


def test_an_unquoted_string_is_refused_with_how_to_write_it(gin_file):
    case = gin_file("FOLDER = ''")
    with pytest.raises(ConfigurationError, match="strings in quotes"):
        compose(None, [case], ["FOLDER=/data/logs"])


def test_a_missing_file_is_refused_with_the_nearest_one(gin_file):
    with pytest.raises(
        ConfigurationError, match=r"gin/planner/dit_smal.gin, and there is no such file.*gin/planner/dit_small.gin"
    ):
        compose(None, ["gin/planner/dit_smal.gin"], [])


def test_a_missing_include_names_the_file_that_asked_for_it(gin_file):
    case = gin_file("include 'gone.gin'")
    with pytest.raises(ConfigurationError, match=r"case.gin names gone.gin"):
        compose(None, [case], [])


def test_includes_that_go_in_a_circle_are_refused(gin_file):
    gin_file("include 'b.gin'", "a.gin")
    gin_file("include 'a.gin'", "b.gin")
    with pytest.raises(ConfigurationError, match=r"circle: a.gin -> b.gin -> a.gin"):
        compose(None, ["a.gin"], [])


def test_a_module_that_cannot_be_imported_is_named(gin_file):
    with pytest.raises(ConfigurationError, match=r"imports recogdrive.data.nuscenes, which cannot be imported"):
        compose(None, [gin_file("import recogdrive.data.nuscenes")], [])


def test_nothing_to_run_is_said_plainly():
    with pytest.raises(ConfigurationError, match="--experiment=NAME"):
        compose(None, [], [])


def test_composing_twice_leaves_nothing_of_the_first(gin_file):
    compose(None, [gin_file(COMPONENT + "SceneTokens.radius_m = 4.0", "one.gin")], [])
    compose(None, [gin_file(COMPONENT + "SceneTokens.num_map_tokens = 4", "two.gin")], [])
    with pytest.raises(ValueError, match="not bound|no value|Unable"):
        radius()


def test_no_folder_named_gin_is_a_package():
    root = composition.config_root()
    packages = [
        p for p in root.rglob("gin/__init__.py") if not {".venv", "site-packages"} & set(p.relative_to(root).parts)
    ]
    assert packages == []


def test_the_text_of_a_configuration_is_had_without_importing_what_it_names(gin_file):
    case = gin_file("import no.such.module\nRADIUS = 4.0")
    assert composed_text(None, [case], ["RADIUS=5"]).splitlines()[-1] == "RADIUS=5"
    found = compose(None, [gin_file("RADIUS = 4.0")], ["RADIUS=5"]).text
    assert found == composed_text(None, [gin_file("RADIUS = 4.0")], ["RADIUS=5"])
