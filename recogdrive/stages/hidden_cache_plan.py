"""What caching hidden states will take, before anything is written."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from recogdrive.data.hidden_cache.codec import BFLOAT16_SHARE, INT8_SHARE
from recogdrive.data.hidden_cache.record import Storage

_REFERENCE_SHARE = 0.53
"""What gzip keeps of float32 numbers that hold bfloat16 values; measured by `benchmarks/hidden_cache.py`."""
_SHARES = {Storage.BFLOAT16: BFLOAT16_SHARE, Storage.INT8: INT8_SHARE}
_BFLOAT16_BYTES = np.dtype(ml_dtypes.bfloat16).itemsize


@dataclass(frozen=True)
class CachePlan:
    """Size and duration of the work.

    Attributes:
      scenes: How many; None where the split is not there.
      num_tokens: T.
      width: V.
      storage: How states are kept.
      free_bytes: Of the disk.
      flops: Operations of one scene.
      assumed_tflops: What one device is assumed to do, 1e12 operations a second.
      devices: Accelerators at work, all processes together.
    """

    scenes: int | None
    num_tokens: int
    width: int
    storage: Storage
    free_bytes: int
    flops: float
    assumed_tflops: float
    devices: int

    @property
    def raw_scene_bytes(self) -> int:
        """Bytes of a scene's states as bfloat16, padding included."""
        return self.num_tokens * self.width * _BFLOAT16_BYTES

    @property
    def scene_bytes(self) -> float:
        """Bytes expected of a scene's record."""
        return self.raw_scene_bytes * _SHARES[self.storage]

    @property
    def hours(self) -> float | None:
        """Expected duration; None where the number of scenes is unknown."""
        if self.scenes is None:
            return None
        return self.scenes * self.flops / (self.assumed_tflops * 1e12 * self.devices) / 3600

    @property
    def fits(self) -> bool:
        """Whether the free disk suffices, as far as is known."""
        return self.scenes is None or self.scenes * self.scene_bytes <= self.free_bytes

    def lines(self) -> list[str]:
        """The plan in words, one fact a line."""
        count = "an unknown number of scenes" if self.scenes is None else f"{self.scenes:,} scenes"
        lines = [f"cache plan: {count}, {self.num_tokens:,} tokens x {self.width:,}, stored as {self.storage}"]
        sizes = {
            "reference layout (float32, gzip)": 2 * self.raw_scene_bytes * _REFERENCE_SHARE,
            "bfloat16, raw": float(self.raw_scene_bytes),
            "bfloat16, lossless planes (expected)": self.raw_scene_bytes * BFLOAT16_SHARE,
            "int8 a channel (expected)": self.raw_scene_bytes * INT8_SHARE,
        }
        for name, size in sizes.items():
            total = "" if self.scenes is None else f", {_readable(size * self.scenes)} in all"
            lines.append(f"  {name:<37} {size / 1e6:10,.3f} MB a scene{total}")
        free = f"  free disk {_readable(self.free_bytes)}"
        lines.append(free if self.fits else f"{free}: TOO LITTLE for {_readable(self.scenes * self.scene_bytes)}")
        speed = f"{self.flops / 1e12:,.3g} TFLOP a scene, assuming {self.assumed_tflops:g} TFLOP/s a device"
        if self.hours is None:
            lines.append(f"  {speed}")
        else:
            lines.append(f"  {speed} x {self.devices}: {self.hours:,.2f} hours")
        return lines


def _readable(size: float) -> str:
    """A number of bytes with a unit; TB = 1e12 bytes."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if size >= factor:
            return f"{size / factor:,.3f} {unit}"
    return f"{size / 1e6:,.3f} MB"
