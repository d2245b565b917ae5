"""Scene tokens: what a token holds, which are kept."""

import dataclasses

import numpy as np
import pytest

from recogdrive.data.context import TOKEN_WIDTH, ContextShape, NoContext, SceneTokens, TokenKind

# Positions within a token, as the class's docstring gives them.
DIRECTION = slice(12, 14)
FLAGS = slice(14, 19)
MOTION = slice(19, 24)
KIND = slice(24, 32)


def kinds(context):
    return [TokenKind(int(np.argmax(t[KIND]))) for t in context.tokens[context.mask]]


def tokens_of(context, kind):
    return [t for t in context.tokens[context.mask] if t[KIND][kind] == 1.0]


def test_the_table_has_one_shape_and_padding_is_masked(straight_scene):
    source = SceneTokens(num_map_tokens=10, num_agent_tokens=4)
    context = source(straight_scene)
    assert context.tokens.shape == (source.num_tokens, source.width) == (14, TOKEN_WIDTH)
    # 60 m of lane in pieces of 15 m, one connector, one crosswalk; two agents.
    assert context.mask.tolist() == [True] * 6 + [False] * 4 + [True] * 2 + [False] * 2
    assert np.all(context.tokens[~context.mask] == 0.0)


def test_a_lane_is_cut_into_equal_pieces_that_cover_it(straight_scene):
    lanes = tokens_of(SceneTokens()(straight_scene), TokenKind.LANE)
    x = np.array(sorted((t[:12].reshape(6, 2)[:, 0] * 32).tolist() for t in lanes))
    np.testing.assert_allclose(x, -20 + 15 * np.arange(4)[:, None] + 3 * np.arange(6), atol=1e-5)


def test_tokens_come_nearest_first(straight_scene):
    context = SceneTokens()(straight_scene)
    nearest = [np.linalg.norm(t[:12].reshape(6, 2), axis=1).min() for t in context.tokens[context.mask]]
    assert nearest[:6] == sorted(nearest[:6])
    assert kinds(context)[6:] == [TokenKind.PEDESTRIAN, TokenKind.VEHICLE]


def test_the_nearest_are_kept_when_there_are_too_many(straight_scene):
    full = SceneTokens()(straight_scene)
    cut = SceneTokens(num_map_tokens=2, num_agent_tokens=1)(straight_scene)
    np.testing.assert_array_equal(cut.tokens[:2], full.tokens[:2])
    assert kinds(cut)[2:] == [TokenKind.PEDESTRIAN]
    assert cut.mask.all()


def test_what_lies_beyond_the_radius_is_left_out(straight_scene):
    context = SceneTokens(radius_m=10.0)(straight_scene)
    # Of the pieces -20..-5, -5..10, 10..25 and 25..40, the last is farther than 10 m; so is the car.
    assert kinds(context) == [TokenKind.LANE] * 3 + [TokenKind.PEDESTRIAN]


def test_lane_flags_hold_limit_route_and_light(straight_scene):
    context = SceneTokens()(straight_scene)
    lane = tokens_of(context, TokenKind.LANE)[0]
    connector = tokens_of(context, TokenKind.LANE_CONNECTOR)[0]
    np.testing.assert_allclose(lane[FLAGS], [1.2, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(connector[FLAGS], [0, 0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(lane[DIRECTION], [1, 0], atol=1e-6)


def test_a_green_connector_is_governed_by_a_light_that_is_not_red(straight_scene):
    green = dataclasses.replace(straight_scene, red_light_connectors=frozenset())
    connector = tokens_of(SceneTokens()(green), TokenKind.LANE_CONNECTOR)[0]
    np.testing.assert_allclose(connector[FLAGS], [0, 0, 0, 0, 1], atol=1e-6)


def test_an_agent_holds_its_past_its_extrapolation_and_its_size(straight_scene):
    car = tokens_of(SceneTokens()(straight_scene), TokenKind.VEHICLE)[0]
    # Not seen in the oldest frame, so it stands there at the first place it was seen.
    np.testing.assert_allclose(car[:12].reshape(6, 2)[:, 0] * 32, [14, 14, 17, 20, 32, 44], atol=1e-5)
    np.testing.assert_allclose(car[MOTION], [0.6, 0, 0.6, 0.8, 0.4], atol=1e-6)


def test_an_agent_faces_where_its_box_faces(straight_scene):
    walker = tokens_of(SceneTokens()(straight_scene), TokenKind.PEDESTRIAN)[0]
    np.testing.assert_allclose(walker[DIRECTION], [0, 1], atol=1e-6)


def test_places_are_coded_by_sines_then_cosines(straight_scene):
    walker = tokens_of(SceneTokens()(straight_scene), TokenKind.PEDESTRIAN)[0]
    phase = 2 * np.pi * np.array([5.0, -6.0]) / 8.0
    np.testing.assert_allclose(walker[32:34], np.sin(phase), atol=1e-6)
    np.testing.assert_allclose(walker[42:44], np.cos(phase), atol=1e-6)


def test_a_lane_of_no_length_gives_no_token(straight_scene):
    lane = straight_scene.map.elements[0]
    point = dataclasses.replace(lane, centerline=np.zeros((2, 3)))
    patch = dataclasses.replace(straight_scene.map, elements=(point,))
    assert tokens_of(SceneTokens()(dataclasses.replace(straight_scene, map=patch)), TokenKind.LANE) == []


@pytest.mark.parametrize("parameter", ["num_map_tokens", "num_agent_tokens", "radius_m", "piece_length_m"])
def test_a_limit_that_is_not_positive_is_refused_by_name(parameter):
    with pytest.raises(ValueError, match=f"{parameter}=0 must be positive"):
        SceneTokens(**{parameter: 0})


def test_a_shape_alone_gives_no_tokens(straight_scene):
    shape = ContextShape(num_tokens=2800, width=1536)
    with pytest.raises(ValueError, match=r"00000000000000aa has no context: .*\(2800, 1536\)"):
        shape(straight_scene)


def test_no_context_is_an_empty_table_of_its_own_shape(straight_scene):
    source = NoContext()
    context = source(straight_scene)
    assert context.tokens.shape == (source.num_tokens, source.width) == (0, 0)
    assert context.mask.shape == (0,) and context.mask.dtype == bool
