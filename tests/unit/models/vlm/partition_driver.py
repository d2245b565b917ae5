"""Run with four virtual devices: loss and gradients of a tiny VLM on one device and over several meshes, as JSON."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np

from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.lora import Lora
from recogdrive.training.sharding import DataParallel, FullySharded

spec = importlib.util.spec_from_file_location("shared_parts", Path(__file__).with_name("conftest.py"))
parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parts)

MESHES = {
    "copied": lambda: DataParallel(4),
    "split": lambda: FullySharded(4),
    "replicas": lambda: FullySharded(4, replicas=2),
    "heads": lambda: FullySharded(4, model_devices=2),
}


def batch():
    make = parts.vlm_batch.__wrapped__()
    return make(lengths=(12, 7, 9, 12), tiles=(2, 1, 2, 1))


def gradients(model, params, sharding, rows):
    def loss(params, rows):
        with sharding.as_context():
            return model.loss(params, rows, jax.random.key(3))

    placed = sharding.put_state(params), sharding.put_batch(rows, 4)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=sharding.replicated)
    (value, metrics), grads = jax.device_get(step(*placed))
    return value, metrics["accuracy"], grads


def main():
    lively, rows = parts.lively.__wrapped__(), batch()
    model = InternVL(
        parts.CONFIG,
        img_context_id=parts.IMG_CONTEXT,
        compute_dtype="float32",
        attention="plain",
        remat="none",
        drop_path_rate=0.3,
        loss_chunk=4,
        lora=Lora(rank=2, dropout=0.2, part="both"),
    )
    params = lively(model)
    loss, accuracy, expected = gradients(model, params, DataParallel(1), rows)
    answer = {"loss": float(loss), "accuracy": float(accuracy), "meshes": {}}
    for name, make in MESHES.items():
        sharding = make()
        found_loss, found_accuracy, found = gradients(model, params, sharding, rows)
        scale = max(float(np.abs(value).max()) for value in expected.values())
        largest = {n: float(np.abs(found[n] - expected[n]).max()) / scale for n in expected}
        specs = sharding.state_sharding(params)
        answer["meshes"][name] = {
            "loss": float(found_loss),
            "accuracy": float(found_accuracy),
            "gradient_error": max(largest.values()),
            "worst": max(largest, key=largest.get),
            "split": sum(len(s.spec) > 0 for s in specs.values()),
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
