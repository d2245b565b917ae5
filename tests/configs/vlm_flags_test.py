"""docs/vlm.md says for every flag of the reference's command what it is called here, and what it says exists."""

import inspect
import re
from pathlib import Path

import gin
import pytest
from gin.config import ConfigurableReference

from recogdrive.composition import compose
from recogdrive.experiment import config_root, load_registry

DOCUMENT = Path(__file__).parents[2] / "docs" / "vlm.md"
FLAGS = (
    "model_name_or_path vision_path llm_path mlp_path conv_style output_dir overwrite_output_dir meta_path "
    "force_image_size max_dynamic_patch min_dynamic_patch down_sample_ratio drop_path_rate bf16 num_train_epochs "
    "per_device_train_batch_size gradient_accumulation_steps learning_rate weight_decay warmup_ratio lr_scheduler_type "
    "logging_steps max_seq_length do_train grad_checkpoint group_by_length dynamic_image_size use_thumbnail ps_version "
    "use_fast_tokenizer vision_select_layer dataloader_num_workers save_steps save_total_limit freeze_backbone "
    "freeze_llm freeze_mlp unfreeze_vit_layers unfreeze_lm_head use_backbone_lora use_llm_lora deepspeed report_to "
    "normalize_type pad2square use_data_resampling min_num_frame max_num_frame use_liger use_packed_ds "
    "max_packed_tokens max_buffer_size num_images_expected strict_mode allow_overflow replacement loss_reduction "
    "loss_reduction_all_gather seed"
)
"""Of spec/vlm_sft.md, A2 and A7."""


def table():
    """Rows of the table of flags: flag cell, binding cell, value cell, note."""
    section = DOCUMENT.read_text().split("## The reference's flags")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


def named(pattern):
    """All names of a form anywhere in the document."""
    return sorted({span for span in spans(DOCUMENT.read_text()) if re.fullmatch(pattern, span)})


def composed(*bindings):
    return compose(load_registry()["2b_sft"], ["gin/option/lora.gin"], list(bindings))


def test_every_flag_of_the_reference_has_a_row():
    documented = [flag for row in table() for flag in spans(row[0])]
    assert set(FLAGS.split()) <= set(documented)
    assert len(documented) == len(set(documented))
    assert all(len(row) == 4 for row in table())


@pytest.mark.parametrize("name", named(r"[A-Z][A-Za-z]+\.[a-z0-9_]+"))
def test_a_binding_that_the_document_names_exists(name):
    composed()
    with gin.unlock_config():
        gin.bind_parameter(name, None)


def test_a_binding_that_does_not_exist_would_be_noticed():
    composed()
    with pytest.raises(ValueError), gin.unlock_config():
        gin.bind_parameter("Trainer.no_such_parameter", None)


@pytest.mark.parametrize("name", named(r"[A-Z][A-Z_]{2,}"))
def test_a_knob_that_the_document_names_exists(name):
    assert re.search(rf"^{name} = ", composed().resolved(), re.MULTILINE)


def test_files_that_the_document_names_exist():
    files = named(r"(--gin_file=)?gin/.+\.gin")
    assert files and all((config_root() / file.removeprefix("--gin_file=")).is_file() for file in files)


def values():
    """(binding or knob, value that the document says it has) of rows with plain values."""
    pairs = []
    for _, binding, value, _ in table():
        names, told = spans(binding), value.split(", ")
        plain = [name for name in names if re.fullmatch(r"[A-Z][A-Za-z]+\.[a-z0-9_]+|[A-Z][A-Z_]{2,}", name)]
        if len(plain) == len(told) == len(names):
            pairs += zip(plain, told, strict=True)
    return [(name, text) for name, text in pairs if text not in ("to be set", "unused", "packed rows")]


@pytest.mark.parametrize("name, told", values())
def test_the_value_that_the_document_tells_is_the_one_in_2b_sft(name, told):
    composed()
    assert str(value_of(name)) == str(literal(told))


def literal(told):
    told = told.strip("`")
    try:
        return float(told) if re.fullmatch(r"[\d.e-]+", told) and not told.isdecimal() else told
    except ValueError:
        return told


def value_of(name):
    """A macro's or a parameter's value: as bound, else the default."""
    if "." not in name:
        return gin.query_parameter(f"{name}/macro.value")
    component, parameter = name.split(".")
    line = re.search(rf"^(sft/)?{component}\.{parameter} = ", gin.config_str(), re.MULTILINE)
    if line is None:
        signatures = (inspect.signature(kind.__init__) for kind in gin.get_configurable(component).__mro__)
        return next(s.parameters[parameter].default for s in signatures if parameter in s.parameters)
    found = gin.query_parameter(line[0].removesuffix(" = "))
    if isinstance(found, ConfigurableReference) and found.selector.endswith("macro"):
        return gin.query_parameter(f"{found.config_key[0]}/macro.value")
    return found.selector.rpartition(".")[2] if isinstance(found, ConfigurableReference) else found


def test_the_reference_layout_is_one_file_away():
    compose(load_registry()["2b_sft"], ["gin/option/padded_rows.gin"], [])
    data = gin.get_configurable("FineTuningData")()
    assert (data.loss_reduction, data.layout.order.num_groups, data.layout.order.group_size) == ("token", 128, 1)
    assert gin.query_parameter("BATCH_SIZE/macro.value") == 128
    vlm = gin.get_configurable("InternVL")()
    assert vlm.rows_per_group == 1


def test_both_sizes_share_the_references_recipe():
    for name, sharding in (("2b_sft", "NoneType"), ("8b_sft", "FullySharded")):
        compose(load_registry()[name], [], [])
        trainer = gin.get_configurable("Trainer")()
        optimizer = trainer.optimizer
        assert (optimizer.schedule.learning_rate, optimizer.schedule.warmup_ratio) == (4e-5, 0.1)
        assert (optimizer.weight_decay, optimizer.beta2, optimizer.eps, optimizer.clip_norm) == (0.05, 0.999, 1e-8, 1.0)
        assert type(trainer.sharding).__name__ == sharding
        vlm = gin.get_configurable("InternVL")()
        assert (vlm.drop_path_rate, vlm.remat, str(vlm.compute_dtype)) == (0.1, "full", "bfloat16")
        assert vlm.rows_per_group is None
        data = gin.get_configurable("FineTuningData")()
        assert (data.max_seq_length, data.tiling.max_tiles, data.tiling.thumbnail) == (12_288, 16, True)
        assert data.largest_row() == (14_336, 52)
