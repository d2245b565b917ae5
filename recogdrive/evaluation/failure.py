"""Pictures of what went wrong: the collision, the corner off the road, the projection of time to collision.

Axes as in `bev`. Everything drawn here carries a gid `failure:...`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline

from recogdrive.data.types import FUTURE_FRAMES, Scene
from recogdrive.evaluation.bev import HUMAN, View, area_outline, draw_scene, empty_figure, plot_xy, view_of
from recogdrive.evaluation.pdms import Evidence
from recogdrive.geometry import box_corners, from_frame, to_frame
from recogdrive.pdm.footprint import CORNER_NAMES
from recogdrive.pdm.scene import DRIVABLE_LAYERS, PdmScene
from recogdrive.pdm.state import (
    HALF_LENGTH_M,
    HALF_WIDTH_M,
    REAR_AXLE_TO_CENTER_M,
    STEP_S,
    EgoState,
)

COLLISION_COLOR = "#b3001b"
OFF_ROAD_COLOR = "#7b1fa2"
TTC_COLOR = "#d95f02"
SIMULATED_COLOR = "#111111"
CENTERLINE_COLOR = "#2a7f9e"
NORMALISER_COLOR = "#2e7d32"
DRIVABLE_COLOR, DRIVABLE_EDGE = "#ececec", "#9a9a9a"

HALF_SIDE_M = 18.0
"""Nearer than other pictures: contact of boxes should be seen."""


@dataclass(frozen=True)
class Mark:
    """One thing marked in a picture.

    Attributes:
      gid: What it is, `failure:...`.
      xy: (4, 2) corners of a box, (N, 2) points of a way, or (1, 2) a point, in the scene frame.
      color: Of its line.
      look: Shape of the mark: an "ego" box is tinted, its "projection" dashed, an "object" hatched, a "way" dotted, a
        "point" a cross.
      label: Text beside it.
      offset: Where the label stands from the middle of the mark, in points right and up.
    """

    gid: str
    xy: Float[np.ndarray, "N 2"]
    color: str
    look: Literal["ego", "projection", "object", "way", "point"]
    label: str = ""
    offset: tuple[float, float] = (0.0, 0.0)


def failure_figure(
    scene: Scene, pdm_scene: PdmScene, evidence: Evidence, planned: Float[np.ndarray, "8 3"], *, dpi: int = 90
) -> Figure:
    """What went wrong as a square figure of its own, without title."""
    figure = empty_figure((5.0, 5.0), dpi)
    draw_failure(figure.add_subplot(), scene, pdm_scene, evidence, planned)
    return figure


def draw_failure(
    ax: Axes,
    scene: Scene,
    pdm_scene: PdmScene,
    evidence: Evidence,
    planned: Float[np.ndarray, "8 3"],
    *,
    view: View | None = None,
) -> None:
    """Draws a scene at its current time, what was planned, what the simulator made of it, and what that violates.

    Args:
      ax: Axes to fill.
      scene: Surroundings.
      pdm_scene: The scene as it was scored.
      evidence: The agent's result and simulated states.
      planned: Poses at 0.5 ... 4 s in the scene frame.
      view: Part of the scene frame to show; by default one that holds everything marked.
    """
    place = to_frame(pdm_scene.origin, scene.origin)
    poses = from_frame(evidence.states[:, : EgoState.HEADING + 1], place)
    marks = failure_marks(pdm_scene, evidence, place)
    driven = {} if scene.future is None else {HUMAN: scene.future[:FUTURE_FRAMES]}
    trajectories = driven | {evidence.row.agent: planned}
    if view is None:
        view = view_of(
            [*trajectories.values(), poses], HALF_SIDE_M, np.concatenate([m.xy for m in marks] or [poses[:1, :2]])
        )
    draw_scene(ax, scene, trajectories, view=view, legend=False, title="")
    _draw_drivable_area(ax, pdm_scene, place)
    _draw_line(ax, "centerline", _points(pdm_scene.centerline, place), CENTERLINE_COLOR, "centre line", "-.")
    ahead = from_frame(pdm_scene.normaliser_poses[: len(poses)], place)[:, :2]
    name = f"full progress ({pdm_scene.normaliser_name})"
    _draw_line(ax, "normaliser", ahead, NORMALISER_COLOR, name, "--")
    _draw_line(ax, "simulated", poses[:, :2], SIMULATED_COLOR, "simulated", "-", zorder=4.6)
    for mark in marks:
        _draw_mark(ax, mark)
    for text in ax.legend(loc="upper left", fontsize=6.5, framealpha=0.85).get_texts():
        text.set_parse_math(False)


def failure_marks(pdm_scene: PdmScene, evidence: Evidence, place: Float[np.ndarray, "3"]) -> tuple[Mark, ...]:
    """What to mark: footprints at the moments that cost points, and what they hit, in the scene frame.

    Args:
      pdm_scene: The scene as it was scored.
      evidence: The result.
      place: Pose of the PDM scene's local frame in the scene frame.
    """
    row, states = evidence.row, np.asarray(evidence.states, dtype=np.float64)
    marks: list[Mark] = []
    if row.ttc_step is not None:
        step, ahead = row.ttc_step, row.ttc_ahead_steps
        label = f"TTC {step * STEP_S:.1f} + {ahead * STEP_S:.1f} s"
        marks.append(Mark("failure:ttc_way", _way(pdm_scene, row.ttc_track, step + ahead, place), TTC_COLOR, "way"))
        marks.append(Mark("failure:ttc_ego", footprint(states[step], place), TTC_COLOR, "ego"))
        moved = footprint(states[step], place, moved_s=ahead * STEP_S)
        marks.append(Mark("failure:ttc_projection", moved, TTC_COLOR, "projection"))
        box = _box(pdm_scene, row.ttc_track, step + ahead, place)
        marks.append(Mark("failure:ttc_box", box, TTC_COLOR, "object", label=label, offset=(-12.0, 14.0)))
    if row.off_road_step is not None:
        corners = footprint(states[row.off_road_step], place)
        marks.append(Mark("failure:off_road_ego", corners, OFF_ROAD_COLOR, "ego"))
        corner = corners[[CORNER_NAMES.index(row.off_road_corner)]]
        label = f"off road {row.off_road_step * STEP_S:.1f} s"
        marks.append(
            Mark("failure:off_road_corner", corner, OFF_ROAD_COLOR, "point", label=label, offset=(14.0, -14.0))
        )
    if row.collision_step is not None:
        step = row.collision_step
        marks.append(
            Mark("failure:collision_way", _way(pdm_scene, row.collision_track, step, place), COLLISION_COLOR, "way")
        )
        marks.append(Mark("failure:collision_ego", footprint(states[step], place), COLLISION_COLOR, "ego"))
        box, label = _box(pdm_scene, row.collision_track, step, place), f"hit {step * STEP_S:.1f} s"
        marks.append(Mark("failure:collision_box", box, COLLISION_COLOR, "object", label=label, offset=(14.0, 14.0)))
    return tuple(marks)


def footprint(
    state: Float[np.ndarray, "11"], place: Float[np.ndarray, "3"], moved_s: float = 0.0
) -> Float[np.ndarray, "4 2"]:
    """Corners of the ego in a simulated state, moved ahead as time to collision does for `moved_s` seconds.

    Args:
      state: In the local frame.
      place: Pose of the local frame in the frame of the result.
      moved_s: How long it keeps its speed along its heading.
    """
    heading = state[EgoState.HEADING]
    ahead = REAR_AXLE_TO_CENTER_M + moved_s * np.hypot(state[EgoState.VELOCITY_X], state[EgoState.VELOCITY_Y])
    center = state[: EgoState.HEADING + 1] + ahead * np.array([np.cos(heading), np.sin(heading), 0.0])
    return box_corners(from_frame(center, place), 2 * HALF_LENGTH_M, 2 * HALF_WIDTH_M)


def _box(scene: PdmScene, track: int, step: int, place: np.ndarray) -> np.ndarray:
    """Corners of a track's box at a step."""
    length, width = np.asarray(scene.agent_sizes[track], dtype=np.float64)
    return box_corners(from_frame(scene.agent_poses[step, track], place), length, width)


def _way(scene: PdmScene, track: int, step: int, place: np.ndarray) -> np.ndarray:
    """Centres of a track from when it is first seen up to a step."""
    poses = scene.agent_poses[: step + 1, track][scene.agent_valid[: step + 1, track]]
    return from_frame(poses, place)[:, :2]


def _points(xy: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Local points in the scene frame."""
    xy = np.asarray(xy, dtype=np.float64)
    return from_frame(np.concatenate([xy, np.zeros((len(xy), 1))], axis=-1), place)[:, :2]


def _drivable_rings(scene: PdmScene, place: np.ndarray) -> Sequence[Outline]:
    """Outlines of everything a corner may be on."""
    vertices = _points(scene.vertices, place)
    rings = [vertices[a:b] for a, b in zip(scene.ring_offsets[:-1], scene.ring_offsets[1:], strict=True)]
    offsets = scene.polygon_offsets
    return [
        area_outline(rings[offsets[p] : offsets[p + 1]])
        for p, layer in enumerate(scene.polygon_layers)
        if layer in DRIVABLE_LAYERS
    ]


def _draw_drivable_area(ax: Axes, scene: PdmScene, place: np.ndarray) -> None:
    """The union of all drivable polygons: their edges first, their areas above, so that only the outer edge shows."""
    outlines = _drivable_rings(scene, place)
    for gid, face, edge, width, zorder in (
        ("drivable_edge", "none", DRIVABLE_EDGE, 2.4, 0.8),
        ("drivable_area", DRIVABLE_COLOR, "none", 0.0, 0.9),
    ):
        areas = PathCollection(outlines, facecolors=face, edgecolors=edge, linewidths=width, zorder=zorder)
        areas.set_gid(f"failure:{gid}")
        ax.add_collection(areas, autolim=False)


def _draw_line(ax: Axes, name: str, xy: np.ndarray, color: str, label: str, style: str, zorder: float = 2.6) -> None:
    (line,) = ax.plot(*plot_xy(xy).T, color=color, linestyle=style, linewidth=1.1, label=label, zorder=zorder)
    line.set_gid(f"failure:{name}")
    ax.autoscale(False)


def _draw_mark(ax: Axes, mark: Mark) -> None:
    """A box, a way or a point, with its label."""
    xy = plot_xy(mark.xy)
    if mark.look == "way":
        (line,) = ax.plot(*xy.T, color=mark.color, linestyle=":", linewidth=1.2, zorder=4.8)
        line.set_gid(mark.gid)
    elif mark.look == "point":
        (point,) = ax.plot(*xy.T, color=mark.color, marker="X", markersize=9, markeredgecolor="white", zorder=5.2)
        point.set_gid(mark.gid)
    else:
        tint = to_rgba(mark.color, 0.25) if mark.look == "ego" else "none"
        style = "--" if mark.look == "projection" else "-"
        box = PolyCollection([xy], facecolors=[tint], edgecolors=mark.color, linestyles=style, linewidths=1.8, zorder=5)
        box.set_hatch("////" if mark.look == "object" else None)
        box.set_gid(mark.gid)
        ax.add_collection(box, autolim=False)
    if mark.label:
        text = ax.annotate(
            mark.label,
            xy.mean(axis=0),
            xytext=mark.offset,
            textcoords="offset points",
            color=mark.color,
            fontsize=8,
            fontweight="bold",
            ha="right" if mark.offset[0] < 0 else "left",
            arrowprops={"arrowstyle": "-", "color": mark.color, "linewidth": 0.8},
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
            zorder=6,
        )
        text.set_gid(f"{mark.gid}:label")
