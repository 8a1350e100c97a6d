"""Curvature operators against dense float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matrices import dense, dense_of

from dynamics import operators, stability
from dynamics.empirical.matrix_free import ntk_operator
from dynamics.losses import cross_entropy, half_mse
from dynamics.types import Batch, Objective


def apply(params, x):
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"])
    return hidden @ params["second"]["w"]


L = Objective(apply, half_mse)


@pytest.fixture
def problem(x64):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": {"w": jax.random.normal(keys[0], (3, 4)), "b": 0.1 * jnp.ones(4)},
        "second": {"w": jax.random.normal(keys[1], (4, 2))},
    }
    batch = Batch(jax.random.normal(keys[2], (6, 3)), jax.nn.one_hot(jnp.arange(6) % 2, 2))
    return params, batch


def flat_loss(params, batch, loss):
    theta, unravel = ravel_pytree(params)
    return theta, lambda v: loss(apply(unravel(v), batch.x), batch.y), lambda v: apply(unravel(v), batch.x)


@pytest.mark.parametrize("loss", [half_mse, cross_entropy])
def test_hessian_and_gauss_newton(problem, loss):
    params, batch = problem
    theta, objective, outputs = flat_loss(params, batch, loss)
    expected = jax.jit(jax.hessian(objective))(theta)
    np.testing.assert_allclose(dense_of(operators.hessian, Objective(apply, loss), params, batch), expected, atol=1e-12)
    split = dense_of(operators.hessian, Objective(apply, loss), params, batch, batch_size=2)
    np.testing.assert_allclose(split, expected, atol=1e-12)
    jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(theta)).reshape(12, -1)
    f = outputs(theta)
    inner = np.asarray(jax.jit(jax.hessian(lambda f: loss(f, batch.y)))(f)).reshape(12, 12)
    expected = jacobian.T @ inner @ jacobian
    for size in (None, 3):
        found = dense_of(operators.gauss_newton, Objective(apply, loss), params, batch, batch_size=size)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("output", "loss"), [("categorical", cross_entropy), ("gaussian", half_mse)])
def test_fisher_is_the_gauss_newton_of_its_likelihood(problem, output, loss):
    params, batch = problem
    expected = dense_of(operators.gauss_newton, Objective(apply, loss), params, batch)
    for size in (None, 3):
        found = dense_of(operators.fisher, L, params, batch, output=output, batch_size=size)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_bernoulli_fisher_is_the_expected_score_product(problem):
    """F = (1/n) sum_i sum_y p(y|f_i) s s^T, summed over both labels of each output."""
    params, batch = problem
    theta, unravel = ravel_pytree(params)
    expected = 0
    for i in range(6):
        for c in range(2):

            def log_p(v, i=i, c=c, label=1.0):
                return jax.nn.log_sigmoid(label * apply(unravel(v), batch.x)[i, c])

            for label in (1.0, -1.0):
                score = np.asarray(jax.grad(log_p)(theta, label=label))
                expected = expected + np.exp(float(log_p(theta, label=label))) * np.outer(score, score) / 6
    found = dense_of(operators.fisher, L, params, batch, output="bernoulli")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_gradient_covariance(problem):
    params, batch = problem
    theta, unravel = ravel_pytree(params)

    def one(v, x, y):
        return half_mse(apply(unravel(v), x[None]), y[None])

    g = np.asarray(jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(theta, *batch))
    second = g.T @ g / len(g)
    mean = g.mean(0)
    for size in (None, 2):
        for centred, expected in ((True, second - np.outer(mean, mean)), (False, second)):
            found = dense_of(operators.gradient_covariance, L, params, batch, centred=centred, batch_size=size)
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_ntk(problem):
    params, batch = problem
    theta, _, outputs = flat_loss(params, batch, half_mse)
    jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(theta)).reshape(12, -1)
    np.testing.assert_allclose(dense_of(operators.ntk, L, params, batch), jacobian @ jacobian.T, atol=1e-12)


def test_blocks_are_the_diagonal_blocks(problem):
    params, batch = problem
    whole = dense_of(operators.hessian, L, params, batch)
    groups = operators.blocks(params)
    assert list(groups) == ["first", "second"]
    first = dense_of(operators.hessian, L, params, batch, where=groups["first"])
    second = dense_of(operators.hessian, L, params, batch, where=groups["second"])
    np.testing.assert_allclose(first, whole[:16, :16], atol=1e-12)
    np.testing.assert_allclose(second, whole[16:, 16:], atol=1e-12)
    assert list(operators.blocks(params, 2)) == ["first/b", "first/w", "second/w"]


def test_preconditioned_has_the_eigenvalues_of_the_quotient(problem):
    params, batch = problem
    p = jax.tree.map(lambda leaf: 1 + leaf**2, params)
    operator = operators.hessian(L, params, batch)
    diagonal = np.asarray(ravel_pytree(p)[0])
    expected = np.sort(np.linalg.eigvals(dense(operator) / diagonal[:, None]).real)
    found = np.linalg.eigvalsh(dense(operators.preconditioned(operator, p)))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    root = operators.preconditioned(operator, lambda v: v / jnp.sqrt(diagonal))
    np.testing.assert_allclose(np.linalg.eigvalsh(dense(root)), expected, atol=1e-10)


def test_bad_arguments_are_named(problem):
    params, batch = problem
    operator = operators.hessian(L, params, batch)
    for call, name in (
        (lambda: operators.hessian(L, params, batch, batch_size=0), "batch_size"),
        (lambda: operators.hessian(L, params, batch, where=lambda path, leaf: False), "where"),
        (lambda: operators.fisher(L, params, batch, output="poisson"), "output"),
        (lambda: operators.preconditioned(operator, jnp.ones(3)), "preconditioner"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*allowed: "):
            call()


def test_preconditioned_by_shampoo(x64):
    """P^-1/2 H P^-1/2 has the eigenvalues of P^-1 H, with P = L^1/4 (x) R^1/4 dense."""
    keys = jax.random.split(jax.random.key(0), 4)
    batch = Batch(jax.random.normal(keys[0], (6, 3)), jax.random.normal(keys[1], (6, 2)))
    w, g = jax.random.normal(keys[2], (3, 2)), jax.random.normal(keys[3], (3, 2))
    hessian = operators.hessian(Objective(lambda w, x: jnp.tanh(x @ w), half_mse), w, batch)
    left, right = g @ g.T + jnp.eye(3), g.T @ g + jnp.eye(2)
    found = dense(operators.preconditioned(hessian, stability.shampoo_inverse_root(left, right)))

    def quarter(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * values**0.25) @ vectors.T

    p = np.kron(quarter(left), quarter(right))
    expected = np.sort(np.linalg.eigvals(np.linalg.solve(p, dense(hessian))).real)
    np.testing.assert_allclose(np.linalg.eigvalsh(found), expected, atol=1e-9)  # eps 1e-12 in the root


def test_ntk_operator_of_a_function_that_mixes_samples(x64):
    """All samples at once the product is exact for any function; cut into pieces such a function is refused."""
    x = jax.random.normal(jax.random.key(0), (4, 3))

    def mixing(w, x):
        return jnp.tanh((x - x.mean(0)) @ w)

    w = jax.random.normal(jax.random.key(1), (3, 2))
    jacobian = jnp.reshape(jax.jacobian(mixing)(w, x), (8, 6))
    np.testing.assert_allclose(dense(ntk_operator(mixing, w, x)), jacobian @ jacobian.T, atol=1e-12)
    with pytest.raises(ValueError, match=r"^batch_size: got 2 for an f that mixes the samples"):
        ntk_operator(mixing, w, x, batch_size=2)


def test_pieces_need_not_divide_the_samples(x64):
    """Six samples in pieces of four: the last is filled up, and what was filled does not count."""
    params, batch = (
        {"w": jax.random.normal(jax.random.key(0), (3, 2))},
        Batch(*jnp.split(jnp.sin(jnp.arange(30.0)).reshape(6, 5), [3], 1)),
    )
    L = Objective(lambda p, x: jnp.tanh(x @ p["w"]), half_mse)
    for name in ("hessian", "gauss_newton", "fisher", "gradient_covariance", "ntk"):
        make = getattr(operators, name)
        np.testing.assert_allclose(
            dense_of(make, L, params, batch, batch_size=4), dense_of(make, L, params, batch), atol=1e-12
        )
    with pytest.raises(ValueError, match="batch_size: got 4; allowed: a divisor of the 6 samples"):
        operators.hessian(Objective.of(lambda p, b: jnp.mean((b.x @ p["w"] - b.y) ** 2)), params, batch, batch_size=4)
