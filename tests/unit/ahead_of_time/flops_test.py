import jax
import jax.numpy as jnp

from recogdrive.ahead_of_time.flops import count_flops


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_a_product_takes_two_operations_a_multiply_and_add():
    assert flops(lambda a, b: a @ b, (4, 8), (8, 16)) == 2 * 4 * 8 * 16


def test_a_scan_counts_as_often_as_it_runs_and_so_do_programs_within_programs():
    def repeated(a):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, x), None), a, None, length=7)[0]

    assert flops(repeated, (8, 8)) == 7 * 2 * 8**3


def test_the_costliest_branch_counts():
    def either(a):
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ x, lambda x: x, a)

    assert flops(either, (8, 8)) == 2 * 8**3


def test_a_convolution_counts_its_kernel_at_every_place():
    def convolve(image, kernel):
        return jax.lax.conv(image, kernel, (2, 2), "VALID")

    assert flops(convolve, (1, 3, 8, 8), (5, 3, 2, 2)) == 2 * (5 * 4 * 4) * (3 * 2 * 2)


def test_gradients_take_twice_what_the_function_takes():
    assert flops(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2), (0, 1)), (8, 16), (4, 8)) == 3 * 2 * 4 * 8 * 16
