"""Convolutions as shifts: the same function, derivative and program structure, whatever the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynamics import observe, operators, stax
from dynamics.empirical import shifted_convolutions
from dynamics.evolve import gradient_descent, simulate
from dynamics.linalg import eigenpairs
from dynamics.losses import half_mse
from dynamics.program.jaxpr import bodies, has_convolutions, trace
from dynamics.program.on_cpus import quick_loops
from dynamics.types import Batch, Objective


@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "layouts"),
    [
        ((2, 3), "SAME", (1, 1), ("NCHW", "OIHW", "NCHW")),
        ((1, 2), [(2, 1), (-1, 3)], (2, 1), ("NHWC", "OIHW", "CNWH")),
        ((1, 1), "SAME", (1, 1), ("NHWC", "HWIO", "NHWC")),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_convolution(x64, strides, padding, dilation, layouts, groups):
    """With its gradients, which are convolutions with dilated inputs, large filters, and groups of samples."""
    sizes = {"N": 2, "H": 7, "W": 8, "C": 6, "I": 6 // groups, "O": 4}
    x, w = (
        jax.random.normal(jax.random.key(i), [{**sizes, **over}[axis] for axis in layout])
        for i, (layout, over) in enumerate(((layouts[0], {}), (layouts[1], {"H": 3, "W": 2})))
    )

    def convolve(w, x):
        return lax.conv_general_dilated(
            x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=layouts, feature_group_count=groups
        )

    shifted = shifted_convolutions(convolve)

    def with_gradients(function):
        value, pull = jax.vjp(function, w, x)
        return value, pull(jnp.cos(value))

    def rewritten(w, x):  # what a loop is given: the gradient's own convolutions
        value, pull = jax.vjp(convolve, w, x)
        return value, pull(jnp.cos(value))

    outside = jax.jit(
        lambda: (with_gradients(shifted), shifted_convolutions(rewritten)(w, x), with_gradients(convolve))
    )
    *found, expected = outside()
    for one in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, expected)
    assert not has_convolutions(trace(shifted, w, x))
    assert not has_convolutions(trace(shifted_convolutions(rewritten), w, x))


def test_hessian_products_of_a_network(x64):
    """Through nested jit and custom derivatives; a depthwise convolution stays as it is."""
    layers = stax.Conv(3, (3, 3), (2, 2)), stax.ConvTranspose(2, (2, 2)), stax.GlobalAvgPool()
    params = [layers[0].init(jax.random.key(0), (-1, 6, 6, 2))[1], layers[1].init(jax.random.key(1), (-1, 2, 2, 3))[1]]
    batch = Batch(jax.random.normal(jax.random.key(2), (4, 6, 6, 2)), jnp.ones((4, 2)))

    def apply(params, x):
        hidden = jax.nn.relu(jax.jit(layers[0].apply)(params[0], x))
        hidden = layers[1].apply(params[1], hidden)
        grouped = lax.conv_general_dilated(
            hidden,
            params[1][0][..., :1, :],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )
        return jnp.tanh(layers[2].apply((), grouped))

    def product(apply):
        operator = operators.hessian(Objective(apply, half_mse), params, batch)
        return operator.matvec(jnp.arange(operator.size, dtype=float))

    found, expected = jax.jit(lambda: (product(shifted_convolutions(apply)), product(apply)))()
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_loops_have_none(x64):
    """Steps of a vmapped, checkpointed network inside scan, while and cond; what stands outside of loops is kept."""
    x, starts = (
        jax.random.normal(jax.random.key(0), (4, 6, 6, 2)),
        jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 2)),
    )

    def convolve(w, x):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(w):
        return jnp.mean(jax.checkpoint(convolve)(w, jnp.tanh(convolve(w, x))) ** 2)

    def descend(w, step):
        moved = lax.fori_loop(0, step, lambda _, w: w - 0.1 * jax.grad(loss)(w), w)
        return lax.cond(step > 1, lambda w: w - 0.1 * jax.grad(loss)(w), lambda w: w, moved), loss(moved)

    def run(starts):
        return jax.vmap(lambda w: lax.scan(descend, w, jnp.arange(3)))(starts)

    quick = quick_loops(run)
    found, expected = jax.jit(lambda: (quick(starts), run(starts)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)
    assert not has_convolutions(trace(quick, starts))
    assert has_convolutions(trace(quick_loops(lambda w: convolve(w, x)), starts[0]))


def loops_with_convolutions(program):
    found = []
    for equation in program.jaxpr.eqns:
        inner = [body for held in equation.params.values() for body in bodies(held)]
        if equation.primitive.name in ("scan", "while"):
            found += [equation for body in inner if has_convolutions(body)]
        else:
            found += [loop for body in inner for loop in loops_with_convolutions(body)]
    return found


@pytest.mark.parametrize("lanes", [1, 2])
def test_simulate_and_krylov_loops_are_quick(lanes):
    """No convolution is left where XLA on CPU is slow, and nobody had to ask."""
    model = stax.serial(stax.Conv(3, (3, 3)), stax.Relu(), stax.GlobalAvgPool())
    params = model.init(jax.random.key(0), (-1, 6, 6, 2))[1]
    batch = Batch(jax.random.normal(jax.random.key(2), (4, 6, 6, 2)), jnp.ones((4, 3)))
    L = Objective(model.apply, half_mse)

    def run(params):
        read = [observe.loss(), observe.sharpness()]
        return simulate(gradient_descent(L, 0.1), params, batch, train=read, steps=2, record_at=[1, 2])[1].values

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * lanes), params)
    assert not loops_with_convolutions(trace(jax.vmap(run), stacked))
    operator = operators.hessian(L, params, batch)
    assert not has_convolutions(trace(lambda v: eigenpairs(operator.matvec, v, 2).values, jnp.ones(operator.size)))
