"""Which platforms JAX looks for."""

import importlib.util
import os
from pathlib import Path

_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of network cards of Google's cloud.


def leave_out_absent_tpu(devices: Path = Path("/")) -> None:
    """Has JAX look for no TPU where there cannot be one; call it before JAX is imported.

    libtpu is also the compiler of `--compile_for` and may be installed without any TPU. JAX would load it all the same,
    and it tells on stderr of everything that it does not find. Nothing changes where JAX_PLATFORMS is set, or a PCI
    device of Google's or a GPU is there.

    Args:
      devices: Root of the file system whose devices count.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    vendors = (path.read_text().strip() for path in devices.glob("sys/bus/pci/devices/*/vendor"))
    if _GOOGLE in vendors or any(devices.glob("dev/nvidia[0-9]*")) or (devices / "dev/kfd").exists():
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
