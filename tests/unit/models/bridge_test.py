import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from recogdrive.models import bridge


class Affine(nn.Module):
    """y = scale * (W x + b) + offset, with a second method and a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("offset", torch.tensor([10.0, 20.0], device="cpu"))

    def apply_to(self, x, scale=1.0):
        return {"y": self.linear(x) * scale + self.offset}

    def twice(self, pair):
        return pair["a"] + pair["b"]

    def repeated(self, x, weights):
        """Through linear layers with the given weights, one after the other; the inputs of all as well."""

        def step(x, weight):
            return torch.func.functional_call(self.linear, {"weight": weight, "bias": self.offset}, (x,)), x

        return bridge.scan(step, x, weights)


class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.draw = draw

    def forward(self, x):
        return x * self.weight + self.draw(x)


PARAMS = {"linear.weight": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "linear.bias": jnp.array([0.5, -0.5])}


def test_a_method_computes_with_the_given_parameters_and_the_modules_buffers():
    out = bridge.functional(Affine())(PARAMS, "apply_to", np.array([1.0, 1.0], np.float32), scale=2.0)
    np.testing.assert_array_equal(out["y"], [2 * 3.5 + 10, 2 * 6.5 + 20])


def test_a_module_on_the_meta_device_needs_no_weights_of_its_own():
    with torch.device("meta"):
        module = Affine()
    out = jax.jit(lambda p, x: bridge.functional(module)(p, "apply_to", x))(PARAMS, jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(out["y"], [11.5, 22.5])


def test_a_scan_goes_through_torch_code_with_a_slice_at_a_time_and_weights_it_does_not_need_are_not_asked_for():
    weights = np.array([[[1, 0], [0, 2]], [[0, 1], [1, 0]]], np.float32)
    run = bridge.functional(Affine(), without=("linear.",))
    last, inputs = jax.jit(lambda w: run({}, "repeated", jnp.ones(2), w))(weights)
    np.testing.assert_array_equal(inputs, [[1, 1], [11, 22]])
    np.testing.assert_array_equal(last, [22 + 10, 11 + 20])
    with pytest.raises(ValueError, match="unknown: linear.weight"):
        run(PARAMS, "repeated", jnp.ones(2), weights)


def test_gradients_are_torchs_own():
    module = Affine()
    x = np.array([[0.3, -1.2]], np.float32)
    gradients = jax.grad(lambda p: (bridge.functional(module)(p, "apply_to", x)["y"] ** 2).sum())(PARAMS)
    module.linear.load_state_dict({n.split(".")[1]: torch.from_numpy(np.array(v)) for n, v in PARAMS.items()})
    (module.apply_to(torch.from_numpy(x))["y"] ** 2).sum().backward()
    np.testing.assert_allclose(gradients["linear.weight"], module.linear.weight.grad, rtol=1e-6)
    np.testing.assert_allclose(gradients["linear.bias"], module.linear.bias.grad, rtol=1e-6)


def test_the_modules_own_weights_are_left_alone():
    module = Affine()
    before = module.linear.weight.detach().clone()
    bridge.functional(module)(PARAMS, "apply_to", np.zeros(2, np.float32))
    assert torch.equal(module.linear.weight, before)


def test_arguments_may_be_nested_containers():
    out = bridge.functional(Affine())(PARAMS, "twice", {"a": jnp.ones(2), "b": np.full(2, 2.0, np.float32)})
    np.testing.assert_array_equal(out, [3.0, 3.0])


def test_a_module_may_call_a_jax_function_which_is_traced_and_differentiated_with_it():
    class Doubling(nn.Linear):
        def forward(self, x):
            return bridge.call_jax(lambda y, factor: jnp.sin(factor * y), super().forward(x), 2.0)

    call = bridge.functional(Doubling(2, 1, bias=False))
    weight, x = jnp.asarray([[0.3, -0.2]]), jnp.asarray([[1.0, 2.0]])
    out, gradient = jax.jit(jax.value_and_grad(lambda w: call({"weight": w}, "forward", x)[0, 0]))(weight)
    inner = float(x[0] @ weight[0])
    np.testing.assert_allclose(out, np.sin(2 * inner), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, 2 * np.cos(2 * inner) * x, rtol=1e-6)


def test_captured_submodules_return_what_they_computed():
    out, captured = bridge.functional(Affine())(PARAMS, "apply_to", jnp.array([1.0, 1.0]), capture=["linear"])
    np.testing.assert_array_equal(captured["linear"], [3.5, 6.5])
    np.testing.assert_array_equal(out["y"], [13.5, 26.5])


def test_missing_unknown_and_misshapen_parameters_are_listed_together():
    wrong = {"linear.weight": jnp.zeros((2, 3)), "linear.gain": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"3 parameter") as raised:
        bridge.functional(Affine())(wrong, "apply_to", jnp.zeros(2))
    message = str(raised.value)
    assert "missing: linear.bias (2,)" in message
    assert "unknown: linear.gain (2,)" in message
    assert "linear.weight is (2, 3), expected (2, 2)" in message


@pytest.mark.parametrize(
    "draw",
    [torch.randn_like, lambda x: torch.rand(3), lambda x: nn.functional.dropout(x, 0.5), lambda x: x.clone().normal_()],
    ids=["like its input", "of its own", "functional dropout", "in place"],
)
def test_torch_random_numbers_are_refused(draw):
    call = bridge.functional(Noisy(draw))
    with pytest.raises(bridge.TorchRandomnessError, match="drew a torch random number"):
        jax.jit(lambda p, x: call(p, "forward", x))({"weight": jnp.ones(3)}, jnp.ones(3))


def test_after_a_refusal_the_bridge_still_works():
    call = bridge.functional(Noisy(torch.randn_like))
    with pytest.raises(bridge.TorchRandomnessError):
        jax.jit(lambda p, x: call(p, "forward", x))({"weight": jnp.ones(3)}, jnp.ones(3))
    fine = bridge.functional(Noisy(torch.zeros_like))
    np.testing.assert_array_equal(fine({"weight": jnp.full(3, 2.0)}, "forward", jnp.ones(3)), [2, 2, 2])


def test_other_type_errors_keep_their_message():
    with pytest.raises(TypeError, match="unsupported operand"):
        bridge.functional(Noisy(lambda x: "text"))({"weight": jnp.ones(3)}, "forward", jnp.ones(3))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "drops out with probability 0.1"),
        (nn.MultiheadAttention(4, 2, dropout=0.2), "drops out with probability 0.2"),
        (nn.BatchNorm1d(3), "running statistics"),
    ],
)
def test_random_or_stateful_training_modules_are_refused_at_construction(module, message):
    with pytest.raises(ValueError, match=message):
        bridge.functional(module)
    bridge.functional(module.eval())


def test_buffers_without_values_are_refused():
    with torch.device("meta"):
        module = nn.BatchNorm1d(3).eval()
    with pytest.raises(ValueError, match="running_mean is on the meta device"):
        bridge.functional(module)


def test_torch_keeps_its_ordinary_tensors_outside_the_bridge():
    bridge.functional(Affine())(PARAMS, "apply_to", np.zeros(2, np.float32))
    assert type(torch.ones(2) + torch.randn(2)) is torch.Tensor
