import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recogdrive.models.vlm import loss
from recogdrive.models.vlm.loss import IGNORED

ROWS, TOKENS, WIDTH, VOCAB = 3, 11, 8, 19


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(ROWS, TOKENS, WIDTH)), jnp.float32)
    head = jnp.asarray(random.normal(size=(VOCAB, WIDTH)), jnp.float32)
    labels = random.integers(0, VOCAB, (ROWS, TOKENS)).astype(np.int32)
    labels[0, :4] = labels[1] = IGNORED
    labels[2, ::2] = IGNORED
    weights = np.where(labels != IGNORED, random.uniform(0.1, 1, labels.shape), 0).astype(np.float32)
    segments = np.ones((ROWS, TOKENS), np.int32)
    segments[2, 5:] = 2
    segments[0, 9:] = 0
    return hidden, head, loss.next_token_targets(*map(jnp.asarray, (labels, segments, weights)))


def full_logits(hidden, head, targets):
    logits = hidden @ head.T
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets.labels[..., None], axis=-1)[..., 0]
    right = (logits.argmax(-1) == targets.labels) & targets.supervised
    return (losses * targets.weights).sum(axis=1), right.sum(axis=1)


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_sums_and_gradients_in_chunks_are_those_of_full_logits(inputs, chunk):
    hidden, head, targets = inputs
    scale = jnp.asarray([1.0, 2.0, -0.5])

    def weighed(function, *own):
        def total(h, w):
            sums, right = function(h, w, targets, *own)
            return (sums * scale).sum(), (sums, right)

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, head)

    (_, found), found_gradients = weighed(loss.cross_entropy, chunk)
    (_, expected), expected_gradients = weighed(full_logits)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_token_is_predicted_from_the_one_before_it_in_its_own_segment():
    labels = jnp.asarray([[5, 6, 7, 8, IGNORED, 9]])
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0]])
    targets = loss.next_token_targets(labels, segments)
    np.testing.assert_array_equal(targets.supervised, [[True, False, True, False, False, False]])
    np.testing.assert_array_equal(targets.labels, [[6, 0, 8, 0, 0, 0]])
    np.testing.assert_array_equal(targets.weights, [[1, 0, 1, 0, 0, 0]])


def test_a_weight_is_that_of_the_predicted_token_and_counts_only_where_it_is_supervised():
    labels = jnp.asarray([[IGNORED, 6, IGNORED, 8]])
    weights = jnp.asarray([[0.1, 0.2, 0.3, 0.4]])
    targets = loss.next_token_targets(labels, jnp.ones_like(labels), weights)
    np.testing.assert_allclose(targets.weights, [[0.2, 0, 0.4, 0]])


def test_the_mean_is_over_groups_of_rows_and_an_empty_group_counts_as_zero():
    sums, weights = jnp.asarray([2.0, 4.0, 0.0, 0.0]), jnp.asarray([1.0, 1.0, 0.0, 0.0])
    assert loss.reduce_loss(sums, weights, 2) == 1.5
    assert loss.reduce_loss(sums, weights, 1) == 1.5
    assert loss.reduce_loss(sums, jnp.asarray([1.0, 3.0, 0, 0]), 2) == 0.75
    assert loss.reduce_loss(sums, jnp.asarray([1.0, 3.0, 0, 0]), None) == 1.5
    gradient = jax.grad(lambda s: loss.reduce_loss(s, weights, 2))(sums)
    np.testing.assert_array_equal(gradient, [0.25, 0.25, 0, 0])


def test_rows_that_do_not_fill_groups_are_refused():
    with pytest.raises(ValueError, match=r"3 rows .* rows_per_group=2"):
        loss.reduce_loss(jnp.ones(3), jnp.ones(3), 2)


def test_only_as_many_chunks_run_as_supervised_tokens_fill(inputs):
    hidden, head, targets = inputs
    most = int(targets.supervised.sum(axis=1).max())
    ran = []

    def record(*arguments):
        jax.debug.callback(lambda: ran.append(1))
        return original(*arguments)

    original, loss._chunk_sums = loss._chunk_sums, record
    try:
        jax.block_until_ready(loss.cross_entropy(hidden, head, targets, 2))
        jax.effects_barrier()
    finally:
        loss._chunk_sums = original
    assert len(ran) == -(-most // 2) < -(-TOKENS // 2)


def test_no_logits_of_a_whole_row_exist_in_the_forward_or_backward_program(inputs):
    hidden, head, targets = inputs
    chunk = 4
    program = jax.make_jaxpr(jax.grad(lambda h, w: loss.cross_entropy(h, w, targets, chunk)[0].sum(), (0, 1)))(
        hidden, head
    )
    shapes = list(_shapes(program.jaxpr))
    of_vocab = {shape for shape in shapes if VOCAB in shape}
    assert (ROWS, chunk, VOCAB) in of_vocab
    assert max(int(np.prod(shape)) for shape in of_vocab) <= max(ROWS * chunk * VOCAB, VOCAB * WIDTH)


def _shapes(jaxpr):
    """Shapes of all values of a program, those inside its loops too."""
    for equation in jaxpr.eqns:
        yield from (tuple(value.aval.shape) for value in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)
