"""ReCogDrive on JAX: train, evaluate and share end-to-end driving planners."""

from recogdrive.numerics import require_supported_numpy
from recogdrive.platforms import give_virtual_devices_threads
from recogdrive.version import __version__

require_supported_numpy()
give_virtual_devices_threads()

__all__ = ["__version__"]
