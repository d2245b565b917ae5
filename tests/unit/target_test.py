from dataclasses import dataclass

import jax
import pytest

from recogdrive.target import target_devices, target_platform, targeting


@dataclass(frozen=True)
class Chip:
    id: int
    process_index: int
    platform: str = "tpu"


def test_unless_told_otherwise_programs_are_made_for_the_devices_that_are_here():
    assert target_devices() == jax.devices()
    assert target_platform() == jax.default_backend()


def test_other_devices_are_targeted_within_a_context_alone():
    with targeting([Chip(0, 0), Chip(1, 0)]):
        assert len(target_devices()) == 2 and target_platform() == "tpu"
    assert target_devices() == jax.devices()


def test_devices_of_a_process_stand_together():
    """On a pod of 4 x 4 chips a process has those of a square, numbered line by line."""
    chips = [Chip(number, number // 8 * 2 + number % 4 // 2) for number in range(16)]
    with targeting(chips):
        assert [chip.id for chip in target_devices()][:8] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_no_devices_are_no_target():
    with pytest.raises(ValueError, match="at least one device"), targeting([]):
        pass
