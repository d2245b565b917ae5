"""What the fragments under gin/reward and gin/option make of REWARD."""

from pathlib import Path

import gin
import pytest

from recogdrive.pdm.rewards.reward import Reward

REPOSITORY = Path(__file__).resolve().parents[4]


@gin.register(module="fragments_test")
def rewarded(reward: Reward) -> Reward:
    return reward


@pytest.mark.parametrize(
    ("fragment", "bindings", "parts", "weights"),
    [
        ("reward/pdms", "", {"pdms", "comfort"}, None),
        ("reward/epdms", "", {"epdms", "epdms_lane_keeping"}, None),
        ("reward/pdms_epdms", "EPDMS_WEIGHT = 0.25", {"pdms", "epdms"}, (0.5, 0.25)),
        ("option/reverse_penalty", "REVERSE_WEIGHT = 2", {"pdms", "reverse_penalty"}, (1.0, 2.0)),
        ("option/extended_comfort_reward", "COMFORT_WEIGHT = 0.3", {"pdms", "extended_comfort"}, (1.0, 0.3)),
        ("option/host_reward", "HOST_WORKERS = 3", {"pdms", "comfort"}, None),
    ],
)
def test_a_fragment_binds_the_reward_and_its_knobs(fragment, bindings, parts, weights):
    gin.parse_config_file(str(REPOSITORY / "gin" / f"{fragment}.gin"))
    gin.parse_config(f"fragments_test.rewarded.reward = %REWARD\n{bindings}")
    reward = gin.get_configurable("fragments_test.rewarded")()
    assert parts <= set(reward.part_names)
    assert getattr(reward, "weights", None) == weights or weights is None
    assert reward.uses_previous_plans == (fragment == "option/extended_comfort_reward")
    assert getattr(reward, "workers", 3) == 3
