"""The model against the reference: features, hidden states, logits, loss, gradients, eight updates, name sets.

Weights and names go through the golden key map, not through the library's own loader.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from recogdrive.models.vlm import vision
from recogdrive.models.vlm.config import read_config
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.trainable import TrainableSet, decays

# Tolerances of the golden README, for float32.
OUTPUT_ATOL = 1e-4
LOSS_ATOL = 1e-5
GRADIENT_RTOL = 1e-4
STEP_LOSS_ATOL = 2e-4
STEP_NORM_RTOL = 1e-3
BFLOAT16_LOSS_ATOL = 0.03


class Checkpoint:
    """A stored model: its weights under our names, and its batches, all padded to one shape to compile once."""

    def __init__(self, folder: Path):
        self.name, self.config = folder.name, read_config(folder)
        self.folder, self.stored = folder, load_file(folder / "model.safetensors")
        self.ids = json.loads((folder.parent / "tiny" / "token_ids.json").read_text())
        rules = json.loads((folder.parent / "key_mapping.json").read_text())["rules"]
        self.places = {name: _places(name, rules) for name in self.stored}
        self.batches = {path.stem: StoredBatch(path, self) for path in sorted(folder.glob("batch_*.npz"))}
        self._models: dict[str, InternVL] = {}
        self._compiled: dict[str, Callable] = {}

    @cached_property
    def params(self) -> dict[str, jax.Array]:
        single: dict[str, dict[int | None, np.ndarray]] = {}
        for original, value in self.stored.items():
            places = self.places[original]
            for (name, layer), piece in zip(places, np.split(value, len(places)), strict=True):
                single.setdefault(name, {})[layer] = piece
        return {
            name: jnp.asarray(values[None] if None in values else np.stack([values[i] for i in range(len(values))]))
            for name, values in single.items()
        }

    def original(self, params: dict[str, Any], name: str) -> np.ndarray:
        """The value of one original tensor in a dict of ours."""
        pieces = [params[ours] if layer is None else params[ours][layer] for ours, layer in self.places[name]]
        return np.concatenate([np.asarray(piece, np.float64) for piece in pieces])

    def model(self, attention: str = "fused", **settings: Any) -> InternVL:
        settings = {"compute_dtype": "float32", "loss_mean": "global", **settings}
        key = repr((attention, settings))
        if key not in self._models:
            self._models[key] = InternVL(
                self.config, img_context_id=self.ids["img_context"], attention=attention, **settings
            )
        return self._models[key]

    def run(self, function: Callable, *args: Any) -> Any:
        """Calls a function compiled once for all of these argument shapes."""
        shapes = jax.tree.map(jnp.shape, args)
        key = repr((function, shapes))
        if key not in self._compiled:
            # Compiling is what these tests spend their time on; the lowest level does the same arithmetic.
            options = {"xla_backend_optimization_level": 0}
            self._compiled[key] = jax.jit(function).lower(*args).compile(compiler_options=options)
        return self._compiled[key](*args)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Rows, tokens and tile slots that every batch fits in."""
        sizes = [(*b.stored["input_ids"].shape, b.num_tiles.max()) for b in self.batches.values()]
        return tuple(int(size) for size in np.max(sizes, axis=0))

    @cached_property
    def gradients(self) -> Callable:
        """Loss, metrics and gradients of a batch; one function object, so that it compiles once."""
        return jax.value_and_grad(self.model().loss, has_aux=True)


@dataclass
class StoredBatch:
    """Inputs and outputs of one reference batch."""

    path: Path
    checkpoint: Checkpoint

    @cached_property
    def stored(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.path))

    @cached_property
    def gradients(self) -> dict[str, Any]:
        return json.loads(self.path.with_name(f"{self.path.stem}_grads.json").read_text())

    @cached_property
    def num_tiles(self) -> np.ndarray:
        places = (self.stored["input_ids"] == self.checkpoint.ids["img_context"]).sum(axis=1)
        return (places // self.checkpoint.config.tokens_per_tile).astype(np.int32)

    @cached_property
    def all_tiles(self) -> np.ndarray:
        """Normalised pixels, channels last."""
        return self.stored["pixel_values"].transpose(0, 2, 3, 1).astype(np.float32)

    @cached_property
    def real_tiles(self) -> np.ndarray:
        return self.all_tiles[self.stored["image_flags"] == 1]

    @cached_property
    def real(self) -> np.ndarray:
        return self.stored["attention_mask"] == 1

    def inputs(self) -> dict[str, np.ndarray]:
        rows, tokens, slots = self.checkpoint.shape
        stored = self.stored
        tiles = np.zeros((rows, slots, *self.real_tiles.shape[1:]), np.float32)
        ends = np.cumsum(self.num_tiles)
        for row, (end, count) in enumerate(zip(ends, self.num_tiles, strict=True)):
            tiles[row, :count] = self.real_tiles[end - count : end]

        def padded(values: np.ndarray, fill: int) -> np.ndarray:
            room = [(0, rows - values.shape[0]), (0, tokens - values.shape[1])]
            return np.pad(values.astype(np.int32), room, constant_values=fill)

        return {
            "input_ids": padded(stored["input_ids"], 0),
            "segment_ids": padded(stored["attention_mask"], 0),
            "position_ids": padded(stored["position_ids"], 1),
            "labels": padded(stored["labels"], -100),
            "tiles": tiles,
            "num_tiles": np.pad(self.num_tiles, (0, rows - len(self.num_tiles))),
        }


@pytest.fixture(scope="module")
def checkpoints(golden_dir) -> list[Checkpoint]:
    folders = sorted(path.parent for path in (golden_dir / "vlm").glob("*/model.safetensors"))
    found = [Checkpoint(folder) for folder in folders if list(folder.glob("batch_*.npz"))]
    assert found
    return found


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_features_hidden_states_and_logits_are_the_references(checkpoints, attention):
    for checkpoint in checkpoints:
        model = checkpoint.model(attention)
        most = max(len(batch.all_tiles) for batch in checkpoint.batches.values())

        def forward(params, batch, tiles, model=model):
            hidden = model.hidden_states(params, batch)
            return model.image_features(params, tiles), hidden, model.logits(params, hidden)

        for name, batch in checkpoint.batches.items():
            tiles = np.pad(batch.all_tiles, [(0, most - len(batch.all_tiles))] + [(0, 0)] * 3)
            features, hidden, logits = checkpoint.run(forward, checkpoint.params, batch.inputs(), tiles)
            rows, tokens = batch.real.shape
            pairs = {
                "image_features": (features[: len(batch.all_tiles)], batch.stored["image_features"]),
                "last_hidden_state": (
                    hidden[:rows, :tokens][batch.real],
                    batch.stored["last_hidden_state"][batch.real],
                ),
                "logits": (logits[:rows, :tokens][batch.real], batch.stored["logits"][batch.real]),
            }
            for what, (ours, theirs) in pairs.items():
                error = f"{checkpoint.name} {name} {what}"
                np.testing.assert_allclose(ours, theirs, atol=OUTPUT_ATOL, rtol=0, err_msg=error)


def test_loss_and_every_gradient_norm_are_the_references(checkpoints):
    for checkpoint in checkpoints:
        for name, batch in checkpoint.batches.items():
            function = checkpoint.gradients
            (loss, metrics), gradients = checkpoint.run(function, checkpoint.params, batch.inputs(), None)
            where = f"{checkpoint.name} {name}"
            np.testing.assert_allclose(loss, batch.stored["loss"], atol=LOSS_ATOL, rtol=0, err_msg=where)
            assert metrics["supervised_tokens"] == (batch.stored["labels"][:, 1:] != -100).sum()
            norms = {
                original: np.linalg.norm(checkpoint.original(gradients, original)) for original in checkpoint.stored
            }
            stored = batch.gradients["grad_norms"]
            assert set(stored) == set(norms)
            for original, norm in stored.items():
                np.testing.assert_allclose(norms[original], norm, rtol=GRADIENT_RTOL, err_msg=f"{where} {original}")
            total = np.sqrt(sum(norm**2 for norm in norms.values()))
            np.testing.assert_allclose(total, batch.gradients["grad_norm_total"], rtol=GRADIENT_RTOL, err_msg=where)


def test_loss_in_bfloat16_is_near_the_references(checkpoints):
    for checkpoint in checkpoints:
        model = checkpoint.model(compute_dtype="bfloat16")
        loss = model.loss
        for name, batch in checkpoint.batches.items():
            found, _ = checkpoint.run(loss, checkpoint.params, batch.inputs(), None)
            error = f"{checkpoint.name} {name}"
            np.testing.assert_allclose(found, batch.stored["loss"], atol=BFLOAT16_LOSS_ATOL, rtol=0, err_msg=error)


def test_samples_packed_into_one_row_give_the_references_weighted_losses(checkpoints):
    seen = 0
    for checkpoint in checkpoints:
        path = checkpoint.folder / "packed_loss.json"
        if not path.exists():
            continue
        stored = json.loads(path.read_text())
        packed = _packed(checkpoint.batches[stored["batch"]])
        model = checkpoint.model()
        loss = model.loss
        for reduction, value in stored["loss"].items():
            batch = {**packed, "loss_weight": _weights(packed, reduction)}
            found, _ = checkpoint.run(loss, checkpoint.params, batch, None)
            np.testing.assert_allclose(found, value, atol=LOSS_ATOL, rtol=0, err_msg=reduction)
            seen += 1
    assert seen


def test_updates_with_accumulation_clip_and_decay_follow_the_reference(checkpoints):
    seen = 0
    for checkpoint in checkpoints:
        path = checkpoint.folder / "train_steps.json"
        if path.exists():
            _follow(checkpoint, json.loads(path.read_text()))
            seen += 1
    assert seen


def _follow(checkpoint: Checkpoint, run: dict[str, Any]) -> None:
    settings, params = run["config"], checkpoint.params
    mask = {name: decays(name, checkpoint.config) for name in params}

    def transformation(rate: Any) -> optax.GradientTransformation:
        b1, b2 = settings["betas"]
        return optax.chain(
            optax.clip_by_global_norm(settings["clip"]),
            optax.scale_by_adam(b1, b2, settings["eps"]),
            optax.add_decayed_weights(settings["wd"], mask),
            optax.scale_by_learning_rate(rate),
        )

    @jax.jit
    def update(params: Any, state: Any, gradients: list, rate: Any) -> Any:
        mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *gradients)
        updates, state = transformation(rate).update(mean, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(mean)

    state = transformation(0.0).init(params)
    for step in run["log"]:
        gradients = []
        for name, stored in zip(step["microbatches"], step["micro_losses"], strict=True):
            function = checkpoint.gradients
            (loss, _), gradient = checkpoint.run(function, params, checkpoint.batches[name].inputs(), None)
            np.testing.assert_allclose(loss, stored, atol=STEP_LOSS_ATOL, rtol=0, err_msg=f"step {step['step']} {name}")
            gradients.append(gradient)
        params, state, norm = update(params, state, gradients, step["lr"])
        np.testing.assert_allclose(norm, step["grad_norm_before_clip"], rtol=STEP_NORM_RTOL, err_msg=str(step["step"]))
    assert set(run["final_param_norms"]) == set(checkpoint.stored)
    for original, norm in run["final_param_norms"].items():
        found = np.linalg.norm(checkpoint.original(params, original))
        np.testing.assert_allclose(found, norm, rtol=STEP_NORM_RTOL, err_msg=original)


def test_the_sets_that_decay_are_the_references(checkpoints):
    seen = 0
    for checkpoint in checkpoints:
        path = checkpoint.folder / "train_steps.json"
        if not path.exists():
            continue
        run = json.loads(path.read_text())
        for expected, names in ((True, run["decayed"]), (False, run["not_decayed"])):
            for original in names:
                assert {decays(name, checkpoint.config) for name, _ in checkpoint.places[original]} == {expected}, (
                    original
                )
                seen += 1
    assert seen


def test_the_sets_that_train_are_the_references(checkpoints):
    seen = 0
    for checkpoint in checkpoints:
        path = checkpoint.folder / "trainable_sets.json"
        for case in json.loads(path.read_text()) if path.exists() else ():
            chosen = TrainableSet(**case["flags"])

            def trains(name: str, layer: int | None, chosen=chosen, config=checkpoint.config) -> bool:
                mask = chosen.layer_mask(name, config)
                return chosen.trains(name, config) and (mask is None or mask[layer] == 1)

            found = {name for name, places in checkpoint.places.items() if all(trains(*place) for place in places)}
            assert found == set(case["trainable"]), case["flags"]
            seen += 1
    assert seen


def test_pixel_unshuffle_is_the_references_in_both_versions(golden_dir):
    stored = np.load(golden_dir / "vlm" / "pixel_shuffle.npz")
    cases = [name.removesuffix("_in") for name in stored if name.endswith("_in")]
    assert cases
    for case in cases:
        for version in ("v1", "v2"):
            found = vision.pixel_unshuffle(stored[f"{case}_in"], version)
            np.testing.assert_array_equal(found, stored[f"{case}_{version}"], err_msg=f"{case} {version}")


def _places(original: str, rules: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    """Our names, and layer indices, that one original tensor is split into."""
    for rule in rules:
        match = re.fullmatch(rule["pattern"], original)
        if match:
            targets = [match.expand(target) for target in rule.get("targets", [rule.get("target")])]
            return [_stacked(target) for target in targets]
    raise AssertionError(f"no rule for {original}")


def _stacked(name: str) -> tuple[str, int | None]:
    layer = re.search(r"\.layers?\.(\d+)\.", name)
    if layer is None:
        return name, None
    start, end = layer.span(1)
    return f"{name[:start]}*{name[end:]}", int(layer[1])


def _packed(batch: StoredBatch) -> dict[str, np.ndarray]:
    """All samples of a batch behind one another in one row."""
    rows = range(len(batch.real))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([batch.stored[name][row][batch.real[row]] for row in rows])[None].astype(np.int32)

    lengths = batch.real.sum(axis=1)
    return {
        "input_ids": joined("input_ids"),
        "labels": joined("labels"),
        "segment_ids": np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32),
        "position_ids": np.concatenate([np.arange(length) for length in lengths])[None].astype(np.int32),
        "tiles": batch.real_tiles[None],
        "num_tiles": np.array([len(batch.real_tiles)], np.int32),
    }


def _weights(packed: dict[str, np.ndarray], reduction: str) -> np.ndarray:
    supervised = packed["labels"] != -100
    counts = np.array([(supervised & (packed["segment_ids"] == s)).sum() for s in packed["segment_ids"][0]], np.float64)
    power = {"token": 0, "sample": 1, "square": 0.5}[reduction]
    return np.where(supervised, 1 / np.maximum(counts, 1) ** power, 0).astype(np.float32)
