"""Which proposal the PDM-Closed of NAVSIM v2 drives: it scores the same proposals by the extended score.

Source: NAVSIM v2.2 `AbstractPDMClosedPlanner._get_closed_loop_trajectory`, whose scorer is that of the evaluation.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from recogdrive.pdm.batch import SceneBatch
from recogdrive.pdm.extended import LAST_TTC_STEP
from recogdrive.pdm.extended_scores import MULTIPLIED, weighted_score
from recogdrive.pdm.footprint import centers
from recogdrive.pdm.map import any_of, polygons_at
from recogdrive.pdm.metrics.collision import ego_motion
from recogdrive.pdm.metrics.driving_direction import driving_direction
from recogdrive.pdm.metrics.lane_keeping import lane_keeping
from recogdrive.pdm.metrics.progress import extended_ego_progress
from recogdrive.pdm.metrics.traffic_light import Lights, traffic_light
from recogdrive.pdm.scorer import Drive

_ONCOMING = 2
"""Column of `Drive.area_flags`."""


def extended_proposal_scores(scenes: SceneBatch, lights: Lights, driven: Drive) -> Float[Array, "S G"]:
    """Extended scores of proposals that the PDM score has judged already.

    History comfort counts as 1, since the planner gives its scorer no history, and two-frame comfort does not count.
    Progress is relative to the best of the group.

    Args:
      scenes: With the forecast as agents.
      lights: Red lights now on the corrected route, which stay red.
      driven: The proposals, judged in `scenes`.
    """
    center = centers(driven.states)
    flat = center.reshape(center.shape[0], -1, 2)
    in_intersection = any_of(polygons_at(scenes.maps, flat[..., 0], flat[..., 1]), scenes.maps.intersection_bits)
    in_intersection = in_intersection.reshape(center.shape[:-1])
    direction, _ = driving_direction(center, driven.area_flags[..., _ONCOMING] & ~in_intersection)
    no_red_light, _, _ = traffic_light(ego_motion(driven.states).footprint, lights)
    on_line, _ = lane_keeping(center, in_intersection, scenes.centerline, scenes.centerline_points)
    # The first contact with a track decides, so that an earlier end of the search leaves later violations out.
    in_time = (driven.ttc_step >= 0) & (driven.ttc_step <= LAST_TTC_STEP)
    scores = driven._asdict() | {
        "driving_direction_compliance": direction,
        "traffic_light_compliance": no_red_light,
        "time_to_collision_within_bound": jnp.where(in_time, 0, 1).astype(direction.dtype),
        "lane_keeping": on_line,
        "history_comfort": jnp.ones_like(direction),
    }
    factor = jnp.prod(jnp.stack([scores[name] for name in MULTIPLIED]), axis=0)
    best = jnp.max(driven.progress_m * factor, axis=-1, keepdims=True)
    scores["ego_progress"] = extended_ego_progress(driven.progress_m, factor, best, jnp.ones_like(best))
    return weighted_score(scores)
