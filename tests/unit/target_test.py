import jax
import pytest

from recogdrive.target import target_devices, target_platform, targeting


def test_unless_told_otherwise_programs_are_made_for_the_devices_that_are_here():
    assert target_devices() == jax.devices()
    assert target_platform() == jax.default_backend()


def test_other_devices_are_targeted_within_a_context_alone():
    class Chip:
        platform = "tpu"

    with targeting([Chip(), Chip()]):
        assert len(target_devices()) == 2 and target_platform() == "tpu"
    assert target_devices() == jax.devices()


def test_no_devices_are_no_target():
    with pytest.raises(ValueError, match="at least one device"), targeting([]):
        pass
