"""Compiling for chips that are not here: needs libtpu, and no TPU."""

import dataclasses
import json

import pytest

from recogdrive.ahead_of_time import table
from recogdrive.ahead_of_time.chips import GIB, Chip, chip_of, memory_limit, open_topology
from recogdrive.ahead_of_time.estimate import Estimate, render, save, timing_of
from recogdrive.ahead_of_time.hlo import Program
from recogdrive.composition import compose
from recogdrive.experiment import ConfigurationError, find_experiment

FOUND = Estimate(
    experiment="2b_sft",
    topology="v6e:2x2",
    compiler="libtpu 0.0.51",
    version="0.1.0",
    chips=4,
    mesh={"fsdp": 4},
    rows=4,
    accumulation_steps=1,
    hbm_bytes={"weights": 2 * GIB, "optimizer": 4 * GIB, "batch": 0, "temporaries": 3 * GIB},
    total_bytes=9 * GIB,
    waiting_bytes=GIB,
    limit_bytes=31 * GIB,
    flops=4e14,
    sent_bytes={"all-gather": 5e9, "reduce-scatter": 3e9},
    result_bytes={"all-gather": 6e9},
    largest=[{"kind": "all-gather", "shapes": "bf16[1,8960,1536]", "times": 28, "loops": 1, "sent_bytes": 5e8}],
    windowed_einsums=0,
)


def test_times_of_chips_without_figures_are_refused_with_those_that_have_some():
    with pytest.raises(ConfigurationError, match="of chips 'v4' no speed is known, of v6e, v5e, v5p it is"):
        chip_of("v4:2x2x1")


@pytest.mark.parametrize(("topology", "gib"), [("v6e:2x2", 31.24), ("v4:2x2x1", 15.25), ("tpu7x:2x2x1", 94.74)])
def test_the_compiler_says_how_much_memory_any_of_its_chips_has(tpu_compiler, topology, gib):
    assert memory_limit(open_topology(topology)[0]) == int(gib * GIB)


def test_a_topology_that_the_compiler_does_not_know_is_refused_with_some_that_it_does(tpu_compiler):
    with pytest.raises(ConfigurationError, match="v7x:2x2 is no topology that libtpu knows .* v6e:2x2"):
        open_topology("v7x:2x2")


def test_figures_are_shown_by_kind_and_say_what_they_are(tmp_path):
    text = render(FOUND)
    assert "compiler estimate (libtpu 0.0.51), no chip was used" in text
    assert "largest: all-gather bf16[1,8960,1536] x 28 (0.50 GB)" in text
    assert "9.00 GiB of 31.00: it fits" in text and "8.000 GB" in text
    saved = save(FOUND, tmp_path)
    assert saved.name == "compile_v6e_2x2.json"
    assert json.loads(saved.read_text())["kind"] == "compiler estimate"


def test_kernels_take_the_time_of_the_part_of_the_peak_that_they_reach():
    program = Program(cycles=2e6, kernel_flops={"tile_attention_forward": 35e9, "other": 45e9})
    found = timing_of(program, Chip(1e12, 1e9, 1e12, 1e12), model_flops=1e9)
    assert found.compute_s == 2e-3 and found.kernels_s == pytest.approx(0.2)
    assert found.step_s == pytest.approx((0.202, 0.202))
    assert found.mfu == pytest.approx((1e-3 / 0.202, 1e-3 / 0.202))


def test_batches_that_wait_need_room_too():
    assert FOUND.fits
    assert not dataclasses.replace(FOUND, total_bytes=30 * GIB + 1).fits


def test_the_table_shows_estimates_and_refusals_between_its_marks(tmp_path):
    lines = [line for line in table.lines() if line.name in ("2b_sft_v6e_4", "2b_il_v6e_4", "8b_il_v6e_4")]
    (tmp_path / "2b_sft_v6e_4.json").write_text(FOUND.to_json())
    (tmp_path / "2b_il_v6e_4.json").write_text(json.dumps({"refused": "it does not divide"}))
    text = table.render(lines, tmp_path)
    assert "| 2b_sft (4,096 tokens, 13 tiles) | v6e-4 (v6e:2x2) | 4 | 2.00 | 4.00 | 0.00 | 3.00 | **9.00** |" in text
    assert "it does not divide" in text and "8b_il" not in text
    page = tmp_path / "tpu.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(text, page)
    assert "old" not in page.read_text() and page.read_text().endswith("after\n")


def test_every_machine_of_the_table_has_its_preset():
    for line in table.lines():
        assert compose(find_experiment("2b_il"), [f"gin/runtime/tpu_{line.machine}.gin"], []).text


@pytest.mark.heavy
def test_fine_tuning_of_the_2b_model_fits_four_chips_and_sends_little(tpu_compiler):
    (line,) = [line for line in table.lines() if line.name == "2b_sft_v6e_4"]
    found = table.compiled(line)
    assert found.chips == 4 and found.mesh == {"fsdp": 4} and found.compiler.startswith("libtpu ")
    assert found.hbm_bytes["optimizer"] == pytest.approx(2 * found.hbm_bytes["weights"], rel=0.01)
    assert found.total_bytes <= 11.5 * GIB and found.fits
    assert sum(found.sent_bytes.values()) <= 11e9 and sum(found.result_bytes.values()) <= 11e9
    assert found.windowed_einsums == 0
    vocabulary = ("151682", "151808", "152064")  # As it is, and filled up for one and for four chips.
    looped = [c for c in found.largest if c["loops"] and "reduce" in c["kind"]]
    assert looped and not any(size in c["shapes"] for c in looped for size in vocabulary)
