"""Curvature observables against dense Hessians; coverage of the certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics import linalg, operators
from dynamics.evolve import adam, gradient_descent, simulate
from dynamics.losses import half_mse
from dynamics.observe import (
    hessian_density,
    hessian_eigenvalues,
    joined,
    preconditioned_sharpness,
    sharpness,
    sharpness_drift,
    top_eigenvalue,
)
from dynamics.stability import adam_preconditioner
from dynamics.types import Batch, Objective, View


def apply(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


L = Objective(apply, half_mse)


def problem(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = (jax.random.normal(keys[0], (3, 5)), jax.random.normal(keys[1], (5, 2)))
    return params, Batch(jax.random.normal(keys[2], (8, 3)), jax.random.normal(keys[3], (8, 2)))


def dense_hessian(params, batch):
    theta, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda v: half_mse(apply(unravel(v), batch.x), batch.y))(theta))


def test_sharpness_and_eigenvalues_along_descent(precision):
    """Every reading against the dense Hessian at the same step, through simulate, warm."""
    params, batch = problem()
    observed = joined(
        sharpness(num_matvecs=8, certified_matvecs=20, certify_every=3, interval=0.0),
        hessian_eigenvalues(3, tolerance=1e-4),
        hessian_eigenvalues(2, which="smallest", tolerance=1e-4),
        top_eigenvalue(lambda view: operators.hessian(L, view.params, view.batch), "lowest", which="smallest"),
    )

    def read_path(params, batch):
        return {"theta": ravel_pytree(params)[0]}

    options = {"steps": 30, "record_at": np.arange(0, 31, 5), "key": jax.random.key(0)}
    _, record = simulate(gradient_descent(L, 0.05), params, batch, train=observed, **options)
    _, path = simulate(gradient_descent(L, 0.05), params, batch, train=read_path, **options)
    _, unravel = ravel_pytree(params)
    values = record.values
    assert values["sharpness_matvecs"].tolist() == [20, 8, 8, 20, 8, 8, 20]
    for t, theta in enumerate(path.values["theta"]):
        spectrum = np.linalg.eigvalsh(dense_hessian(unravel(theta), batch))
        slack = 20 * np.finfo(precision).eps * spectrum[-1]
        assert values["sharpness"][t] <= spectrum[-1] + slack
        assert values["sharpness_upper"][t] >= spectrum[-1] - slack
        assert values["lowest_lower"][t] - slack <= spectrum[0] <= values["lowest"][t] + slack
        near = np.abs(spectrum - values["sharpness"][t]).min()
        assert near <= values["sharpness_residual"][t] + slack
        atol = 3e-4 * spectrum[-1]
        np.testing.assert_allclose(values["hessian_eigenvalues"][t], spectrum[::-1][:3], atol=atol)
        np.testing.assert_allclose(values["hessian_smallest"][t], spectrum[:2], atol=atol)


def test_reading_after_a_crossing_is_certified(x64):
    """f = w x: the sharpness is constant in w, but the data's scale moves it through the threshold."""
    read = sharpness(num_matvecs=1, certified_matvecs=3, certify_every=100, threshold=2.0, interval=0.0)
    linear, w, spent = Objective(lambda w, x: x @ w, half_mse), jnp.ones((3, 1)), []
    batches = [Batch(scale * jnp.eye(3), jnp.zeros((3, 1))) for scale in (1.0, 1.0, 3.0, 3.0, 3.0)]

    @jax.jit
    def update(memory, batch):
        return read.update(memory, View(w, batch, linear))

    memory = read.init(View(w, batches[0], linear))
    for batch in batches:
        memory, readings = update(memory, batch)
        spent.append(int(readings["sharpness_matvecs"]))
    assert spent == [3, 1, 1, 3, 1]


def test_density_integrals(x64):
    params, batch = problem()
    _, readings = hessian_density(probes=30, steps=12).update((), View(params, batch, L))
    spectrum = np.linalg.eigvalsh(dense_hessian(params, batch))
    for name, truth in (
        ("trace", spectrum.sum()),
        ("frobenius_squared", (spectrum**2).sum()),
        ("negative_mass", (spectrum < 0).mean()),
    ):
        assert abs(readings[f"hessian_{name}"] - truth) <= 4 * readings[f"hessian_{name}_error"]


def test_drift_budget_is_the_derivative_along_the_flow(x64):
    """dS/dt = -grad S . grad L against a central difference along the gradient direction."""
    params, batch = problem()
    read, view = sharpness_drift(), View(params, batch, L)
    _, readings = read.update(read.init(view), view)
    gradient = jax.grad(lambda p: half_mse(apply(p, batch.x), batch.y))(params)

    def top(t):
        moved = jax.tree.map(lambda p, g: p - t * g, params, gradient)
        return np.linalg.eigvalsh(dense_hessian(moved, batch))[-1]

    measured = (top(1e-4) - top(-1e-4)) / 2e-4  # truncation 1e-8
    np.testing.assert_allclose(readings["sharpness_drift"], measured, rtol=1e-5)
    parts = readings["sharpness_drift/0"] + readings["sharpness_drift/1"]
    np.testing.assert_allclose(parts, readings["sharpness_drift"], rtol=1e-12)


def test_preconditioned_sharpness_of_adam(x64):
    params, batch = problem()
    for read in (
        preconditioned_sharpness(num_matvecs=25),
        preconditioned_sharpness(adam_preconditioner, num_matvecs=25),
    ):
        state, record = simulate(adam(L, 0.01), params, batch, train=read, steps=5, record_at=[5])
        p = ravel_pytree(adam_preconditioner(state.opt_state))[0]
        expected = np.linalg.eigvals(dense_hessian(state.params, batch) / np.asarray(p)[:, None]).real.max()
        np.testing.assert_allclose(record.values["preconditioned_sharpness"][0], expected, rtol=1e-8)


def spectrum_and_start(key, size: int):
    """A bulk and 4 outliers whose gaps vary over two decades; a warm start and its random share, in the eigenbasis.

    The start is a top eigenvector turned by a random angle, sometimes the SECOND eigenvector, which is the adversary:
    a residual of 0 and the wrong eigenvalue.
    """
    keys = jax.random.split(key, 7)
    bulk = 0.3 * jax.random.normal(keys[0], (size,))
    gap = 10 ** jax.random.uniform(keys[1], minval=-2.5, maxval=0.0)
    outliers = 1.0 + gap * jnp.sort(jax.random.uniform(keys[2], (4,)))
    d = bulk.at[:4].set(outliers)
    previous = jnp.zeros(size).at[jnp.where(jax.random.bernoulli(keys[3], 0.3), 2, jnp.argmax(d))].set(1.0)
    angle = jnp.where(jax.random.bernoulli(keys[4], 0.5), 0.3, 0.0)
    previous = previous + angle * jax.random.normal(keys[5], (size,)) / size**0.5
    return d, *linalg.warm_start(keys[6], previous / jnp.linalg.norm(previous), 0.2)


def bounds_along(matvec, start, share, p):
    """``(upper, lower)`` after 6, 10 and 30 products, and where the bound itself stops them, within 1 %."""

    def bounds(steps):
        found, _ = linalg.extreme_eigenvalues(matvec, start, 30, random_share=share, p=p, steps=steps)
        return found.limit, found.value

    upper, lower = jax.lax.map(bounds, jnp.array([6, 10, 30]))
    options = {"interval": 0.01, "random_share": share, "p": p}
    stopped = linalg.certified_eigenvalue(matvec, start, 6, True, 30, **options)
    return jnp.append(upper, stopped.limit), jnp.append(lower, stopped.value)


def coverage(trials: int, p: float, seed: int) -> tuple[np.ndarray, float]:
    """Which upper bounds hold over random spectra and warm starts, ``[trials, 4]``; median excess at 30 products.

    The operators are diagonal (Lanczos is invariant under rotations), so the truth is known exactly.
    """

    def one(key):
        d, start, share = spectrum_and_start(key, 300)
        upper, lower = bounds_along(lambda v: d * v, start, share, p)
        truth = jnp.max(d)
        return upper >= truth, upper[2] / truth - 1, lower <= truth * (1 + 1e-5)

    keys = jax.random.split(jax.random.key(seed), trials)
    holds, excess, lower = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(keys)
    assert np.all(lower)
    return np.asarray(holds), float(np.median(excess))


def enough(holds) -> bool:
    """Whether at least 99.9 % of ten thousand bounds or more hold; printed, for ``pytest -s``."""
    holds = np.asarray(holds)
    print(f"certificate: {holds.sum()} of {holds.size} bounds hold, {holds.size - holds.sum()} missed")
    return holds.size >= 10_000 and bool(holds.mean() >= 0.999)


def test_certificate_coverage():
    """At p = .03: failures of 300 runs are at most p plus 4 standard deviations, after any number of products."""
    holds, excess = coverage(300, 0.03, 0)
    assert np.all(1 - holds.mean(0) <= 0.03 + 4 * (0.03 * 0.97 / 300) ** 0.5)
    assert excess <= 0.03


@pytest.mark.slow
def test_certificate_coverage_over_ten_thousand_points():
    """p = 1e-4, 13 600 bounds on 3400 spectra."""
    holds, _ = coverage(3400, 1e-4, 1)
    assert enough(holds)


@pytest.mark.slow
def test_certificate_coverage_over_dense_matrices():
    """The same with 3400 dense float32 matrices [100, 100] against their float64 eigenvalues."""

    def one(key):
        d, start, share = spectrum_and_start(key, 100)
        q, _ = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 1), (100, 100)))
        a = (q * d) @ q.T
        a = 0.5 * (a + a.T)
        return a, *bounds_along(lambda v: a @ v, q @ start, share, 1e-4)

    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))
    a, upper, lower = run(jax.random.split(jax.random.key(2), 3400))
    truth = np.linalg.eigvalsh(np.asarray(a, np.float64))[:, -1:]
    assert enough(np.asarray(upper) >= truth)
    assert np.all(np.asarray(lower) <= truth * (1 + 1e-5))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_matvecs": 0}, "num_matvecs"),
        ({"certify_every": 0}, "certify_every"),
        ({"interval": float("nan")}, "interval"),
        ({"tau": 0.0}, "tau"),
        ({"which": "middle"}, "which"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*allowed: "):
        sharpness(**options)
