import json

import jax.numpy as jnp
import pytest

from recogdrive.training.window import NonFiniteError, Window, require_finite


def metrics(loss, grad_norm=1.0, lr=0.1):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm), "lr": jnp.float32(lr)}


def test_a_window_averages_over_its_steps_but_reports_the_last_norm_and_rate():
    window = Window()
    window.add(1, metrics(1.0, grad_norm=5.0, lr=0.25))
    window.add(2, metrics(4.0, grad_norm=6.0, lr=0.5))
    window.fetch()
    assert window.log() == {"loss": 2.5, "grad_norm": 6.0, "lr": 0.5}
    assert window.pending == []


def test_pending_values_survive_json_to_the_bit():
    window = Window()
    window.add(1, metrics(0.1))
    window.add(2, metrics(1 / 3))
    window.fetch()
    restored = Window(json.loads(json.dumps(window.pending)))
    for copy in (window, restored):
        copy.add(3, metrics(1e-30))
        copy.fetch()
    assert restored.log() == window.log()


def test_the_first_step_that_is_not_finite_is_named_with_its_metric():
    window = Window()
    window.add(7, metrics(1.0))
    window.add(8, metrics(1.0, grad_norm=float("inf")))
    window.add(9, metrics(float("nan")))
    with pytest.raises(NonFiniteError, match="grad_norm is inf at step 8"):
        window.fetch()


def test_evaluation_results_must_be_finite():
    require_finite(3, {"ade": 0.0})
    with pytest.raises(NonFiniteError, match="fde is nan at step 3"):
        require_finite(3, {"ade": 0.0, "fde": float("nan")})
