"""The local learning coefficient against exact values: closed forms at finite n, quadrature, and known lambda."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.losses import half_mse
from dynamics.observe import local_learning_coefficient
from dynamics.statistics import chain_mean
from dynamics.theory.learning_coefficient import deep_linear
from dynamics.types import Batch, Objective, Observable, View


def within(found, exact, k=3):
    return abs(found.value - exact) <= k * found.error


# The mean of correlated draws


@pytest.mark.parametrize("phi", [0.7, -0.5])
def test_effective_sample_size_of_an_autoregression(x64, phi):
    """x' = phi x + noise is worth (1 - phi) / (1 + phi) of its draws; the error is the spread over repeats."""

    def chain(key):
        noise = jax.random.normal(key, (2000,)).at[0].divide(jnp.sqrt(1 - phi**2))
        return jax.lax.scan(lambda x, e: (phi * x + e, phi * x + e), 0.0, noise)[1]

    found = jax.vmap(chain_mean)(jax.vmap(chain)(jax.random.split(jax.random.key(0), 400)).reshape(100, 4, 2000))
    assert abs(jnp.mean(found.n) / (8000 * (1 - phi) / (1 + phi)) - 1) < 0.05
    # The standard deviation of 100 means is known to 1 / sqrt(200).
    assert abs(jnp.std(found.value) / jnp.mean(found.error) - 1) < 3 / 200**0.5
    assert jnp.max(found.r_hat) < 1.02


def test_chains_that_disagree_are_seen(key):
    """V / W = 1 + variance of the half chains' means over that within."""
    trace, line = jax.random.normal(key, (4, 500)), jnp.linspace(0.0, 3.0, 500)
    apart, drift = 1 + 1.25 * 8 / 7, 1 + 0.75**2 * 8 / 7 / (1 + 1.5**2 / 12)
    assert chain_mean(trace).r_hat < 1.01
    np.testing.assert_allclose(chain_mean(trace + jnp.arange(4.0)[:, None]).r_hat, apart**0.5, rtol=0.03)
    np.testing.assert_allclose(chain_mean(trace + line).r_hat, drift**0.5, rtol=0.03)
    assert jnp.isnan(chain_mean(trace.at[1, 7].set(jnp.nan)).value)
    with pytest.raises(ValueError, match=r"^trace: got 3 draws; allowed: at least 4"):
        chain_mean(trace[:, :3])


# Exact values of deep linear networks


def reduced_rank(m, h, n, r):
    """Aoyagi & Watanabe 2005, main theorem, four cases."""
    if n + r <= m + h and m + r <= n + h and h + r <= m + n:
        odd = (m + h + n + r) % 2
        return (-((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8, 1 + odd
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    return ((h * n - h * r + m * r) / 2, 1) if n + h < m + r else (m * n / 2, 1)


def test_two_layers_are_reduced_rank_regression():
    for widths in itertools.product(range(1, 6), repeat=3):
        for rank in range(min(widths) + 1):
            assert deep_linear(widths, rank) == reduced_rank(*widths, rank)


def codimension(widths, rank):
    """Of all weights with one product: over the ways to compose the layers of maps carrying a unit from i to j.

    A representation of the quiver 0 -> 1 -> ... -> K is a sum of intervals; its orbit has codimension dim Ext(V, V) =
    dim Hom(V, V) - <V, V> with the Euler form <V, V> = sum d_k^2 - sum d_k d_{k+1}.
    """
    last = len(widths) - 1
    euler = sum(d * d for d in widths) - sum(a * b for a, b in itertools.pairwise(widths))

    def search(intervals, left, chosen):
        if not intervals:
            maps = (a * n for (i, j), a in chosen for (k, m), n in chosen if k <= i <= m <= j)
            return sum(maps) - euler if not any(left) else np.inf
        (i, j), *rest = intervals
        most = min(left[i : j + 1])
        counts = [rank] if (i, j) == (0, last) else range(most + 1)
        counts = [m for m in counts if m <= most and (j < last or m == left[i])]  # the last interval that starts at i
        taken = ([d - m * (i <= k <= j) for k, d in enumerate(left)] for m in counts)
        return min((search(rest, now, [*chosen, ((i, j), m)]) for m, now in zip(counts, taken)), default=np.inf)

    intervals = [(i, j) for i in range(last + 1) for j in range(i, last + 1)]
    return search(intervals, list(widths), []) + rank * (widths[0] + widths[-1] - rank)


def test_lambda_of_any_depth_is_half_the_codimension():
    for layers in (1, 2, 3):
        for widths in itertools.product(range(1, 4), repeat=layers + 1):
            for rank in range(min(widths) + 1):
                assert 2 * deep_linear(widths, rank).value == codimension(widths, rank)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match=r"^widths: got \[3\]; allowed: at least two"):
        deep_linear([3], 0)
    with pytest.raises(ValueError, match=r"^rank: got 3; allowed: an integer in \[0, 2\]"):
        deep_linear([3, 2, 4], 3)


# The estimator, exact at finite n


def regression(n=200, d=6):
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (n, d)) * jnp.logspace(-2, 0.5, d)
    y = x @ jax.random.normal(keys[1], (d, 1)) + jax.random.normal(keys[2], (n, 1))
    minimum = jnp.linalg.lstsq(x, y)[0]
    return Objective(lambda w, x: x @ w, half_mse), minimum, Batch(x, y), jnp.linalg.eigvalsh(x.T @ x / n)


def test_linear_regression_at_a_localisation(key):
    """1/2 sum n beta h / (n beta h + gamma), which d/2 and the count at another gamma are not."""
    L, minimum, batch, h = regression()
    n_beta = 200 / np.log(200)

    def exact(gamma):
        return jnp.sum(n_beta * h / (n_beta * h + gamma)) / 2

    found = local_learning_coefficient(L, minimum, batch, key, gamma=2.0, draws=2000)
    assert within(found, exact(2.0))
    assert found.error < 0.05 * found.value
    assert abs(found.virial.value - 1) < 3 * found.virial.error < 0.15
    assert not within(found, 3.0)
    assert not within(found, exact(20.0))
    assert found.r_hat < 1.02
    assert not found.diverged.any()


def location(n=24, size=5):
    """L(w) = mean |x_i - w|^2 / 2: every batch has H = I, and its gradient errs by the batch's mean."""
    x = jax.random.normal(jax.random.key(4), (n, size))
    return Objective.of(lambda w, x: jnp.mean(jnp.sum((x - w) ** 2, -1)) / 2), jnp.mean(x, 0), x


def test_sgld_is_biased_as_derived(key):
    """u' = (1 - ek/2) u + noise has variance (1 + e (n beta)^2 v / 4) / (k (1 - ek/4)), v that of a batch's mean."""
    L, minimum, x = location()
    n_beta, gamma, epsilon, m = 24 / np.log(24), 1.0, 0.05, 6
    k = n_beta + gamma
    v = np.sum(np.var(x, 0, ddof=1)) / m * (1 - m / 24)  # over the 5 directions
    exact = n_beta / 2 * (5 + epsilon * n_beta**2 * v / 4) / (k * (1 - epsilon * k / 4))
    found = local_learning_coefficient(L, minimum, x, key, batch_size=m, step_size=epsilon, gamma=gamma, draws=4000)
    assert within(found, exact)
    assert not within(found, n_beta / k * 5 / 2)  # what Metropolis adjustment would give
    assert found.virial.value - 1 > 3 * found.virial.error  # and the reading that says so
    assert within(found.virial, exact / (n_beta / k * 5 / 2))


def test_lost_chains_are_flagged(key):
    L, minimum, x = location()
    lost = local_learning_coefficient(L, minimum, x, key, batch_size=6, step_size=3.0, draws=4000)
    assert lost.diverged.all()
    assert jnp.isnan(lost.value)


def test_chains_that_have_not_spread_show_in_the_virial(key):
    """From one point all chains start alike: R-hat is content with what is a tenth of the value. As an observable."""
    L, minimum, x = location()

    def coefficient(params, batch):
        options = dict(leapfrog=1, step_size=1e-5, warmup=0, draws=800)
        found = local_learning_coefficient(L, params, batch, key, **options)
        return {"lambda": found.value, "virial": found.virial.value, "acceptance": found.acceptance}

    read = Observable.of(coefficient)
    update = jax.jit(lambda view: read.update((), view))
    _, found = update(View(minimum, x))
    assert 0 < found["lambda"] < 0.1 * 5 / 2
    assert 0 < found["virial"] < 0.1
    assert jnp.all(found["acceptance"] > 0.99)
    _, found = update(View(minimum, x * jnp.nan))  # not the 0 of chains that take nothing
    assert jnp.isnan(found["lambda"])
    assert jnp.all(found["acceptance"] == 0)


def test_any_leaves(key):
    """Complex leaves count twice, whole numbers stand still, and half precision is sampled in single."""

    def loss(p, batch):
        return p["n"] * (jnp.sum(jnp.abs(p["z"]) ** 2) + jnp.sum((p["b"] - 1) ** 2)) / 4

    params = {"z": jnp.zeros(2, complex), "b": jnp.ones(2, jnp.bfloat16), "n": jnp.int32(2)}
    found = local_learning_coefficient(Objective.of(loss), params, None, key, samples=1000, beta=1.0, gamma=0.0)
    assert within(found, 6 / 2)
    assert found.error < 0.1


def test_far_below_lambda_where_the_multiplicity_is_two(key, x64):
    """w1^2 w2^2 has lambda = 1/2, m = 2: at n beta = 1000 the exact mean, by quadrature, is a third below lambda."""
    n_beta = 1000.0
    w = np.sinh(np.linspace(-12, 12, 200001)) / np.sinh(12) * 8
    wide = 1 + 2 * n_beta * w**2  # the precision of w1 given w2
    weight = np.gradient(w) * np.exp(-(w**2) / 2) / np.sqrt(wide)
    exact = np.sum(weight * n_beta * w**2 / wide) / np.sum(weight)
    L = Objective.of(lambda w, batch: jnp.prod(w**2))
    at, beta = jnp.zeros(2, jnp.float32), jnp.float64(n_beta)  # of two precisions
    found = local_learning_coefficient(L, at, None, key, samples=1, beta=beta, gamma=jnp.float64(1), draws=4000)
    assert within(found, exact)
    assert found.error < 0.05 * exact
    assert not within(found, 1 / 2)
    np.testing.assert_allclose(exact, 1 / 2 - 1 / np.log(n_beta), atol=0.06)  # to leading order in 1/log


BAD = {
    "chains": dict(chains=0),
    "draws": dict(draws=3),
    "warmup": dict(warmup=0),
    "leapfrog": dict(leapfrog=1.5),
    "samples": dict(samples=1),
    "beta": dict(beta=-1.0),
    "gamma": dict(gamma=float("nan")),
    "step_size": dict(step_size=0.0),
    "step_size, batches": dict(batch_size=4),
    "batch_size": dict(batch_size=25, step_size=0.1),
}


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case, key):
    L, minimum, x = location()
    with pytest.raises(ValueError, match=rf"^{case.split(',')[0]}: got .*; allowed: "):
        local_learning_coefficient(L, minimum, x, key, **BAD[case])


# Singular models with a known lambda


def one(rows, columns):
    return jnp.zeros((rows, columns)).at[0, 0].set(1.0)


def deep(*widths):
    """A deep linear network on whitened inputs at the most singular of its true parameters, of rank 1."""
    target = one(widths[-1], widths[0])
    weights = tuple(one(out, into) for into, out in itertools.pairwise(widths))

    def loss(weights, batch):
        product = jnp.eye(widths[0])
        for weight in weights:
            product = weight @ product
        return jnp.sum((product - target) ** 2) / 2

    return loss, weights


def duplicate():
    """Two tanh units for a function of one: K is u^2 + v^2 + w^4 to leading order, u the sum of the outer weights and v
    of a b, w the distance of the inner weights, beside a direction that changes nothing."""
    x = jnp.linspace(-2.0, 2.0, 21)

    def loss(w, batch):
        return jnp.mean((jnp.tanh(x[:, None] * w[1]) @ w[0] - jnp.tanh(x)) ** 2) / 2

    return loss, (jnp.full(2, 0.5), jnp.ones(2))


# name: (loss, minimum), lambda, options. n beta is so large that its own effect is below half the error allowed here.
SINGULAR = {
    "w^4": ((lambda w, b: w[0] ** 4, jnp.zeros(1)), 1 / 4, dict(beta=1e3, gamma=0.0)),
    "w1^2 + w2^4": ((lambda w, b: w[0] ** 2 + w[1] ** 4, jnp.zeros(2)), 3 / 4, dict(beta=1e3, gamma=0.0)),
    "linear 3-2-2": (deep(3, 2, 2), deep_linear((3, 2, 2), 1).value, dict(beta=1e5, leapfrog=32)),
    "linear 3-3-3-4": (deep(3, 3, 3, 4), deep_linear((3, 3, 3, 4), 1).value, dict(beta=1e6, leapfrog=128)),
    "tanh, a unit twice": (duplicate(), 5 / 4, dict(beta=1e6, leapfrog=128)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGULAR)
def test_singular_models(name, key, x64):
    (loss, minimum), exact, options = SINGULAR[name]
    minimum = jax.tree.map(lambda leaf: leaf.astype(float), minimum)
    found = local_learning_coefficient(
        Objective.of(loss), minimum, None, key, samples=1, chains=8, draws=4000, warmup=1000, **options
    )
    half = sum(leaf.size for leaf in jax.tree.leaves(minimum)) / 2
    print(f"{name}: {exact} {found.value:.4f} +- {found.error:.4f} n {found.n:.0f} r_hat {found.r_hat:.4f} {half}")
    assert within(found, exact)
    assert found.error <= 0.1 * found.value
    assert not within(found, half)
    assert found.r_hat < 1.02
