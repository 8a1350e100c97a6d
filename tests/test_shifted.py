"""Convolutions as shifts: the same function, derivative and program structure, whatever the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynamics import operators, stax
from dynamics.empirical import shifted_convolutions
from dynamics.losses import half_mse
from dynamics.program.jaxpr import has_convolutions, trace
from dynamics.types import Batch, Objective


@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "layouts"),
    [
        ((2, 3), "SAME", (1, 1), ("NCHW", "OIHW", "NCHW")),
        ((1, 2), [(2, 1), (-1, 3)], (2, 1), ("NHWC", "OIHW", "CNWH")),
    ],
)
def test_equals_the_convolution(x64, strides, padding, dilation, layouts):
    sizes = {"N": 2, "H": 7, "W": 8, "C": 3, "I": 3, "O": 4}
    x, w = (
        jax.random.normal(jax.random.key(i), [{**sizes, **over}[axis] for axis in layout])
        for i, (layout, over) in enumerate(((layouts[0], {}), (layouts[1], {"H": 3, "W": 2})))
    )

    def convolve(w, x):
        return lax.conv_general_dilated(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=layouts)

    shifted = shifted_convolutions(convolve)

    def with_gradients(function):
        value, pull = jax.vjp(function, w, x)
        return value, pull(jnp.cos(value))

    found, expected = jax.jit(lambda: (with_gradients(shifted), with_gradients(convolve)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)
    assert not has_convolutions(trace(shifted, w, x))


def test_hessian_products_of_a_network(x64):
    """Through nested jit and custom derivatives; a transposed and a grouped convolution stay as they are."""
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
