"""What computes: a stamp for what it writes, and a test of its linear algebra before anything is written.

Source: NAVSIM issues #137, #146 and #201, ReCogDrive issue #10: metric caches made with some builds of OpenBLAS, those
bundled with NumPy 1.23, hold wrong inverses and hence zeros wherever the simulated ego enters.
"""

import platform
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import shapely

_SIZES = (3, 8, 40, 129)
_MATRICES = 16
_TOLERANCE = 1e-9


class MachineError(RuntimeError):
    """A machine that computes wrong numbers; the message says which and what to do."""


def machine_stamp() -> dict[str, str]:
    """Versions of the libraries that decide the numbers, the BLAS behind NumPy, and the processor."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "numpy": np.__version__,
        "blas": " ".join(str(blas[key]) for key in ("name", "version") if blas.get(key)),
        "shapely": f"{shapely.__version__} (GEOS {shapely.geos_version_string})",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cpu": _processor(),
    }


def _processor() -> str:
    """Model of the processor, with its family's name for the architecture."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    return f"{model or platform.processor() or 'unknown'} ({platform.machine()})"


def check_linear_algebra(
    inverse: Callable[[np.ndarray], np.ndarray] = np.linalg.inv,
    product: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul,
) -> None:
    """Inverts and multiplies matrices whose results are known; takes well under a second.

    Args:
      inverse: Of stacked matrices, (N, K, K).
      product: Of stacked matrices.

    Raises:
      MachineError: A result is wrong.
    """
    rng = np.random.default_rng(0)
    for size in _SIZES:
        # Whole numbers: every sum fits into the mantissa, so that any order of summation is exact.
        whole = rng.integers(-1000, 1000, (2, _MATRICES, size, size))
        exact = np.einsum("nij,njk->nik", *whole)
        for dtype in (np.float64, np.float32):
            limit = 15 if dtype == np.float32 else 1000
            scaled = whole % limit if dtype == np.float32 else whole
            expected = np.einsum("nij,njk->nik", *scaled) if dtype == np.float32 else exact
            if not np.array_equal(product(*scaled.astype(dtype)), expected.astype(dtype)):
                raise _wrong(f"a product of {size} x {size} matrices in {np.dtype(dtype).name}")
        # Diagonally dominant, hence well conditioned.
        regular = whole[0] / 1000 + 2 * size * np.eye(size)
        error = np.abs(np.einsum("nij,njk->nik", inverse(regular), regular) - np.eye(size)).max()
        if not error < _TOLERANCE:
            raise _wrong(f"an inverse of {size} x {size} matrices (off by {error:.1e})")


def _wrong(what: str) -> MachineError:
    stamp = machine_stamp()
    return MachineError(
        f"This machine computes {what} wrong: NumPy {stamp['numpy']} with {stamp['blas']} on {stamp['cpu']}. Nothing "
        "was written. Install another build of NumPy (pip install --force-reinstall 'numpy>=1.26.4'), or run with the "
        "variable OPENBLAS_CORETYPE=Haswell."
    )
