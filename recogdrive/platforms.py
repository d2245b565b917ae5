"""Which platforms JAX looks for, and what it needs of the CPU."""

import importlib.util
import os
import re
from pathlib import Path

_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of network cards of Google's cloud.
_THREADS_A_DEVICE = 4


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


def give_virtual_devices_threads() -> None:
    """Lets XLA have several threads for each virtual device of the CPU; call it before JAX's first device is asked for.

    A collective blocks a thread until all devices have come to it, and devices may come to two collectives that do not
    depend on each other in different orders. XLA has one thread a device or core: all of them may be blocked then, and
    after a minute the process is aborted. Nothing changes for one device, or where PJRT_NPROC is set.
    """
    found = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if found and int(found[-1]) > 1:
        os.environ.setdefault("PJRT_NPROC", str(max(_THREADS_A_DEVICE * int(found[-1]), os.cpu_count() or 1)))
