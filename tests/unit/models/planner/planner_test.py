import inspect

import gin
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import torchax

from recogdrive.models.planner.encoders import AttentionEgoStatus
from recogdrive.models.planner.planner import DiffusionPlanner

UNOPTIMISED = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(("width", "count"), [(1536, 34_329_219), (3584, 35_115_651)])
def test_the_small_planner_has_the_released_number_of_weights(width, count):
    assert sum(row.count for row in DiffusionPlanner(width).parameter_table()) == count


@pytest.mark.parametrize("width", [1536, 3584])
def test_the_large_planner_has_525_million_weights_and_is_tabled_without_allocating_them(width):
    planner = DiffusionPlanner.large(width)
    assert sum(row.count for row in planner.parameter_table()) == 522_237_443 + 1536 * (width - 1536)
    assert all(parameter.is_meta for parameter in planner.network.parameters())


def test_a_jitted_loss_sees_fresh_noise_for_every_key_and_the_same_for_the_same(
    make_planner, lively_params, make_batch
):
    planner, batch = make_planner(), make_batch()
    params, traces, seen = lively_params(planner), [], []
    draw = planner.diffusion.draw

    def recorded_draw(key, size):
        traces.append(1)
        noise, time = draw(key, size)
        jax.debug.callback(lambda n, t: seen.append((np.asarray(n), np.asarray(t))), noise, time)
        return noise, time

    planner.diffusion.draw = recorded_draw
    loss = jax.jit(planner.loss)
    values = [float(loss(params, batch, jax.random.key(k))[0]) for k in (0, 1, 2, 0)]
    jax.effects_barrier()
    assert len(traces) == 1
    assert len(set(values)) == 3
    assert values[0] == values[3]
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert len({tuple(t) for _, t in seen}) == 3
    np.testing.assert_array_equal(seen[0][0], seen[3][0])


def test_no_tracer_is_left_behind_by_a_jitted_loss(make_planner, lively_params, make_batch, key, monkeypatch):
    monkeypatch.setattr(torchax, "_env", None)  # As in a new process: the environment is first made inside a trace.
    planner = make_planner()
    jax.eval_shape(planner.loss, lively_params(planner), make_batch(), key)
    assert torchax._env is not None
    assert not isinstance(torchax.default_env().prng_key, jax.core.Tracer)
    with torchax.default_env():
        assert torch.randn(3, device="jax").jax().shape == (3,)


def test_samples_differ_between_keys_and_repeat_for_a_key(make_planner, lively_params, make_batch, program):
    params, batch = lively_params(make_planner()), make_batch()
    first, other, again = (program("sample")(params, batch, jax.random.key(k)) for k in (0, 1, 0))
    assert first.shape == (2, 8, 3)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


def test_parameters_are_the_trainable_ones_only(make_planner, program, key):
    params = program("init")(key)
    assert set(params) == {row.name for row in make_planner().parameter_table()}
    assert not [name for name in params if name.startswith(("eta", "ddpm", "ddim")) or name.endswith("inv_freq")]


def test_weight_decay_leaves_every_parameter_finite_and_stochastic_sampling_too(make_batch, program, key):
    batch = make_batch()
    params = jax.tree.map(lambda p: p * (1 - 1e-4), program("init")(key))
    assert all(np.isfinite(p).all() for p in params.values())
    assert np.isfinite(program("sample")(params, batch, key)).all()


def test_the_mask_option_equals_planning_on_the_unpadded_context(make_planner, lively_params, make_batch):
    planner = make_planner(use_context_mask=True)
    short = make_batch(tokens=3)
    padded = dict(short)
    padded["context"] = np.concatenate([short["context"], np.full((2, 4, 6), 9.0, np.float32)], 1)
    padded["context_mask"] = np.concatenate([short["context_mask"], np.zeros((2, 4), bool)], 1)
    initial, step = planner.draw_sampling_noise(jax.random.key(0), 2)
    found = []
    for batch in (short, padded):
        both = jax.jit(
            lambda params, batch: (
                planner.loss_with_noise(params, batch, initial[:, 0], jnp.array([3, 70]))[0],
                planner.sample_with_noise(params, batch, initial, step),
            )
        )
        found.append(both(lively_params(planner), batch))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


def test_without_the_option_padding_takes_part_and_the_mask_is_not_read(
    make_planner, lively_params, make_batch, program
):
    params, batch = lively_params(make_planner()), make_batch()
    encoding = program("encode")(params, batch)
    masked = program("encode")(params, batch | {"context_mask": np.zeros((2, 5), bool)})
    np.testing.assert_array_equal(encoding["mean"], masked["mean"])
    tokens = batch["context"] @ params["feature_encoder.weight"].T + params["feature_encoder.bias"]
    np.testing.assert_allclose(encoding["mean"], tokens.mean(1), rtol=1e-4, atol=1e-5)
    assert "bias" not in encoding


def _products_with(jaxpr, size, inside_loop=False):
    """(dot products with an axis of `size` tokens among their operands' and a weight's) outside and inside loops."""
    counts = {False: 0, True: 0}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shapes = [tuple(v.aval.shape) for v in equation.invars]
            if any(size in s for s in shapes) and any(s[-2:] == (8, 8) or s == (8, 6) or s == (6, 8) for s in shapes):
                counts[inside_loop] += 1
        loop = inside_loop or equation.primitive.name in ("scan", "while")
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                for where, count in _products_with(inner, size, loop).items():
                    counts[where] += count
    return counts


def test_sampling_projects_the_context_once_however_many_steps_and_samples(make_planner, lively_params, make_batch):
    planner, batch = make_planner(layers=4), make_batch(tokens=23)
    params = {row.name: np.zeros(row.shape, np.float32) for row in planner.parameter_table()}
    noise = planner.draw_sampling_noise(jax.random.key(0), 2, samples=3)
    jaxpr = jax.make_jaxpr(planner.sample_chain)(params, batch, *noise)
    # Feature encoder, and keys and values of two cross-attention blocks; none in the denoising loop.
    assert _products_with(jaxpr.jaxpr, 23) == {False: 1 + 2 + 2, True: 0}


def test_training_never_projects_values_of_all_tokens(make_planner, lively_params, make_batch):
    planner, batch = make_planner(layers=4), make_batch(tokens=23)
    params = {row.name: np.zeros(row.shape, np.float32) for row in planner.parameter_table()}
    jaxpr = jax.make_jaxpr(planner.loss)(params, batch, jax.random.key(0))
    assert _products_with(jaxpr.jaxpr, 23) == {False: 1 + 2, True: 0}


def test_pooling_before_the_value_projection_changes_nothing(make_planner, lively_params, make_batch, program):
    params, batch = lively_params(make_planner()), make_batch()
    x, t = jnp.ones((2, 1, 8, 3)), jnp.full((2, 1), 40)
    encoding = program("encode")(params, batch)
    projected = program("denoise")(params, encoding, x, t)
    del encoding["values"]
    np.testing.assert_allclose(program("denoise")(params, encoding, x, t), projected, rtol=1e-4, atol=1e-5)


def test_samples_of_a_group_equal_samples_taken_one_by_one(make_planner, lively_params, make_batch, program):
    planner, batch = make_planner(), make_batch()
    params = lively_params(planner)
    initial, step = planner.draw_sampling_noise(jax.random.key(0), 2, samples=2)
    group = program("sample_chain")(params, batch, initial, step)
    alone = program("sample_chain")(params, batch, initial[:, 1:], step[:, :, 1:])
    assert group.shape == (2, 2, 6, 8, 3)
    np.testing.assert_allclose(group[:, 1:], alone, atol=1e-4)
    log_probs = program("log_probs")(params, batch, group)
    assert log_probs.shape == (2, 2, 5, 8, 3)
    np.testing.assert_allclose(log_probs[:, 1:], program("log_probs")(params, batch, alone), rtol=1e-3, atol=1e-3)


def test_bfloat16_compute_stays_close_to_float32_and_keeps_float32_gradients(
    make_planner, lively_params, make_batch, program
):
    batch, noise, time = make_batch(), jnp.ones((2, 8, 3)), jnp.array([3, 70])
    losses = {}
    for dtype in ("float32", "bfloat16"):
        planner = make_planner(compute_dtype=dtype)
        losses[dtype], _ = program("loss_with_noise", compute_dtype=dtype)(lively_params(planner), batch, noise, time)
        assert losses[dtype].dtype == jnp.float32
    assert float(losses["bfloat16"]) == pytest.approx(float(losses["float32"]), rel=0.03)  # 8 bits of mantissa
    assert float(losses["bfloat16"]) != float(losses["float32"])
    grad = jax.grad(planner.loss_with_noise, has_aux=True)
    gradients, _ = jax.eval_shape(grad, jax.tree.map(jnp.asarray, lively_params(planner)), batch, noise, time)
    assert {g.dtype.name for g in gradients.values()} == {"float32"}


@pytest.mark.parametrize("arguments", [{}, {"compute_dtype": "bfloat16"}])
def test_a_bfloat16_context_gives_the_same_bits_as_its_float32_copy(
    make_planner, lively_params, make_batch, program, key, arguments
):
    batch = make_batch()
    narrow = batch | {"context": batch["context"].astype(ml_dtypes.bfloat16)}
    wide = batch | {"context": narrow["context"].astype(np.float32)}
    run, params = program("loss", **arguments), lively_params(make_planner())
    found, expected = (jax.tree.leaves(run(params, given, key)) for given in (narrow, wide))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bfloat16_products_are_of_bfloat16_copies(make_planner, lively_params, make_batch, key):
    planner = make_planner(compute_dtype="bfloat16")
    text = str(jax.make_jaxpr(planner.loss)(lively_params(planner), make_batch(), key))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all(":bf16[" in line for line in products)


def test_metrics_are_the_coordinates_shares_of_the_loss(make_planner, lively_params, make_batch, program, key):
    loss, metrics = program("loss")(lively_params(make_planner()), make_batch(), key)
    assert set(metrics) == {"mse_x", "mse_y", "mse_heading"}
    assert float(loss) == pytest.approx(np.mean([float(m) for m in metrics.values()]), rel=1e-5)


def test_the_attention_status_encoder_hides_command_entries_in_training_only(make_planner, lively_params, make_batch):
    planner = make_planner(ego_status=AttentionEgoStatus(mask_probability=1.0))
    params, batch, key = lively_params(planner), make_batch(), jax.random.key(0)
    other = batch | {"status_feature": batch["status_feature"] + np.eye(8, dtype=np.float32)[1]}
    loss, encode = jax.jit(planner.loss), jax.jit(planner.encode)
    assert loss(params, batch, key)[0] == loss(params, other, key)[0]
    assert not np.array_equal(encode(params, batch)["ego"], encode(params, other)["ego"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": np.zeros((2, 5, 7), np.float32)}, r"context is \(2, 5, 7\), expected \(2, 5, 6\)"),
        (
            {"history_trajectory": np.zeros((2, 12), np.float32)},
            r"history_trajectory is \(2, 12\), expected",
        ),
        ({"status_feature": np.zeros((3, 8), np.float32)}, r"status_feature is \(3, 8\), expected \(2, 8\)"),
        ({"trajectory": None}, r"missing: trajectory \(2, 8, 3\)"),
        ({"context": None}, r"must be \(B, T, 6\)"),
    ],
)
def test_a_misshapen_batch_is_refused_by_name(make_planner, make_batch, key, change, message):
    batch = {k: v for k, v in (make_batch() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        make_planner().loss({}, batch, key)


def test_sampling_needs_no_target(make_planner, lively_params, make_batch, program, key):
    planner, batch = make_planner(), make_batch()
    with_target = program("sample")(lively_params(planner), batch, key)
    del batch["trajectory"]
    np.testing.assert_array_equal(program("sample")(lively_params(planner), batch, key), with_target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"layers": 0}, "layers=0 must be a positive integer"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16'"),
        ({"denoising_steps": 0}, "denoising_steps=0"),
        ({"heads": 2.0}, "heads=2.0 must be a positive integer"),
    ],
)
def test_impossible_settings_are_refused_at_construction(make_planner, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_planner(**arguments)


def test_gin_configures_the_planner_and_its_process():
    gin.parse_config("""
        DiffusionPlanner.heads = 2
        DiffusionPlanner.head_dim = 4
        DiffusionPlanner.layers = 2
        DiffusionPlanner.diffusion = @FlowMatching()
        DiffusionPlanner.ego_status = @AttentionEgoStatus()
        FlowMatching.buckets = 500
    """)
    planner = gin.get_configurable(DiffusionPlanner)(context_width=6)
    assert planner.diffusion.buckets == 500
    assert "ego_status_encoder.query" in {row.name for row in planner.parameter_table()}


def test_gin_leaves_direct_calls_alone():
    gin.parse_config("DiffusionPlanner.denoising_steps = 9")
    assert inspect.isclass(DiffusionPlanner)
    assert DiffusionPlanner(6, heads=1, head_dim=4, layers=1).denoising_steps == 5


def test_scanned_blocks_compute_what_written_out_ones_do(make_planner, make_batch, key):
    # Five: two pairs, and a block without partner.
    planners = [make_planner(layers=5, denoising_steps=2, scan_blocks=scan) for scan in (False, True)]
    rng = np.random.default_rng(3)
    params = {row.name: rng.normal(0, 0.4, row.shape).astype(np.float32) for row in planners[0].parameter_table()}
    batch, noise = make_batch(), planners[0].draw_sampling_noise(key, 2, samples=3)

    def loss_and_chain(planner):
        def loss(params):
            chain = jax.lax.stop_gradient(planner.sample_chain(params, batch, *noise))
            return planner.loss(params, batch, key)[0] + planner.log_probs(params, batch, chain).mean(), chain

        return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=UNOPTIMISED)(params)

    ((loss, chain), gradients), ((other_loss, other_chain), other_gradients) = map(loss_and_chain, planners)
    np.testing.assert_allclose(other_chain, chain, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(other_loss, loss, rtol=2e-5)
    assert set(other_gradients) == set(params)
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        scale = max(np.abs(gradient).max(), 1e-3 * largest)
        np.testing.assert_allclose(other_gradients[name], gradient, rtol=0, atol=2e-5 * scale, err_msg=name)


def test_scanned_blocks_whose_weights_are_missing_are_an_error_that_names_them(make_planner, make_batch, key):
    planner = make_planner(scan_blocks=True)
    params = planner.init(key)
    del params["model.transformer_blocks.1.attn.to_k.bias"]
    with pytest.raises(ValueError, match="missing: model.transformer_blocks.1.attn.to_k.bias"):
        jax.eval_shape(planner.loss, params, make_batch(), key)
