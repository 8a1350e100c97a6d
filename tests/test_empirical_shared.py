"""The kernel with its gradients from one pass, and training that carries it, against the separate computations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from empirical_zoo import ZOO, dense, fast_jit, inputs, mlp, normal

from dynamics.empirical import empirical_ntk_and_vjp_fn
from dynamics.evolve import descent, every, kernel_descent, simulate
from dynamics.losses import half_mse
from dynamics.observe import ntk, ntk_of_state
from dynamics.types import Batch, Objective

WHOLE = 2**30
QUICK = [("mlp", 1, ()), ("mlp", WHOLE, (-1,)), ("cnn_grouped", WHOLE, ()), ("transformer_tied", WHOLE, (-1,))]
SLOW = [case for name in ZOO for trace in ((), (-1,)) if (case := (name, WHOLE, trace)) not in QUICK]


@pytest.mark.parametrize(
    ("name", "memory", "trace"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_outputs_kernel_and_gradient_are_those_of_the_separate_functions(name, memory, trace, x64):
    f, params, shape = ZOO[name]()
    x = inputs(shape, 3)

    def errors(params):
        both = empirical_ntk_and_vjp_fn(f, trace, memory=memory)(x, params)
        outputs, pullback = jax.vjp(lambda p: f(p, x), params)
        cotangents = normal(7, *outputs.shape)
        full = dense(f, params, x)
        kernel = full if trace == () else jnp.einsum("nmcc->nm", full) / full.shape[-1]
        pairs = [(both.outputs, outputs), (both.kernel, kernel)]
        pairs += zip(jax.tree.leaves(both.pull(cotangents)), jax.tree.leaves(pullback(cotangents)[0]), strict=True)
        return [jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1e-3) for a, b in pairs]

    assert max(float(value) for value in fast_jit(errors)(params)) < 1e-11


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_training_with_its_kernel_reads_what_separate_training_and_observable_read(outputs, x64, key):
    f, params, shape = mlp()
    x = inputs(shape, 6)
    batch = Batch(x, jnp.sin(x[:, :3]))
    optimizer = optax.adam(0.01)
    options = dict(gram=True, spectrum=2, modes=2, interval=1.0)
    L = Objective(f, half_mse)
    plain, carrying = descent(L, optimizer), kernel_descent(L, optimizer, outputs=outputs)

    def trained(run, read, start):
        state, record = simulate(run, start, batch, train=read, steps=4, record_at=every(2, 4), key=key)
        return state, record.values

    one, first = fast_jit(lambda p: trained(plain, ntk(outputs=outputs, **options), p))(params)
    two, second = fast_jit(lambda p: trained(carrying, ntk_of_state(**options), (p, batch)))(params)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)  # Adam divides by gradients near 0 at its start
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(two.loss, half_mse(f(two.params, x), batch.y), rtol=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="outputs"):
        kernel_descent(Objective(lambda p, x: x @ p, half_mse), optax.sgd(0.1), outputs="some")
    with pytest.raises(ValueError, match="output arrays"):
        empirical_ntk_and_vjp_fn(lambda p, x: (x @ p, x @ p))(inputs((3,), 2), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="spectrum"):
        ntk_of_state(spectrum=-1)
