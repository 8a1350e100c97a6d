"""One call over widths: the kernel's fluctuation and drift with their known exponents inside the intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.evolve import gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.theory.width import kernel_width_study
from dynamics.types import Batch, Objective


def network(width):
    return stax.serial(stax.Dense(width), stax.Erf(), stax.Dense(1))


@pytest.mark.slow
def test_exponents_of_fluctuation_and_drift(x64):
    """Fluctuation n^(-1/2) and, trained to a fixed function, drift 1/n: each inside its interval widened to 4 sigma.

    The interval is that of the mean exponent of 32 seeds (2 sigma); corrections of relative order n^(-1/2) at the
    narrowest width, 128, may shift the drift's exponent by 0.05.
    """
    x = jax.random.normal(jax.random.key(0), (6, 4))
    data = Batch(x, jnp.sin(2 * x[:, :1]))

    def train(params):
        descent = gradient_descent(Objective(network(1).apply, half_mse), 1.0)
        state, _ = simulate(descent, params, data, steps=200)
        return descent.params(state)

    study = kernel_width_study(network, x, (128, 256, 512, 1024), jax.random.key(2), seeds=32, train=train)
    for law, exponent, bias in ((study.fluctuation_law, -0.5, 0.0), (study.drift_law, -1.0, 0.05)):
        assert law.used == 32
        assert abs(law.exponent - exponent) < law.high - law.low + bias, str(law)
    assert study.drift.shape == study.fluctuation.shape == (32, 4)


@pytest.mark.slow
def test_readings_are_those_of_the_kernels():
    x = jnp.eye(2)
    study = kernel_width_study(
        network, x, (4,), jax.random.key(0), seeds=2, train=lambda p: jax.tree.map(jnp.zeros_like, p)
    )
    np.testing.assert_allclose(study.drift, 1.0)
    assert study.fluctuation_law is None
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 4), 2)[1]
    params = network(4).init(key, x.shape)[1]
    jacobian = jax.jacobian(network(4).apply)(params, x)
    flat = jnp.concatenate([leaf.reshape(2, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    limit = network(4).kernel(x, None, "ntk")
    exact = jnp.linalg.norm(flat @ flat.T - limit) / jnp.linalg.norm(limit)
    np.testing.assert_allclose(study.fluctuation[1, 0], exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"widths": (8, 4)}, "widths: got"),
        ({"widths": ()}, "widths: got"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"network": lambda n: network(n)._replace(kernel=None)}, "network: got"),
    ],
)
def test_bad_input_is_named(change, named):
    given = {"network": network, "x": jnp.eye(2), "widths": (4, 8), "key": jax.random.key(0), **change}
    with pytest.raises(ValueError, match=named):
        kernel_width_study(**given)
