"""Loss and gradients of a tiny VLM on one device and over a mesh: `partition_driver.py REPLICAS SHARDS HEADS`.

Run with as many virtual devices as the product of the three.
"""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np

from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
from recogdrive.models.vlm.internvl import InternVL
from recogdrive.models.vlm.lora import Lora
from recogdrive.training.sharding import DataParallel, FullySharded

spec = importlib.util.spec_from_file_location("shared_parts", Path(__file__).with_name("conftest.py"))
parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parts)

CONFIG = VlmConfig(
    vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=24, image_size=28),
    language=LanguageConfig(width=32, layers=1, heads=4, kv_heads=2, mlp_width=40, vocab_size=64),
)


def gradients(model, params, sharding, rows):
    def loss(params, rows):
        with sharding.as_context():
            return model.loss(params, rows, jax.random.key(3))

    placed = sharding.put_state(params), sharding.put_batch(rows, 4)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=sharding.replicated)
    (value, metrics), grads = jax.device_get(step(*placed))
    held = max(
        weight.addressable_shards[0].data.size / weight.size for weight in placed[0].values() if weight.size > 900
    )
    return [float(value), float(metrics["accuracy"]), float(metrics["supervised_tokens"])], grads, held


def main(replicas, shards, heads):
    rows = parts.vlm_batch.__wrapped__()(lengths=(12, 7, 9, 12), tiles=(2, 1, 2, 1))
    model = InternVL(
        CONFIG,
        img_context_id=parts.IMG_CONTEXT,
        compute_dtype="float32",
        attention="plain",
        remat="none",
        drop_path_rate=0.3,
        loss_chunk=4,
        lora=Lora(rank=2, dropout=0.2, part="llm"),
    )
    params = parts.lively.__wrapped__()(model)
    expected, expected_gradients, _ = gradients(model, params, DataParallel(1), rows)
    sharding = FullySharded(replicas * shards * heads, replicas=replicas, model_devices=heads)
    found, found_gradients, held = gradients(model, params, sharding, rows)
    scale = max(float(np.abs(value).max()) for value in expected_gradients.values())
    errors = {n: float(np.abs(found_gradients[n] - g).max()) / scale for n, g in expected_gradients.items()}
    answer = {
        "expected": expected,
        "found": found,
        "gradient_error": max(errors.values()),
        "worst": max(errors, key=errors.get),
        "split": sum(len(s.spec) > 0 for s in sharding.state_sharding(params).values()),
        "largest_of_a_device": held,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
