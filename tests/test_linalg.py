"""Matrix-free linear algebra against dense float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import linalg


def matrix(seed=0, size=40, outliers=(3.0, 2.5, -1.5)):
    """A dense symmetric matrix with a bulk, two positive outliers and a negative one, and its eigenvalues."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    values = np.sort(np.concatenate([rng.normal(size=size - len(outliers)) * 0.2, outliers]))
    return (q * values) @ q.T, values


def product(a):
    a = jnp.asarray(a, jnp.result_type(float))
    return lambda v: a @ v


def test_lanczos_relation(precision, key):
    """A Q^T = Q^T T + beta_m q_{m+1} e_m^T, with orthonormal rows."""
    a, _ = matrix()
    m = 25
    t = linalg.tridiagonalize(product(a), jax.random.normal(key, (40,)), m)
    eps = np.finfo(precision).eps
    q = np.asarray(t.basis)
    np.testing.assert_allclose(q @ q.T, np.eye(m + 1), atol=50 * eps)
    left = a @ q[:m].T
    right = q[:m].T @ np.asarray(t.matrix())
    right[:, -1] += float(t.offdiagonal[-1]) * q[m]
    np.testing.assert_allclose(left, right, atol=200 * eps)


def test_lanczos_traced_steps_equal_shorter_run(x64, key):
    a, _ = matrix()
    start = jax.random.normal(key, (40,))
    short = linalg.extreme_eigenvalues(product(a), start, 7)
    traced = jax.jit(lambda steps: linalg.extreme_eigenvalues(product(a), start, 20, steps=steps))(7)
    for expected, got in zip(jax.tree.leaves(short), jax.tree.leaves(traced), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_certified_run_stops_where_its_bound_is_close(x64, key):
    """As many products as reported give the same bounds at once; lanes of a vmap stop each by itself."""
    a, values = matrix()
    start, interval = jax.random.normal(key, (40,)), 0.02

    @jax.jit
    @jax.vmap
    def run(certify):
        return linalg.certified_eigenvalue(product(a), start, 6, certify, 30, interval=interval)

    found = run(jnp.array([False, True]))
    steps = int(found.matvecs[1])
    assert found.matvecs[0] == 6 < steps < 30
    at_once = jax.jit(jax.vmap(lambda n: linalg.extreme_eigenvalues(product(a), start, 30, steps=n)[0]))
    expected = at_once(jnp.array([6, steps, steps - 4]))
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted[:2], atol=1e-9)
    assert values[-1] <= found.limit[1] <= (1 + interval) * found.value[1]
    assert expected.limit[2] > (1 + interval) * expected.value[2]


def test_breakdown_is_exact(precision):
    """On an invariant subspace both bounds close up to rounding, and padding never shows."""
    eps = np.finfo(precision).eps
    for scale in (1.0, -1.0):
        top, bottom = linalg.extreme_eigenvalues(lambda v, scale=scale: scale * v, jnp.arange(1.0, 6.0), 4)
        np.testing.assert_allclose([top.value, bottom.value], scale, rtol=10 * eps)
        # prod beta / delta with beta = eps: the m-th root of the uncertainty is what is left of it
        room = 0.05 if precision == "float32" else 1e-6
        assert scale <= top.limit < scale + room
        assert scale >= bottom.limit > scale - room
        np.testing.assert_allclose(jnp.linalg.norm(top.vector), 1, rtol=10 * eps)


def test_extremes_and_residual(precision, key):
    a, values = matrix()
    top, bottom = linalg.extreme_eigenvalues(product(a), jax.random.normal(key, (40,)), 20)
    eps = np.finfo(precision).eps
    assert values[-1] - 1e-6 <= top.value <= values[-1] + 20 * eps * values[-1]
    assert top.limit >= values[-1]
    assert bottom.limit <= values[0]
    measured = np.linalg.norm(a @ np.asarray(top.vector) - float(top.value) * np.asarray(top.vector))
    assert measured <= float(top.residual) + 20 * eps * values[-1]


@pytest.mark.parametrize(("which", "basis_size"), [("largest", None), ("smallest", 9)])
def test_eigenpairs_match_dense(precision, key, which, basis_size):
    a, values = matrix()
    tolerance = 1e-4
    pairs = jax.jit(
        lambda start: linalg.eigenpairs(
            product(a), start, 3, which=which, tolerance=tolerance, basis_size=basis_size, max_matvecs=400
        )
    )(jax.random.normal(key, (40,)))
    expected = values[::-1][:3] if which == "largest" else values[:3]
    assert np.all(pairs.residuals <= tolerance * 3.01)
    # A Ritz value is off by at most its residual; here the gaps make it residual^2 / gap.
    np.testing.assert_allclose(pairs.values, expected, atol=tolerance * 3)
    vectors = np.asarray(pairs.vectors)
    eps = np.finfo(precision).eps
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=100 * eps)
    measured = np.linalg.norm(vectors @ a - np.asarray(pairs.values)[:, None] * vectors, axis=1)
    assert np.all(measured <= pairs.residuals + 100 * eps * np.abs(values).max())


def test_eigenpairs_of_small_and_singular_matrices(precision):
    whole = linalg.eigenpairs(lambda v: jnp.arange(5.0) * v, jnp.ones(5), 5)
    np.testing.assert_allclose(whole.values, [4, 3, 2, 1, 0], atol=1e-5)
    assert int(whole.matvecs) == 5
    rank_one = linalg.eigenpairs(lambda v: jnp.array([3.0, 0, 0, 0, 0]) * v, jnp.ones(5), 2)
    np.testing.assert_allclose(rank_one.values, [3, 0], atol=1e-5)


def test_density_moments_match_dense(precision, key):
    """Trace, squared norm, negative mass and CDF within 5 standard errors of the dense truth."""
    a, values = matrix(size=200)
    density = linalg.spectral_density(product(a), key, 200, probes=20, steps=30)
    np.testing.assert_allclose(jnp.sum(density.weights, -1), 1, rtol=1e-4)
    found = linalg.moments(density)
    truth = [values.sum(), (values**2).sum(), (values < 0).mean()]
    for estimate, expected in zip(found, truth, strict=True):
        assert abs(float(estimate.value) - expected) <= 5 * float(estimate.error)
    x = np.linspace(-1, 3, 9)
    share = linalg.cumulative(density, jnp.asarray(x))
    exact = (values[:, None] <= x).mean(0)
    assert np.all(np.abs(np.asarray(share.value) - exact) <= 5 * np.asarray(share.error) + 1e-3)


def test_a_density_repeats_no_eigenvalue_unless_told(key):
    """Three eigenvalues far out of 300, float32: three nodes there; copies of them without reorthogonalisation."""
    d = jnp.concatenate([jnp.array([100.0, 50.0, 20.0]), jnp.linspace(0.0, 1.0, 297)])
    whole, short = (
        linalg.spectral_density(lambda v: d * v, key, 300, probes=3, steps=40, reorthogonalize=choice)
        for choice in (True, False)
    )
    assert np.all(np.sum(np.asarray(whole.nodes) > 10, 1) == 3)
    assert np.all(np.sum(np.asarray(short.nodes) > 10, 1) > 3)
    np.testing.assert_allclose(*(jnp.sum(x.weights * x.nodes, -1) for x in (whole, short)), rtol=1e-4)
    few = linalg.spectral_density(lambda v: d[:5] * v, key, 5, probes=2, steps=8)  # fewer eigenvalues than steps
    assert few.nodes.shape == (2, 8)
    np.testing.assert_allclose(jnp.sum(few.weights, -1), 1, rtol=1e-5)
    np.testing.assert_allclose(few.nodes[:, 4], 100, rtol=1e-5)


def test_smoothed_density_integrates_to_one(key):
    a, _ = matrix()
    density = linalg.spectral_density(product(a), key, 40, probes=2, steps=10)
    x = jnp.linspace(-4, 6, 2001)
    heights = linalg.smoothed(density, x, 0.1)
    np.testing.assert_allclose(jnp.trapezoid(heights.value, x), 1, atol=1e-3)


def test_trace_and_frobenius(precision, key):
    a, values = matrix(size=100)
    estimate = linalg.trace(product(a), key, 100, 200)
    assert abs(estimate.trace.value - values.sum()) <= 4 * estimate.trace.error
    assert abs(estimate.frobenius.value - np.linalg.norm(a)) <= 4 * estimate.frobenius.error
    # The stated variance: 2 (|A|_F^2 - sum A_ii^2) / probes, itself known to sqrt(2/probes) = 10 %.
    expected = np.sqrt(2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2)) / 200)
    np.testing.assert_allclose(estimate.trace.error, expected, rtol=0.3)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: linalg.eigenpairs(lambda v: v, jnp.ones(3), 4), "k"),
        (lambda: linalg.eigenpairs(lambda v: v, jnp.ones(3), 1, which="top"), "which"),
        (lambda: linalg.eigenpairs(lambda v: v, jnp.ones(9), 3, basis_size=3), "basis_size"),
        (lambda: linalg.eigenpairs(lambda v: v, jnp.ones(9), 3, max_matvecs=2), "max_matvecs"),
        (lambda: linalg.eigenpairs(lambda v: v, jnp.ones(9), 3, tolerance=float("nan")), "tolerance"),
        (lambda: linalg.tridiagonalize(lambda v: v, jnp.ones(3), 4), "num_matvecs"),
        (lambda: linalg.three_term(lambda v: v, jnp.ones(3), 0), "num_matvecs"),
        (lambda: linalg.extreme_eigenvalues(lambda v: v, jnp.ones(3), 2, p=0.0), "p"),
        (lambda: linalg.trace(lambda v: v, jax.random.key(0), 3, 1), "probes"),
        (lambda: linalg.spectral_density(lambda v: v, jax.random.key(0), 3, probes=1), "probes"),
        (lambda: linalg.spectral_density(lambda v: v, jax.random.key(0), 3, steps=0), "steps"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*allowed: "):
        call()


@pytest.mark.parametrize(
    "matvec",
    [lambda v: jnp.nan * v, lambda v: v.at[3].set(jnp.nan), lambda v: 1e38 * jnp.arange(24) * v],
    ids=["nan", "one entry", "overflow"],
)
def test_an_operator_that_is_not_finite_has_no_eigenvectors(matvec, key):
    """A finite vector beside a value that is NaN would pass for one in whatever is read along it."""
    start = jax.random.normal(key, (24,))
    found = [
        *linalg.extreme_eigenvalues(matvec, start, 20),
        linalg.certified_eigenvalue(matvec, start, 6, True, 12),
        linalg.eigenpairs(matvec, start, 3),
        linalg.refine(matvec, jax.random.normal(key, (3, 24))),
    ]
    for one in found:
        assert np.all(np.isnan(one[0]))
        assert np.all(np.isnan(one.vectors if isinstance(one, linalg.Eigenpairs) else one.vector))


def test_warm_start_from_no_vector_is_cold(key):
    nothing, share = linalg.warm_start(key, jnp.full(24, jnp.nan), 0.3)
    cold, its_share = linalg.warm_start(key, jnp.zeros(24), 0.3)
    np.testing.assert_array_equal(nothing, cold)
    assert share == its_share == 1


def test_refine_tracks_a_block(x64, key):
    """Two eigenpairs from a perturbed guess, against the dense ones; the residual is measured."""
    a, values = matrix()
    vectors = np.linalg.eigh(a)[1][:, -2:].T + 0.05 * np.asarray(jax.random.normal(key, (2, 40)))
    pairs = linalg.refine(product(a), jnp.asarray(vectors), depth=5)
    np.testing.assert_allclose(pairs.values, values[::-1][:2], atol=1e-6)
    measured = np.linalg.norm(pairs.vectors @ a - np.asarray(pairs.values)[:, None] * pairs.vectors, axis=1)
    np.testing.assert_allclose(pairs.residuals, measured, atol=1e-12)
    flipped = linalg.refine(product(a), -jnp.asarray(vectors), depth=5)  # signs follow the guess
    np.testing.assert_allclose(flipped.vectors, -pairs.vectors, atol=1e-12)
    assert bool(jnp.all(jnp.sum(pairs.vectors * vectors, 1) > 0))
    with pytest.raises(ValueError, match=r"^depth: got 0"):
        linalg.refine(product(a), jnp.ones((1, 40)), depth=0)
