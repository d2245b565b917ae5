"""Bird's-eye pictures of scenes: map, road users, driven and planned trajectories.

Axes as in NAVSIM: the picture's x is the scene's y with the axis inverted, so that left is left; the picture's y is
the scene's x, so that forward is up. Only matplotlib's object interface is used, so threads may draw side by side.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline

from recogdrive.data.types import FUTURE_FRAMES, PACIFICA, AgentClass, Box, Command, MapLayer, Scene
from recogdrive.evaluation.open_loop import trajectory_errors
from recogdrive.geometry import box_corners, rotate

# Colours and order of the layers: NAVSIM's `MAP_LAYER_CONFIG`, `AGENT_CONFIG` and `TRAJECTORY_CONFIG`.
MAP_STYLE = (
    (MapLayer.GENERIC_DRIVABLE_AREA, "#E4E4E4", 1.0),
    (MapLayer.CARPARK_AREA, "#b9d3b4", 1.0),
    (MapLayer.LANE, "#D3D3D3", 1.0),
    (MapLayer.LANE_CONNECTOR, "#D3D3D3", 1.0),
    (MapLayer.INTERSECTION, "#D3D3D3", 1.0),
    (MapLayer.WALKWAY, "#d4d19e", 1.0),
    (MapLayer.CROSSWALK, "violet", 0.3),
)
CENTERLINE_COLOR = "#666666"
RED_LIGHT_COLOR = "#c0392b"
STATIC_COLOR = "#edc948"
CLASS_COLORS = {
    AgentClass.VEHICLE: "#699CDB",
    AgentClass.PEDESTRIAN: "#b07aa1",
    AgentClass.BICYCLE: "#E38C47",
}
EGO_COLOR = "#DE7061"
HUMAN = "human"
TRAJECTORY_COLORS = {HUMAN: "#59a14f", "planner": EGO_COLOR, "constant_velocity": "#5566cc", "vlm_text": "#8e44ad"}
FURTHER_COLORS = (EGO_COLOR, "#8e44ad", "#00798c", "#a0522d", "#b8860b")

HALF_SIDE_M = 32.0
MAX_REACH_M = 150.0
"""Poses farther from the ego than this do not widen the view; the legend says that they lie outside."""
_MARGIN_M = 4.0


@dataclass(frozen=True)
class View:
    """A square of the scene frame, in metres: `forward` along x and `left` along y, each (low, high)."""

    forward: tuple[float, float]
    left: tuple[float, float]

    @property
    def side_m(self) -> float:
        """Length of the square's side."""
        return self.forward[1] - self.forward[0]

    def contains(self, xy: Float[np.ndarray, "*n 2"]) -> bool:
        """Whether all points lie inside."""
        low, high = np.array([self.forward, self.left]).T
        return bool(((xy >= low) & (xy <= high)).all())


def plot_xy(xy: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """Scene-frame points (x forward, y left) as picture coordinates (y, x)."""
    return np.asarray(xy)[..., ::-1]


def view_of(
    trajectories: Sequence[Float[np.ndarray, "T 3"]],
    half_side_m: float = HALF_SIDE_M,
    include: Float[np.ndarray, "N 2"] | None = None,
) -> View:
    """The smallest square, not below the default, that holds the ego and all trajectories; moved as little as possible.

    Trajectories with non-finite poses and poses beyond `MAX_REACH_M` are left out of account; the points to `include`
    never are.
    """
    points = [np.array([[-PACIFICA.length_m, 0.0], [PACIFICA.length_m, 0.0]])]
    points += [] if include is None else [np.asarray(include, dtype=np.float64)]
    for trajectory in trajectories:
        xy = np.asarray(trajectory, dtype=np.float64)[..., :2]
        if np.isfinite(trajectory).all():
            points.append(xy[np.hypot(*xy.T) <= MAX_REACH_M])
    low, high = np.concatenate(points).min(axis=0) - _MARGIN_M, np.concatenate(points).max(axis=0) + _MARGIN_M
    half = max(half_side_m, float((high - low).max()) / 2)
    center = np.clip(0.0, high - half, low + half)
    (forward, left) = np.stack([center - half, center + half], axis=-1).tolist()
    return View(tuple(forward), tuple(left))


def trajectory_color(name: str, order: int) -> str:
    """Colour of the trajectory of that name, which is the `order`th of its picture."""
    return TRAJECTORY_COLORS.get(name, FURTHER_COLORS[order % len(FURTHER_COLORS)])


def draw_scene(
    ax: Axes,
    scene: Scene,
    trajectories: Mapping[str, Float[np.ndarray, "T 3"]],
    *,
    view: View | None = None,
    legend: bool = True,
    title: str | None = None,
) -> None:
    """Draws a scene at its current time with named trajectories.

    Args:
      ax: Axes to fill.
      scene: What to draw.
      trajectories: Name -> poses at 0.5 ... 4 s in the scene frame; drawn from the origin, later ones on top.
        One with non-finite poses is not drawn; the legend says so.
      view: Part of the scene frame to show; by default `view_of` the trajectories.
      legend: Whether to name the trajectories.
      title: By default token, speed and command, and the FDE of every trajectory but the human's.
    """
    view = view or view_of(list(trajectories.values()))
    _draw_map(ax, scene)
    _draw_road_users(ax, scene)
    _draw_ego(ax)
    for i, (name, trajectory) in enumerate(trajectories.items()):
        _draw_trajectory(ax, name, np.asarray(trajectory, dtype=np.float64), i, view)
    _draw_scale_bar(ax, view)
    ax.set_xlim(view.left[1], view.left[0])
    ax.set_ylim(*view.forward)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("white")
    title = scene_title(scene, trajectories) if title is None else title
    ax.set_title(title, fontsize=8, parse_math=False)
    if legend and trajectories:
        # Where the road ahead rarely is, and never over the ego.
        entries = ax.legend(loc="upper left", fontsize=7, framealpha=0.85)
        for text in entries.get_texts():
            text.set_parse_math(False)


def scene_title(scene: Scene, trajectories: Mapping[str, Float[np.ndarray, "T 3"]]) -> str:
    """Token, speed and command, and how far each trajectory ends from the driven one where that is known."""
    speed = np.linalg.norm(scene.ego.velocity[-1])
    command = Command(int(np.argmax(scene.ego.command[-1]))).name.lower()
    lines = [f"{scene.token}   {speed:.1f} m/s   {command}"]
    ends = []
    for name, trajectory in trajectories.items():
        if name == HUMAN or scene.future is None or len(scene.future) < FUTURE_FRAMES:
            continue
        valid = np.isfinite(trajectory).all()
        fde = trajectory_errors(trajectory, scene.future[:FUTURE_FRAMES])["fde"] if valid else None
        ends.append(f"{name} invalid" if fde is None else f"{name} {fde:.2f} m")
    if ends:
        lines.append("FDE  " + "   ".join(ends))
    return "\n".join(lines)


def scene_figure(
    scene: Scene,
    trajectories: Mapping[str, Float[np.ndarray, "T 3"]],
    *,
    size_in: float = 5.0,
    dpi: int = 100,
    view: View | None = None,
    title: str | None = None,
) -> Figure:
    """One scene as a figure of its own, square below its title; an empty `title` leaves none."""
    figure = empty_figure((size_in, size_in + (0.0 if title == "" else 0.4)), dpi)
    draw_scene(figure.add_subplot(), scene, trajectories, view=view, title=title)
    return figure


def trajectory_grid(
    scenes: Sequence[Scene],
    predictions: Mapping[str, Float[np.ndarray, "N 8 3"]],
    *,
    columns: int = 3,
    dpi: int = 80,
) -> Figure:
    """Several scenes side by side with every agent's trajectory and the driven one where known; for TensorBoard.

    Raises:
      ValueError: There are no scenes, or an agent's predictions are not one for each scene.
    """
    if not len(scenes):
        raise ValueError("There are no scenes to draw; a grid needs at least one.")
    for agent, predicted in predictions.items():
        if len(predicted) != len(scenes):
            raise ValueError(f"{len(predicted)} predictions of {agent!r} for {len(scenes)} scenes: give one for each.")
    columns = min(columns, len(scenes))
    rows = -(-len(scenes) // columns)
    figure = empty_figure((4.0 * columns, 4.3 * rows), dpi)
    for i, scene in enumerate(scenes):
        trajectories = {} if scene.future is None else {HUMAN: scene.future[:FUTURE_FRAMES]}
        trajectories |= {agent: predicted[i] for agent, predicted in predictions.items()}
        draw_scene(figure.add_subplot(rows, columns, i + 1), scene, trajectories, legend=i == 0)
    return figure


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "H W 3"]:
    """Renders a figure to RGB, as `SummaryWriter.add_image(..., dataformats="HWC")` takes it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def figure_png(figure: Figure) -> bytes:
    """Renders a figure to the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def empty_figure(size_in: tuple[float, float], dpi: int) -> Figure:
    """An empty white figure that no global state knows of."""
    figure = Figure(figsize=size_in, dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def area_outline(rings: Sequence[Float[np.ndarray, "V 2"]]) -> Outline:
    """Outline and holes of a scene-frame polygon as one path in picture coordinates.

    Holes run the other way round, since Agg fills by winding number.
    """
    vertices, codes = [], []
    for ring, direction in ((rings[0], 1.0), *((hole, -1.0) for hole in rings[1:])):
        x, y = np.asarray(ring, dtype=np.float64)[:, :2].T
        area = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)
        ring = plot_xy(ring[:, :2] if area * direction >= 0 else ring[::-1, :2])
        vertices.append(np.concatenate([ring, ring[:1]]))
        codes += [Outline.MOVETO, *[Outline.LINETO] * (len(ring) - 1), Outline.CLOSEPOLY]
    return Outline(np.concatenate(vertices), codes)


def _draw_map(ax: Axes, scene: Scene) -> None:
    """Areas layer by layer, then the centrelines of lanes and connectors; red lights where they hold traffic."""
    for order, (layer, color, alpha) in enumerate(MAP_STYLE):
        outlines = [area_outline((e.polygon, *e.holes)) for e in scene.map.layer(layer) if e.polygon is not None]
        if outlines:
            areas = PathCollection(outlines, facecolors=color, edgecolors="none", alpha=alpha, zorder=1 + order / 10)
            areas.set_gid(f"map:{layer}")
            ax.add_collection(areas, autolim=False)
    lines: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for element in scene.map.layer(MapLayer.LANE, MapLayer.LANE_CONNECTOR):
        if element.centerline is not None:
            is_red = element.layer == MapLayer.LANE_CONNECTOR and element.id in scene.red_light_connectors
            lines[is_red].append(plot_xy(element.centerline[:, :2]))
    for is_red, gid, color in ((False, "map:centerlines", CENTERLINE_COLOR), (True, "map:red_lights", RED_LIGHT_COLOR)):
        if lines[is_red]:
            strokes = LineCollection(lines[is_red], colors=color, linestyles="--", linewidths=0.8, zorder=2)
            strokes.set_gid(gid)
            ax.add_collection(strokes, autolim=False)


def _draw_road_users(ax: Axes, scene: Scene) -> None:
    """Annotated objects as oriented boxes; those that move have a tick from the centre to the front."""
    now = scene.current_detections
    boxes = np.asarray(now.boxes, dtype=np.float64)
    if not len(boxes):
        return
    poses = boxes[:, [Box.X, Box.Y, Box.HEADING]]
    corners = plot_xy(box_corners(poses, boxes[:, Box.LENGTH], boxes[:, Box.WIDTH]))
    fronts = poses[:, :2] + rotate(boxes[:, [Box.LENGTH]] / 2 * [1.0, 0.0], poses[:, 2])
    for agent_class in AgentClass:
        of_class = np.asarray(now.classes) == agent_class
        if not of_class.any():
            continue
        color = CLASS_COLORS.get(agent_class, STATIC_COLOR)
        shapes = PolyCollection(corners[of_class], facecolors=color, edgecolors="black", linewidths=0.7, zorder=3)
        shapes.set_gid(f"objects:{agent_class.name.lower()}")
        ax.add_collection(shapes, autolim=False)
        if agent_class in CLASS_COLORS:
            segments = plot_xy(np.stack([poses[of_class, :2], fronts[of_class]], axis=1))
            ticks = LineCollection(segments, colors="black", linewidths=0.7, zorder=3.1)
            ticks.set_gid(f"headings:{agent_class.name.lower()}")
            ax.add_collection(ticks, autolim=False)


def _draw_ego(ax: Axes) -> None:
    """The ego's box; the scene frame's origin is its rear axle, so the box's centre lies ahead of it."""
    center = np.array([PACIFICA.rear_axle_to_center_m, 0.0, 0.0])
    corners = plot_xy(box_corners(center, PACIFICA.length_m, PACIFICA.width_m))
    ego = PolyCollection([corners], facecolors=EGO_COLOR, edgecolors="black", linewidths=0.7, zorder=3.2)
    ego.set_gid("ego")
    ax.add_collection(ego, autolim=False)


def _draw_trajectory(ax: Axes, name: str, trajectory: np.ndarray, order: int, view: View) -> None:
    """A line with a round marker at every pose, from the origin."""
    color = trajectory_color(name, order)
    if not np.isfinite(trajectory).all():
        ax.plot([], [], color=color, linestyle=":", label=f"{name} (invalid, not drawn)")
        return
    path = plot_xy(np.concatenate([np.zeros((1, 2)), trajectory[:, :2]]))
    label = name if view.contains(trajectory[:, :2]) else f"{name} (leaves the view)"
    width = 3.6 if name == HUMAN else 1.8  # a plan that matches the human's leaves a green rim
    # White below: a slow plan lies on the ego's box, which has the planner's colour.
    ax.plot(*path.T, color="white", linewidth=width + 1.2, zorder=4 + order / 10)
    (line,) = ax.plot(*path.T, color=color, marker="o", linewidth=width, label=label, zorder=4 + order / 10)
    line.set(markersize=width + 1.4, markeredgecolor="white", markeredgewidth=0.4)
    line.set_gid(f"trajectory:{name}")


def _draw_scale_bar(ax: Axes, view: View) -> None:
    """A bar of 10 m in the lower right corner."""
    right, bottom = view.left[0] + 0.04 * view.side_m, view.forward[0] + 0.04 * view.side_m
    (bar,) = ax.plot([right + 10.0, right], [bottom, bottom], color="black", linewidth=2, zorder=5)
    bar.set_gid("scale")
    ax.text(right + 5.0, bottom + 0.012 * view.side_m, "10 m", ha="center", va="bottom", fontsize=7, zorder=5)
