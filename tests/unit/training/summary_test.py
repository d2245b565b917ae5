"""What a person watches: TensorBoard events read back, the bar and the log lines."""

import io
import sys
import time

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recogdrive.training.summary import EventWriter, Progress


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def curve(folder, name):
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def test_scalars_are_read_back_under_their_names_and_steps(tmp_path):
    writer = EventWriter(tmp_path, restored_step=0)
    writer.scalars(1, {"train/loss": 0.5, "train/lr": 0.25})
    writer.scalars(2, {"train/loss": 0.125})
    writer.close()
    assert curve(tmp_path, "train/loss") == [(1, 0.5), (2, 0.125)]
    assert curve(tmp_path, "train/lr") == [(1, 0.25)]


def test_points_after_the_restored_step_are_dropped_when_a_run_continues(tmp_path):
    first = EventWriter(tmp_path, restored_step=0)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": float(step)})
    first.close()
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which hold the second they were begun in.
    second = EventWriter(tmp_path, restored_step=1)
    second.scalars(2, {"loss": 20.0})
    second.close()
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 20.0)]


def test_pictures_keep_their_pixels(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    writer = EventWriter(tmp_path, restored_step=0)
    writer.image(4, "eval/picture", pixels)
    writer.close()
    (event,) = events(tmp_path).Images("eval/picture")
    assert (event.step, event.width, event.height) == (4, 3, 2)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), pixels)


def test_figures_are_written_at_their_size(tmp_path):
    writer = EventWriter(tmp_path, restored_step=0)
    writer.figure(1, "eval/figure", Figure(figsize=(2, 1), dpi=50))
    writer.close()
    (event,) = events(tmp_path).Images("eval/figure")
    assert (event.width, event.height) == (100, 50)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def a_terminal(monkeypatch):
    """Called within the test: pytest sets its own standard error between a fixture and its test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_text_is_written_as_it_is(tmp_path):
    writer = EventWriter(tmp_path, 0)
    writer.text(3, "eval/answers", "**question**\n\nanswer, ±1 m")
    writer.close()
    (event,) = events(tmp_path).Tensors("eval/answers")
    assert event.step == 3
    assert event.tensor_proto.string_val[0].decode() == "**question**\n\nanswer, ±1 m"


def test_a_terminal_shows_a_bar_with_the_few_numbers_that_fit(monkeypatch):
    terminal = a_terminal(monkeypatch)
    progress = Progress(10, 4, visible=True)
    progress.advance()
    progress.report(5, {"loss": 0.25, "grad_norm": 7.0, "lr": 0.001, "samples_per_s": 12.0})
    progress.close()
    shown = terminal.getvalue()
    assert "5/10" in shown and "loss=0.25" in shown and "samples_per_s=12" in shown
    assert "grad_norm" not in shown


def test_an_evaluation_stands_on_a_line_of_its_own_above_the_bar(monkeypatch):
    terminal = a_terminal(monkeypatch)
    progress = Progress(10, 0, visible=True)
    progress.report(5, {"eval/fde": 1.5, "eval/other_log/fde": 2.5})
    progress.close()
    assert "step=5 eval/fde=1.5 eval/other_log/fde=2.5\n" in terminal.getvalue()


def test_elsewhere_every_report_is_a_log_line_with_all_numbers(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = Progress(10, 0, visible=True)
    with caplog.at_level("INFO"):
        progress.report(5, {"loss": 0.25, "grad_norm": 7.0})
    assert "step=5 loss=0.25 grad_norm=7" in caplog.text
    assert sys.stderr.getvalue() == ""


def test_other_processes_show_nothing(caplog, monkeypatch):
    terminal = a_terminal(monkeypatch)
    progress = Progress(10, 0, visible=False)
    with caplog.at_level("INFO"):
        progress.report(5, {"loss": 0.25})
    progress.close()
    assert caplog.text == "" and terminal.getvalue() == ""
