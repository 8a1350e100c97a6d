"""A batch in pieces is the whole batch, or refused: masked means, batch statistics, penalties, trees, custom rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matrices import dense, dense_of

from dynamics import operators
from dynamics.losses import half_mse
from dynamics.types import Batch, Objective

RNG = np.random.default_rng(0)
P = {"w": RNG.normal(size=(3, 4)) / 2, "v": RNG.normal(size=(4, 2)) / 2}
X, Y, MASK = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2)), np.array([1.0, 1, 0, 1, 0, 0, 0, 1])


def f(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


def normed(p, x):
    h = jnp.tanh(x @ p["w"])
    return ((h - h.mean(0)) / (h.std(0) + 0.1)) @ p["v"]


def masked(f, y):
    return jnp.sum(y[1] * jnp.sum((f - y[0]) ** 2, -1)) / jnp.sum(y[1])


def trees(f, y):
    return half_mse(f["a"], y[0]) + masked(f["b"], y)


CASES = {
    "mean": (Objective(f, half_mse), Y),
    "penalty": (Objective(f, half_mse, lambda p: 0.1 * jnp.sum(p["w"] ** 4)), Y),
    "masked mean": (Objective(f, masked), (Y, MASK)),
    "tree": (Objective(lambda p, x: {"a": f(p, x), "b": jnp.sin(f(p, x))}, trees), (Y, MASK)),
    "contrastive loss": (Objective(f, lambda f, y: jax.nn.logsumexp(f @ f.T) + half_mse(f, y)), Y),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "masked mean" else pytest.mark.slow) for n in CASES])
def test_pieces_are_the_whole(name, x64):
    L, y = CASES[name]
    p, batch = jax.tree.map(jnp.asarray, (P, Batch(X, y)))
    theta, unravel = ravel_pytree(p)
    hessian = jax.jit(jax.hessian(lambda v: L(unravel(v), batch)))(theta)
    shares = jax.jit(jax.jacrev(lambda v: jax.tree.leaves(L.apply(unravel(v), batch.x))))(theta)
    slopes = jax.tree.leaves(jax.grad(lambda f: L.loss(f, batch.y))(L.apply(p, batch.x)))
    g = 8 * sum(jnp.einsum("nc,ncp->np", s, j) for s, j in zip(slopes, shares, strict=True))
    if L.penalty is not None:
        g = g + jax.grad(lambda v: L.penalty(unravel(v)))(theta)
    np.testing.assert_allclose(g.mean(0), jax.grad(lambda v: L(unravel(v), batch))(theta), atol=1e-12)
    for size in (None, 2, 8):
        np.testing.assert_allclose(dense_of(operators.hessian, L, p, batch, batch_size=size), hessian, atol=1e-10)
        for centred in (True, False):
            found = dense_of(operators.gradient_covariance, L, p, batch, batch_size=size, centred=centred)
            mean = g.mean(0) if centred else 0 * g.mean(0)
            np.testing.assert_allclose(found, g.T @ g / 8 - jnp.outer(mean, mean), atol=1e-10)
    whole, pieces = (dense_of(operators.gauss_newton, L, p, batch, batch_size=size) for size in (None, 2))
    np.testing.assert_allclose(pieces, whole, atol=1e-10)


def test_batch_statistics_are_refused_in_pieces_and_exact_whole(x64):
    p, batch = jax.tree.map(jnp.asarray, (P, Batch(X, Y)))
    L = Objective(normed, half_mse)
    theta, unravel = ravel_pytree(p)
    hessian = jax.jit(jax.hessian(lambda v: L(unravel(v), batch)))(theta)
    np.testing.assert_allclose(dense_of(operators.hessian, L, p, batch), hessian, atol=1e-10)
    for make in (operators.hessian, operators.gauss_newton, operators.fisher, operators.gradient_covariance):
        with pytest.raises(ValueError, match=r"^batch_size: got 4 for an f that mixes"):
            make(L, p, batch, batch_size=4)
        with pytest.raises(ValueError, match=r"^batch_size: got 4 for an f that mixes"):
            jax.jit(lambda p, make=make: make(L, p, batch, batch_size=4).matvec(theta))(p)


def test_losses_without_outputs_are_means_over_samples_or_refused(x64):
    p, batch = jax.tree.map(jnp.asarray, (P, Batch(X, (Y, MASK))))
    theta = ravel_pytree(p)[0]
    plain = Objective.of(lambda p, b: half_mse(f(p, b.x), b.y[0]))
    known = Objective(f, lambda f, y: half_mse(f, y[0]))
    for make in (operators.hessian, operators.gradient_covariance):
        one, two = (dense(make(L, p, batch, batch_size=2)) for L in (plain, known))
        np.testing.assert_allclose(one, two, atol=1e-10)
        for loss in (lambda p, b: masked(f(p, b.x), b.y), lambda p, b: half_mse(normed(p, b.x), b.y[0])):
            with pytest.raises(ValueError, match=r"^objective: got L = .* over its parts"):
                make(Objective.of(loss), p, batch, batch_size=2)
            traced = jax.jit(
                lambda p, make=make, loss=loss: make(Objective.of(loss), p, batch, batch_size=2).matvec(theta)
            )(p)
            assert np.all(np.isnan(traced))
    with pytest.raises(ValueError, match=r"^objective: got L"):
        operators.gradient_covariance(Objective.of(lambda p, b: half_mse(normed(p, b.x), b.y[0])), p, batch)
