import jax
import jax.numpy as jnp
import numpy as np
import optax

from recogdrive.training.state import create_state, from_stored, to_stored


def state(with_ema=True, seed=5, **options):
    params = {"a.b": jnp.arange(3.0), "c": jnp.ones((2, 2))}
    return create_state(params, optax.adam(0.1), jax.random.key(seed), with_ema=with_ema, **options)


def test_the_step_key_changes_from_step_to_step_and_repeats_when_a_step_is_replayed():
    first = state()
    second = jax.tree.map(lambda leaf: leaf, first).__class__(**{**vars(first), "step": first.step + 1})
    keys = [jax.random.key_data(s.step_key()).tolist() for s in (first, second, state())]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_the_step_key_is_the_base_key_folded_with_the_step():
    expected = jax.random.fold_in(jax.random.key(5), 0)
    assert jax.random.key_data(state().step_key()).tolist() == jax.random.key_data(expected).tolist()


def test_the_average_starts_as_a_copy_in_memory_of_its_own():
    made = state()
    np.testing.assert_array_equal(made.ema["c"], made.params["c"])
    made.params["c"].delete()
    assert float(made.ema["c"].sum()) == 4.0


def test_weights_are_the_average_where_one_is_kept_and_the_parameters_elsewhere():
    with_ema, without = state(), state(with_ema=False)
    assert with_ema.weights is with_ema.ema
    assert without.weights is without.params


def test_the_stored_layout_leads_back_to_the_same_state():
    made = state()
    stored = to_stored(made)
    assert set(stored) == {"step", "params", "opt_state", "ema", "key"}
    assert "0/mu/a.b" in stored["opt_state"]
    back = from_stored(stored, jax.eval_shape(lambda: state()))
    assert jax.tree.structure(back) == jax.tree.structure(made)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(made), strict=True))


def test_kept_weights_are_stored_under_their_own_name_and_lead_back():
    made = state(kept={"reference.c": jnp.full((2, 2), 3.0)})
    stored = to_stored(made)
    assert set(stored) == {"step", "params", "opt_state", "ema", "key", "kept"}
    back = from_stored(stored, jax.eval_shape(lambda: made))
    assert jax.tree.structure(back) == jax.tree.structure(made)
    np.testing.assert_array_equal(back.kept["reference.c"], 3.0)


def test_a_state_without_average_stores_none():
    assert "ema" not in to_stored(state(with_ema=False))


def test_weakly_typed_parameters_become_strongly_typed():
    made = create_state({"w": jnp.full(2, 0.0)}, optax.sgd(0.1), jax.random.key(0), with_ema=False)
    assert not made.params["w"].weak_type
