"""The oldest NumPy whose linear algebra can be trusted with driving scores."""

import numpy

MINIMUM_NUMPY = (1, 26, 4)


def require_supported_numpy(version: str = numpy.__version__) -> None:
    """Refuses a NumPy whose bundled BLAS is known to return wrong inverses.

    Args:
      version: NumPy's version string, such as "1.23.4".

    Raises:
      ImportError: `version` is older than `MINIMUM_NUMPY`.

    Source: NAVSIM issues #137, #146, #201 and ReCogDrive issue #10: metric caches written under
      NumPy 1.23 hold zeros wherever the simulated ego enters, on some CPUs.
    """
    found = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split("+")[0].split(".")[:3])
    if found < MINIMUM_NUMPY:
        minimum = ".".join(map(str, MINIMUM_NUMPY))
        raise ImportError(
            f"recogdrive needs NumPy {minimum} or newer, found {version}: the OpenBLAS bundled with older ones returns "
            f"wrong matrix inverses on some CPUs, which silently zeroes simulated scores. "
            f"Run `pip install 'numpy>={minimum}'`."
        )
