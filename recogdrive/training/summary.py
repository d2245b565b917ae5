"""What a person watches during training: TensorBoard events and a progress bar."""

import io
import numbers
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

TENSORBOARD_FOLDER = "tensorboard"
"""Name of the events' folder within a run folder."""

_BESIDE_THE_BAR = ("loss", "lr", "samples_per_s")


class EventWriter:
    """Writes scalars and pictures for TensorBoard.

    Args:
      folder: Where the event file goes; each start of a run adds one.
      restored_step: Step the run continues from; TensorBoard drops what earlier starts wrote for later steps.
    """

    def __init__(self, folder: Path, restored_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, in which nothing orders the starts of one second.
        while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=restored_step + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each named curve."""
        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, entries)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Adds a picture given as 8-bit RGB."""
        buffer = io.BytesIO()
        Image.fromarray(pixels, "RGB").save(buffer, format="PNG")
        self._add_png(step, name, buffer.getvalue(), pixels.shape[1], pixels.shape[0])

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Adds a Matplotlib figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        with Image.open(buffer) as picture:
            width, height = picture.size
        self._add_png(step, name, buffer.getvalue(), width, height)

    def text(self, step: int, name: str, text: str) -> None:
        """Adds a text, which TensorBoard shows as Markdown."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        self._add(step, [Summary.Value(tag=name, metadata=metadata, tensor=tensor)])

    def results(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Adds whatever an evaluation returned: scalars, texts, (H, W, 3) uint8 pictures, Matplotlib figures."""
        self.scalars(step, {f"{group}/{name}": float(value) for name, value in values.items() if is_scalar(value)})
        for name, value in values.items():
            if isinstance(value, str):
                self.text(step, f"{group}/{name}", value)
            elif isinstance(value, np.ndarray) and value.ndim == 3:
                self.image(step, f"{group}/{name}", value)
            elif not is_scalar(value):
                self.figure(step, f"{group}/{name}", value)

    def _add_png(self, step: int, name: str, png: bytes, width: int, height: int) -> None:
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
        self._add(step, [Summary.Value(tag=name, image=image)])

    def _add(self, step: int, values: list[Summary.Value]) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left and ends the writing thread."""
        self._writer.close()


def is_scalar(value: Any) -> bool:
    """Whether a value is one number, on the host or on a device."""
    return isinstance(value, numbers.Real) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0)


class Progress:
    """A progress bar on a terminal, a log line an interval elsewhere.

    Args:
      steps: Length of the run.
      done: Steps done when it starts.
      visible: False on all but the lead process.
    """

    def __init__(self, steps: int, done: int, *, visible: bool) -> None:
        self._visible = visible
        terminal = visible and sys.stderr.isatty()
        self._bar = tqdm(desc="train", total=steps, initial=done, unit="step", dynamic_ncols=True) if terminal else None

    def advance(self) -> None:
        """One step more."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the latest numbers: training's beside the bar, where few fit, an evaluation's on a line above it."""
        line = f"step={step} " + " ".join(f"{name}={value:.4g}" for name, value in values.items())
        if self._bar is None:
            if self._visible:
                logging.info(line)
        elif beside := {name: f"{values[name]:.4g}" for name in _BESIDE_THE_BAR if name in values}:
            self._bar.set_postfix(beside)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is and ends its line."""
        if self._bar is not None:
            self._bar.close()
